"""The story (see below)."""


def tell() -> int:
    """Tell it."""
    return 1
