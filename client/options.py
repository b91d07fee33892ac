"""The options of `ice-client`: on the command line, in the environment, or in the settings file, in this order.

Tested in tests/client/test_client_cli.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from client.handlers import BadHandlers, settings_of

_F = TypeVar("_F", bound=Callable[..., Any])


def option(name: str, **how: Any) -> Callable[[_F], _F]:
    """An option that may also stand in the environment, as ICE_CLIENT_<NAME>."""
    variable = "ICE_CLIENT_" + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=variable, **how)


def _read_settings(context: click.Context, _: click.Parameter, file: Path | None) -> Path | None:
    """Take the options that stand in the settings file."""
    try:
        settings = settings_of(file)
    except BadHandlers as problem:
        click.echo(f"ice-client: {problem}", err=True)
        context.exit(1)
    found = {}
    for name in _IN_SETTINGS & settings.keys():
        value = settings[name]
        if isinstance(value, dict):  # a table is of a handler
            continue
        if not isinstance(value, bool if name == "insecure" else str):
            wanted = "true or false" if name == "insecure" else "a text"
            raise click.UsageError(f"{file}: {name} must be {wanted}")
        found[name] = value
    context.default_map = found
    return file


_IN_SETTINGS: Final = frozenset(
    {
        *("gateway", "token_file", "enrolment_key_file", "state_dir", "ca_file", "insecure"),
        *("handlers", "accepts"),
    }
)
"""The options that may stand in the settings file."""

folder_option = option(
    "--state-dir",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    help="The folder for the key and the token.  [default: the user's state folder]",
)
_gateway_options = [
    option(
        "--gateway",
        metavar="URL",
        help="https://host[:port][/prefix]  [default: that of the last run]",
    ),
    folder_option,
    option(
        "--ca-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Certificates (PEM) to trust besides the system's.",
    ),
    option("--insecure", is_flag=True, help="Allow plain http to another machine."),
    option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        callback=_read_settings,
        help="Options, and settings for the handlers (TOML).",
    ),
]


def reaches_gateway(command: _F) -> _F:
    """Add the options of commands that reach a gateway."""
    for add in reversed(_gateway_options):
        command = add(command)
    return command
