"""The options of `ice-client`: on the command line, in the environment, or in the settings file, in this order.

Tested in tests/client/test_client_options.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from client.handlers import BadHandlers, settings_of

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Key:
    """An option as a key of the settings file."""

    is_flag: bool
    is_path: Callable[[str], bool]

    def read(self, name: str, value: object, file: Path) -> str | bool:
        """The value of the option `name`; a relative path counts from the folder of the file.

        Raises `click.UsageError`.
        """
        if not isinstance(value, bool if self.is_flag else str):
            wanted = "true or false" if self.is_flag else "a text"
            raise click.UsageError(f"{file}: {name} must be {wanted}")
        if isinstance(value, str) and "\0" in value:  # no path may hold it, and no other value does
            raise click.UsageError(f"{file}: {name} holds a NUL character")
        if isinstance(value, str) and self.is_path(value):
            try:
                return str(file.absolute().parent / Path(value).expanduser())
            except RuntimeError as error:
                raise click.UsageError(f"{file}: {name}: {error}") from None
        return value


_KEYS: Final[dict[str, _Key]] = {}
"""The keys of the settings file, by name."""


def option(
    name: str, *names: str, path: Callable[[str], bool] = lambda _: False, **how: Any
) -> Callable[[_F], _F]:
    """An option that may also stand in the environment, as ICE_CLIENT_<NAME>, and in the settings file.

    Args:
        name: such as `--state-dir`.
        names: the name of its parameter, if that is another one.
        path: whether a value of this option is a path.
        how: as for `click.option`.
    """
    key = _key(name)
    _KEYS[key] = _Key(how.get("is_flag", False), path)
    return click.option(name, *names, envvar=_variable(key), **how)


def _key(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _variable(key: str) -> str:
    return f"ICE_CLIENT_{key.upper()}"


def _read_settings(context: click.Context, _: click.Parameter, file: Path | None) -> Path | None:
    """Take the options that stand in the settings file."""
    try:
        settings = settings_of(file)
    except BadHandlers as problem:
        click.echo(f"ice-client: {problem}", err=True)
        context.exit(1)
    if file is not None:
        context.default_map = _defaults(context.command, settings, file)
    return file


def _defaults(
    command: click.Command, settings: Mapping[str, Any], file: Path
) -> dict[str, str | bool]:
    """The values of this command's parameters. Raises `click.UsageError`.

    One file may serve several commands: the options of others are checked, and left alone.
    """
    parameters = {_key(name): item.name for item in command.params for name in item.opts}
    found: dict[str, str | bool] = {}
    for name, given in settings.items():
        if _is_table(given):
            continue
        key = _KEYS.get(name)
        if key is None:
            raise click.UsageError(
                f"{file}: there is no setting {name}; there are {', '.join(sorted(_KEYS))}."
                " Settings of handlers stand in tables of their own."
            )
        value = key.read(name, given, file)
        parameter = parameters.get(name)
        if parameter is not None:
            found[parameter] = value
    return found


def _is_table(value: object) -> bool:
    """Whether it is a table or an array of tables, which are for handlers."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    )


def is_file(value: str) -> bool:
    """Whether it is a path, and not standard input."""
    return value != "-"


_folder_option = option(
    "--state-dir",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    path=is_file,
    help="The folder for the key and the token.  [default: the user's state folder]",
)


def _config_option(**how: Any) -> Callable[[_F], _F]:
    return click.option(
        "--config",
        envvar=_variable("config"),
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        callback=_read_settings,
        help="Options, and settings for the handlers (TOML).",
        **how,
    )


_gateway_options = [
    option(
        "--gateway",
        metavar="URL",
        help="https://host[:port][/prefix]  [default: that of the last run]",
    ),
    _folder_option,
    option(
        "--ca-file",
        type=click.Path(dir_okay=False, path_type=Path),
        path=is_file,
        help="Certificates (PEM) to trust besides the system's.",
    ),
    option("--insecure", is_flag=True, help="Allow plain http to another machine."),
    option(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        path=is_file,
        help="Write everything that is printed also to this file, which is rotated.",
    ),
    _config_option(),
]


def reaches_gateway(command: _F) -> _F:
    """Add the options of commands that reach a gateway."""
    for add in reversed(_gateway_options):
        command = add(command)
    return command


def uses_folder(command: _F) -> _F:
    """Add the options of commands that use the state folder alone."""
    return _folder_option(_config_option(expose_value=False)(command))
