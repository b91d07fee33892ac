"""`ice-gateway`, and `python -m gateway`.

`pip install ice-gateway` brings the client alone, and this command with it. Without the packages of the gateway it
ends with status 78 (`EX_CONFIG`) and one line, whatever its arguments; `--version` answers.

Tested in tests/unit/test_wheel.py.
"""

import sys
from typing import Final, NoReturn

from gateway import __version__

_EX_CONFIG: Final = 78  # sysexits.h; `os.EX_CONFIG` is missing on Windows
_OURS: Final = ("client", "gateway")


def main() -> None:
    """Run the command that the arguments name. `serve` handles signals before the slow import of the commands."""
    if sys.platform == "win32":
        _refuse("the gateway and its commands need Linux or macOS; here is the client, ice-client")
    if sys.argv[1:2] == ["serve"]:
        from gateway.runtime.signals import signals  # noqa: PLC0415 - not on Windows

        signals.install()
    try:
        _import_structlog_alone()
        from gateway.cli import main as commands  # noqa: PLC0415 - a slow import

        commands()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS or package in sys.stdlib_module_names:
            raise
        if sys.argv[1:] == ["--version"]:
            sys.stdout.write(f"ice-gateway, version {__version__}\n")
            return
        _refuse(
            f"the gateway is not installed here, the client alone (no {package}):"
            " pip install 'ice-gateway[server]'"
        )


def _import_structlog_alone() -> None:
    """Import structlog without rich: it would load 70 of its modules (3 MiB) for tracebacks that we never show.

    The commands that draw on a terminal import rich themselves.
    """
    if "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment] # its import fails
        try:
            import structlog  # noqa: F401, PLC0415 - for later imports
        finally:
            del sys.modules["rich"]


def _refuse(reason: str) -> NoReturn:
    if sys.stderr is not None:  # closed
        sys.stderr.write(f"ice-gateway: {reason}\n")
    sys.exit(_EX_CONFIG)


if __name__ == "__main__":
    main()
