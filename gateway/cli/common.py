"""What the commands share: settings, the database, one-line errors, tables and JSON.

Tested in tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pwd
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import click
import msgspec

from client.protocol import JsonTooComplex, check_json
from gateway.cli.admin_port import Refused
from gateway.core.audit_event import Actor, Via
from gateway.core.json_input import check_syntax
from gateway.core.problems import Problem
from gateway.core.text import compact, decoded, pretty, printable
from gateway.core.times import utc_now
from gateway.runtime.setting_types import lifetime
from gateway.runtime.settings import (
    AddressUnavailable,
    BadOption,
    BadSetting,
    Settings,
    load,
    misspelt_variables,
)
from gateway.runtime.standard_streams import Unwritable, writing
from gateway.services.services import Services
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import Engine, StoreRefused, StoreRefusedForNow, StoreUnavailable
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.nodes import Nodes
from gateway.store.open import open_store

R = TypeVar("R")
_MAX_GROWTH: Final = 4
"""How many times as long as compact JSON the indented form may be."""
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


def refuse(reason: str, status: int = 1) -> NoReturn:
    """Print the reason on one line of stderr, and exit with this status."""
    print_notice(" ".join(reason.split()))
    sys.exit(status)


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
    refuse(printable(detail), status)


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


def print_notice(sentence: str) -> None:
    """Print a sentence for the operator on stderr; stdout is for the command's answer."""
    print_stderr(f"ice-gateway: {sentence}")


def print_stderr(line: str) -> None:
    """Print a line on stderr; an error while writing is ignored."""
    with contextlib.suppress(Unwritable), writing(sys.stderr):
        click.echo(line, err=True)


def print_output(text: str, *, done: str = "", remedy: str = "") -> None:
    """Print the command's answer on stdout; if that fails, exit with status 1.

    Args:
        text: the answer.
        done: what the command has done already, for the error; a sentence without a full stop.
        remedy: what the operator can do about the lost answer, likewise.
    """
    try:
        with writing(sys.stdout):
            click.echo(text)
    except Unwritable as error:
        before = f"{done}, but " if done else ""
        after = f"; {remedy}" if remedy else ""
        refuse(f"{before}the output could not be written to stdout: {error}{after}")


class AbsolutePath(click.Path):
    """A path that is absolute, so that a message that names it can be understood in any folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The absolute path; `-` stays."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        return path if self.allow_dash and str(path) == "-" else path.absolute()


FILE: Final = AbsolutePath(dir_okay=False)
FOLDER: Final = AbsolutePath(file_okay=False)


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


class Parsed(click.ParamType[R]):
    """An option's value that a function parses.

    `refusal` tells what is accepted where it raises ValueError; without it the error's own text does.
    """

    def __init__(self, name: str, parse: Callable[[str], R], refusal: str | None = None) -> None:
        self.name = name
        self._parse = parse
        self._refusal = refusal

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> R:
        """The parsed value of an argument, or of a default that was parsed before."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            refusal = str(error) if self._refusal is None else self._refusal.format(value)
            self.fail(refusal, param, ctx)


_AWARE: Final[Any] = Annotated[datetime, msgspec.Meta(tz=True)]
MOMENT: Final = Parsed[datetime](
    "time",
    functools.partial(msgspec.convert, type=_AWARE),
    "RFC 3339 with a zone, such as 2026-11-22T18:00:00Z",
)
"""A time with its zone."""


def duration_option(parse: Callable[[object], float], accepts: str) -> Parsed[float]:
    """The type of an option that is a duration such as 90d, in seconds, which `parse` bounds as `accepts` says."""
    return Parsed(
        "duration", parse, f"{{!r}} is not a number with s, m, h or d, such as 90d; {accepts}"
    )


DURATION: Final = duration_option(lifetime, "36500d at most")
"""A duration of at most a hundred years, in seconds."""


def _json(value: str) -> bytes:
    """JSON as bytes, from the argument itself, from @FILE, or from standard input with @-."""
    try:
        if value == "@-":
            text = sys.stdin.buffer.read()
        else:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
        text = decoded(text).strip().encode()
        check_syntax(text)
        check_json(text)
    except OSError as error:
        path = Path(value[1:]).absolute()
        raise click.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    except JsonTooComplex as error:
        raise click.BadParameter(str(error)) from None
    return text


JSON: Final = Parsed("JSON|@FILE", _json, "has to be JSON")
"""JSON as bytes."""


def label_changes(texts: Sequence[str], *, removals: bool = False) -> dict[str, str | None]:
    """The labels of arguments KEY=VALUE; with `removals` KEY- is None. Raises `click.UsageError`."""
    labels: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals and not (removals and key.endswith("-")):
            removing = ", KEY- removes one" if removals else ""
            raise click.UsageError(f"{text}: KEY=VALUE sets a label{removing}")
        key = key if equals else key.removesuffix("-")
        if key in labels:
            raise click.UsageError(f"the label {key} is named twice")
        labels[key] = value if equals else None
    return labels


json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's objects.")


def show_json(value: object, *, done: str = "") -> None:
    """Print JSON, indented unless that makes it much longer; `done` as for `print_output`."""
    encoded = msgspec.json.encode(value)
    text, complete = pretty(encoded, _MAX_GROWTH * len(encoded) + 10_000)
    print_output(text if complete else compact(encoded), done=done)


def show_list(
    documents: Sequence[Mapping[str, object]],
    headings: Sequence[str],
    *,
    as_json: bool,
    **cells: Callable[[Any], object],
) -> None:
    """Print documents as JSON, or as a table with a column for each member, which `cells` may show otherwise."""
    if as_json:
        show_json(documents)
        return
    rows = [
        [_cell(cells[name](value) if name in cells else value) for name, value in one.items()]
        for one in documents
    ]
    show_table(headings, rows)


def show_members(document: msgspec.Struct, **lines: Callable[[Any], str]) -> None:
    """Print a document, a line for each member, which `lines` may show otherwise than as text or JSON."""
    shown = []
    for name in document.__struct_fields__:
        value = getattr(document, name)
        if value and name in lines:
            value = lines[name](value)
        elif value and not isinstance(value, str):
            value = msgspec.json.encode(value).decode()
        shown.append(f"{name:<15}{printable(value or '-')}")
    print_output("\n".join(shown))


def _cell(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str | None]], *, done: str = ""
) -> None:
    """Print a table on a terminal, otherwise plain columns; `done` as for `print_output`.

    Characters that could control a terminal are escaped.
    """
    cells = [[printable(value or "-") for value in row] for row in rows]
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD)
        for heading in headings:
            table.add_column(heading)
        for row in cells:
            table.add_row(*(Text(value) for value in row))
        console = Console()
        with console.capture() as drawn:
            console.print(table, end="")
        print_output(drawn.get(), done=done)
        return
    lines = [list(headings), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print_output(
        "\n".join(
            "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
            for row in lines
        ),
        done=done,
    )
