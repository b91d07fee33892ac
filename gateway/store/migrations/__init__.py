"""Numbered SQL files, applied in order and never changed once released."""

from importlib import resources
from types import ModuleType

Step = tuple[int, str]
"""The number and the SQL of a migration."""


def in_order(package: ModuleType) -> list[Step]:
    """The migrations in a package, in order."""
    files = [entry for entry in resources.files(package).iterdir() if entry.name.endswith(".sql")]
    return sorted((int(file.name.split("_")[0]), file.read_text("utf-8")) for file in files)
