"""`ice-gateway`, and `python -m gateway`."""

import sys

from gateway.runtime.signals import signals


def main() -> None:
    """Run the command that the arguments name. `serve` handles signals before the slow import of the commands."""
    if sys.argv[1:2] == ["serve"]:
        signals.install()
    from gateway.cli import main as commands  # noqa: PLC0415 - a slow import

    commands()


if __name__ == "__main__":
    main()
