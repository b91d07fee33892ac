"""What a database engine promises: consistent reads, grouped transactions, news of commits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog

from gateway.core.audit_event import Event

_log = structlog.get_logger()

T = TypeVar("T")
Row = tuple[Any, ...]


class StoreUnavailable(Exception):
    """The database cannot be read or written now; the text says why, for an operator.

    What was asked for is not done, and never will be.
    """


class StoreLocked(StoreUnavailable):
    """Another process held the database for as long as anybody would wait."""


class Undecodable(StoreUnavailable):
    """A row holds text that is no text: nobody wrote it through a gateway."""


class OutcomeUnknown(StoreUnavailable):
    """A commit failed so late that nobody can tell whether it will be found done."""


def damaged(what: str, error: Exception) -> StoreUnavailable:
    """What to raise where a row cannot be what was written: our own rows always can be read."""
    return StoreUnavailable(
        f"{what} is damaged ({error}): stop the gateway, restore a backup, start it again"
    )


class StoreRefused(Exception):
    """The database cannot be used at all (newer, foreign, served already); the text says why."""


class StoreRefusedForNow(StoreRefused):
    """It is held by another process, or its server is no primary yet: that may pass by itself."""


class Appended:
    """An event that goes into the log with its transaction; `seq` is there once that is committed."""

    __slots__ = ("event", "seq")

    seq: int

    def __init__(self, event: Event) -> None:
        self.event = event


class Transaction(Protocol):
    """A running transaction. Parameters are numbered `$1`, `$2` in the text."""

    appended: list[Appended]
    """What it logs. The engine numbers it at the very end, when nothing else is left to do."""

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query."""

    async def hold(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query on one table, which nobody else changes before this transaction ends."""

    async def run(self, sql: str, *params: object) -> int:
        """Run a statement; returns how many rows it changed."""


Unit = Callable[[Transaction], Awaitable[T]]
"""A piece of work for one transaction. It may be run again if the group it was in had to be undone."""


Fetch = Callable[..., Awaitable[list[Row]]]
"""One of an engine's ways to read: SQL, then its parameters."""

Tell = Callable[[str], None]
"""Is told in a sentence what an operator should know."""


def log(sentence: str) -> None:
    """Tell it in the log."""
    _log.warning(sentence)


class Engine(Protocol):
    """A database. Every method raises `StoreUnavailable`."""

    name: str
    """What an operator knows it by: a file, or a URL without its password."""

    shared: bool
    """Whether several gateways may serve it at a time: PostgreSQL, and never an SQLite file."""

    changed: asyncio.Event
    """Set after each commit of this process; a wake-up for the tail, which carries nothing that counts."""

    @property
    def fault(self) -> str | None:
        """Why nothing can be written, for an operator; None as long as it can."""

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query, from one snapshot."""

    async def look_up(self, sql: str, *params: object) -> list[Row]:
        """Like `fetch`, on a connection that runs nothing but the look-ups of admissions."""

    async def follow(self, sql: str, *params: object) -> list[Row]:
        """Like `fetch`, for the tail of the event log alone: no listing keeps a drop waiting."""

    def gather(self, key: str, columns: Iterable[str]) -> str:
        """SQL that makes one JSON object of all rows: by `key`, an object of their `columns`."""

    async def write(self, unit: Unit[T]) -> T:
        """Run `unit` in a transaction, durable when this returns; units that wait are grouped."""

    async def has_changed(self) -> bool:
        """Whether anybody has committed since this was last asked."""

    async def try_out(self) -> None:
        """Write something that changes nothing, so that `fault` is true; never raises."""

    async def is_served(self) -> bool:
        """Whether a gateway runs on it now."""

    def condemn(self, reason: str) -> None:
        """Refuse everything from now on: what the database holds is not to be trusted."""

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""


def many(column: str, number: int) -> str:
    """SQL for `column`, a text, being among the JSON list of parameter `number`."""
    return f"{column} IN (SELECT atom FROM json_each(${number}))"


_KINDS: Final = {"#": "BIGINT", "~": "DOUBLE PRECISION"}


def rows_of(number: int, *columns: str) -> str:
    """SQL for the rows of the JSON list of lists in parameter `number`, as `columns`.

    A column is text, or an integer where a `#` stands before its name, a float where a `~` does. One statement for many rows: to
    run it for each of them is a hop between threads, or a journey to a server, for each.
    """
    values = []
    for place, column in enumerate(columns):
        value = f"json_extract(value, '$[{place}]')"
        kind = _KINDS.get(column[0])
        values.append(
            f"{value} AS {column}" if kind is None else f"CAST({value} AS {kind}) AS {column[1:]}"
        )
    return f"(SELECT {', '.join(values)} FROM json_each(${number})) AS given"


def as_json(rows: Sequence[object]) -> str:
    """A parameter for `many` or `rows_of`."""
    return msgspec.json.encode(rows).decode()


def containing(text: str) -> str:
    """The LIKE pattern (with backslash for ESCAPE) that finds `text` as it stands."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
