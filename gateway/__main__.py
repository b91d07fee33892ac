"""`ice-gateway`, and `python -m gateway`."""

import sys

from gateway.runtime.signals import signals


def main() -> None:
    """Run the command that the arguments name. `serve` hears signals before the commands are even loaded."""
    if sys.argv[1:2] == ["serve"]:
        signals.install()
    from gateway.cli import main as commands  # noqa: PLC0415 - it takes the most time

    commands()


if __name__ == "__main__":
    main()
