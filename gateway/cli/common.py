"""What the commands share: settings, the database, refusals on one line, tables and JSON."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pwd
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import msgspec

from gateway.core.audit_event import Actor, Via
from gateway.core.ice import Ice
from gateway.core.problems import Problem, problem
from gateway.core.text import compact, pretty, printable
from gateway.core.times import utc_now
from gateway.runtime.settings import AddressUnavailable, BadSetting, Settings, load
from gateway.runtime.standard_streams import Unwritable, writing
from gateway.services.services import Services
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import Engine, StoreRefused, StoreRefusedForNow, StoreUnavailable
from gateway.store.ices import Ices
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.nodes import Nodes
from gateway.store.open import open_store

R = TypeVar("R")
_MAX_GROWTH: Final = 4
FAULTS: Final = (BadSetting, KeyFileUnusable, StoreRefused, StoreUnavailable)
"""Why nothing can be done with these settings, or not now."""
MUST_MEND: Final = 78
"""Exit status where a person must mend a setting or a file first: `EX_CONFIG` of sysexits.h."""


def refuse(reason: str, status: int = 1) -> NoReturn:
    """End with this status and the reason on one line of stderr."""
    tell(" ".join(reason.split()))
    sys.exit(status)


def fail(fault: Exception) -> NoReturn:
    """End because of one of `FAULTS`: status 1 where it may pass by itself, else 78."""
    may_pass = isinstance(fault, AddressUnavailable | StoreRefusedForNow | StoreUnavailable)
    refuse(str(fault), 1 if may_pass else MUST_MEND)


def unwrap(value: R | Problem) -> R:
    """A use case's result; a problem ends the command."""
    if isinstance(value, Problem):
        status = MUST_MEND if value.code == "keys-unavailable" else 1
        # A person who typed an option is told of that, not of the API's field.
        said = value.detail.replace("provisionedto: ", "--user: ").replace("ice_name: ", "NAME ")
        refuse(said, status)
    return value


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with, on the database itself; a running gateway follows the event log."""

    settings: Settings
    engine: Engine
    services: Services
    actor: Actor

    async def ice(self, name: str) -> Ice:
        """The entry of this name; the command ends where there is none."""
        listed = await Ices(self.engine).find(name)
        return unwrap(problem("not-registered") if listed is None else listed.ice)


@contextlib.asynccontextmanager
async def desk(settings: Settings, *, create: bool = True) -> AsyncIterator[Desk]:
    """Open the database that the settings name; `create` makes it where there is none."""
    async with open_store(settings.database_url, create=create, tell=tell) as engine:
        services = Services.of(
            settings,
            engine=engine,
            keys=KeyStore(settings.key_file),
            clock=utc_now,
            confirmer=Acknowledgements(Nodes(engine.fetch), utc_now),
        )
        yield Desk(settings, engine, services, who())


def who() -> Actor:
    """Who runs the command, by the system's word: the environment's is anybody's."""
    try:
        login = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without a name
        login = str(os.getuid())
    return Actor(login, Via.COMMAND, printable(socket.gethostname()))


def tell(sentence: str) -> None:
    """A line for the operator on stderr; stdout is the command's answer."""
    note(f"ice-gateway: {sentence}")


def note(line: str) -> None:
    """A line on stderr as it is. One that cannot be written stops nothing."""
    with contextlib.suppress(Unwritable), writing(sys.stderr):
        click.echo(line, err=True)


def say(text: str, *, done: str = "", remedy: str = "") -> None:
    """Print the command's answer on stdout. It ends with status 1 where that cannot be written.

    Args:
        text: what is printed.
        done: what has been done all the same, as a sentence without its end.
        remedy: what the operator can do about the loss, likewise.
    """
    try:
        with writing(sys.stdout):
            click.echo(text)
    except Unwritable as error:
        before = f"{done}, but " if done else ""
        after = f"; {remedy}" if remedy else ""
        refuse(f"{before}the output could not be written to stdout: {error}{after}")


def settings_file(config: Path | None) -> Path | None:
    """The file of `--config` or ICE_GATEWAY_CONFIG."""
    named = os.environ.get("ICE_GATEWAY_CONFIG")
    return config or (Path(named) if named else None)


def settings_from(config: Path | None, options: dict[str, object]) -> Settings:
    """The settings of the file, the environment, and the options given."""
    given = {key: value for key, value in options.items() if value not in (None, ())}
    try:
        return load(settings_file(config), os.environ, given)
    except BadSetting as error:
        fail(error)


def settings_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--config` and `--database`."""
    config = click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Settings file (or ICE_GATEWAY_CONFIG).",
    )
    database = click.option("--database", metavar="URL", help="Such as sqlite:///ice-gateway.db.")
    return config(database(command))


def with_settings(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--config` and `--database`, and pass the settings as the first argument."""

    @settings_options
    @functools.wraps(command)
    def wrapped(*, config: Path | None, database: str | None, **options: Any) -> R:
        return command(settings_from(config, {"database.url": database}), **options)

    return wrapped


def on_database(command: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., R]:
    """Run an async command at a `Desk` on the database, which is not made where there is none."""
    return _at_desk(command, create=False)


def on_new_database(command: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., R]:
    """Likewise, for a command that may be the first: it makes the database where there is none."""
    return _at_desk(command, create=True)


def _at_desk(command: Callable[..., Coroutine[Any, Any, R]], *, create: bool) -> Callable[..., R]:
    @with_settings
    @functools.wraps(command)
    def wrapped(settings: Settings, **options: Any) -> R:
        async def work() -> R:
            async with desk(settings, create=create) as opened:
                return await command(opened, **options)

        return run(work())

    return wrapped


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run a command's work; a fault of database, keys or settings is one line."""
    try:
        return asyncio.run(work)
    except FAULTS as error:
        fail(error)
    except UnicodeEncodeError:  # what the terminal sent came in as surrogates
        refuse("an argument is not UTF-8")


json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's objects.")


def show_json(value: object, *, done: str = "") -> None:
    """Print JSON, indented unless that made it several times as long; `done` as for `say`."""
    encoded = msgspec.json.encode(value)
    text, complete = pretty(encoded, _MAX_GROWTH * len(encoded) + 10_000)
    say(text if complete else compact(encoded), done=done)


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str | None]], *, done: str = ""
) -> None:
    """Print columns; a terminal sees a table, a pipe plain text parted by blanks. `done` as for `say`."""
    cells = [[value or "-" for value in row] for row in rows]
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
        say(drawn.get(), done=done)
        return
    lines = [list(headings), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    say(
        "\n".join(
            "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
            for row in lines
        ),
        done=done,
    )
