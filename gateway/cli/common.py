"""What the commands share: the settings, the database, and how errors end a command.

Tested in tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pwd
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from gateway.cli.admin_port import Refused
from gateway.cli.output import print_notice, refuse
from gateway.cli.parameters import FILE
from gateway.core.audit_event import Actor, Via
from gateway.core.problems import Problem
from gateway.core.text import printable
from gateway.core.times import utc_now
from gateway.runtime.setting_sources import load, misspelt_variables
from gateway.runtime.settings import AddressUnavailable, BadOption, BadSetting, Settings
from gateway.services.services import Services
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import Engine, StoreRefused, StoreRefusedForNow, StoreUnavailable
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.nodes import Nodes
from gateway.store.open import open_store

R = TypeVar("R")
FATAL_ERRORS: Final = (BadSetting, KeyFileUnusable, StoreRefused, StoreUnavailable)
"""Errors of settings, key file or database that end any command."""
_OPTIONS: Final = {
    "provisionedto": "--user:",
    "ice_name": "NAME",
    "ices.to": "--ices to:",
    "name_prefix": "--prefix:",
    "expires": "--expires-in:",
}
"""What an operator types for a field of the API."""


def exit_on_error(error: Exception) -> NoReturn:
    """Exit because of one of `FATAL_ERRORS`: status 1 if a retry may succeed, otherwise 78 (`EX_CONFIG`)."""
    temporary = isinstance(error, AddressUnavailable | StoreRefusedForNow | StoreUnavailable)
    refuse(str(error), 1 if temporary else os.EX_CONFIG)


def unwrap(value: R | Problem) -> R:
    """The result of a service call. Raises `Refused` if it is a problem."""
    if isinstance(value, Problem):
        raise Refused(value.code, value.detail)
    return value


def _exit_refused(code: str, detail: str) -> NoReturn:
    status = os.EX_CONFIG if code == "keys-unavailable" else 1
    # The operator typed an option, so the sentence names that and not the API's field.
    field, colon, reason = detail.partition(": ")
    if colon and field in _OPTIONS:
        detail = f"{_OPTIONS[field]} {reason}"
    refuse(detail, status)


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What a command works with. It acts on the database; a running gateway follows the event log."""

    settings: Settings
    engine: Engine
    services: Services
    actor: Actor

    @classmethod
    def of(cls, settings: Settings, engine: Engine) -> CommandContext:
        """The context of a command on an open database."""
        services = Services.of(
            settings,
            engine=engine,
            keys=KeyStore(settings.key_file),
            clock=utc_now,
            confirmer=Acknowledgements(Nodes(engine.fetch), utc_now),
        )
        return cls(settings, engine, services, current_actor())


@contextlib.asynccontextmanager
async def open_context(settings: Settings, *, create: bool = True) -> AsyncIterator[CommandContext]:
    """Open the database of the settings; `create` makes it if it does not exist."""
    async with open_store(settings.database_url, create=create, tell=print_notice) as engine:
        yield CommandContext.of(settings, engine)


def current_actor() -> Actor:
    """The operating-system user who runs the command."""
    try:
        login = pwd.getpwuid(os.getuid()).pw_name  # $USER could be forged
    except KeyError:  # the user id has no name
        login = str(os.getuid())
    return Actor(login, Via.COMMAND, printable(socket.gethostname()))


def settings_file(config: Path | None) -> Path | None:
    """The settings file, from `--config` or ICE_GATEWAY_CONFIG."""
    variable = os.environ.get("ICE_GATEWAY_CONFIG")
    return config or (Path(variable).absolute() if variable else None)


def read_settings(
    config: Path | None,
    options: Mapping[str, object],
    read: Callable[[Path | None, Mapping[str, str], Mapping[str, object]], R],
) -> R:
    """What `read` makes of the settings file, the environment and those options that were given.

    Raises `click.UsageError` for a bad option, and `BadSetting`.
    """
    given = {key: value for key, value in options.items() if value not in (None, ())}
    try:
        return read(settings_file(config), os.environ, given)
    except BadOption as error:
        raise click.UsageError(str(error)) from None


def warn_of_variables() -> None:
    """Warn of variables of the environment that somebody may take for settings."""
    for warning in misspelt_variables(os.environ):
        print_notice(f"warning: {warning}")


def settings_from(config: Path | None, options: Mapping[str, object]) -> Settings:
    """The settings from the file, the environment and the command's options; warns of misspelt variables."""
    warn_of_variables()
    try:
        return read_settings(config, options, load)
    except BadSetting as error:
        exit_on_error(error)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The gateway that `--url` or ICE_GATEWAY_URL names, and how to reach it; `typed` if by the option."""

    url: str
    typed: bool
    token_file: Path | None
    ca_file: Path | None
    insecure: bool


def elsewhere() -> Elsewhere | None:
    """The gateway elsewhere that the command is for, None if it is for a database."""
    found = click.get_current_context().find_root().obj
    return found if isinstance(found, Elsewhere) else None


def refuse_misplaced_url(reason: str = "this command works on a database") -> None:
    """End a command for which `--url` was typed as wrong usage. The variable may be set for other commands."""
    there = elsewhere()
    if there is not None and there.typed:
        raise click.UsageError(f"leave out --url: {reason}")


def only_on_a_database(config: Path | None, database: str | None) -> None:
    """Refuse `--url`, and say that ICE_GATEWAY_URL is ignored unless an option names the database."""
    refuse_misplaced_url()
    if elsewhere() is not None and config is None and database is None:
        print_notice(
            "ICE_GATEWAY_URL is ignored: this command works on a database, not over the API"
        )


def settings_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--config` and `--database`."""
    config = click.option(
        "--config",
        type=FILE,
        help="Settings file (or ICE_GATEWAY_CONFIG).",
    )
    database = click.option("--database", metavar="URL", help="Such as sqlite:///ice-gateway.db.")
    return config(database(command))


def with_settings(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--config` and `--database`, and pass the settings as the first argument."""

    @settings_options
    @functools.wraps(command)
    def wrapped(*, config: Path | None, database: str | None, **options: Any) -> R:
        only_on_a_database(config, database)
        return command(settings_from(config, {"database.url": database}), **options)

    return wrapped


def on_database(command: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., R]:
    """Pass a `CommandContext` to an async command; refuse to run without a database."""

    @with_settings
    @functools.wraps(command)
    def wrapped(settings: Settings, **options: Any) -> R:
        async def work() -> R:
            async with open_context(settings, create=False) as context:
                return await command(context, **options)

        return run(work())

    return wrapped


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run a command's work; an error of database, keys or settings is one line on stderr."""
    try:
        return asyncio.run(work)
    except FATAL_ERRORS as error:
        exit_on_error(error)
    except Refused as error:
        _exit_refused(error.code, str(error))
    except UnicodeEncodeError:  # Python decodes invalid arguments to surrogates
        refuse("an argument is not UTF-8")
