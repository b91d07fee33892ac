"""What a database engine promises: consistent reads, grouped transactions, news of commits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

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


class Transaction(Protocol):
    """A running transaction. Parameters are numbered `$1`, `$2` in the text."""

    memo: dict[str, Any]
    """What a noun remembers within this transaction, such as the head of the event log."""

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query."""

    async def run(self, sql: str, *params: object) -> int:
        """Run a statement; returns how many rows it changed."""

    async def run_many(self, sql: str, params: Sequence[Sequence[object]]) -> int:
        """Run a statement once per row of `params`; returns how many rows were changed in all."""


Unit = Callable[[Transaction], Awaitable[T]]
"""A piece of work for one transaction. It may be run again if the group it was in had to be undone."""


Fetch = Callable[..., Awaitable[list[Row]]]
"""One of an engine's ways to read: SQL, then its parameters."""


class Engine(Protocol):
    """A database. Every method raises `StoreUnavailable`."""

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

    async def write(self, unit: Unit[T]) -> T:
        """Run `unit` in a transaction, durable when this returns; units that wait are grouped."""

    async def has_changed(self) -> bool:
        """Whether anybody has committed since this was last asked."""

    async def try_out(self) -> None:
        """Write something that changes nothing, so that `fault` is true; never raises."""

    def condemn(self, reason: str) -> None:
        """Refuse everything from now on: what the database holds is not to be trusted."""

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""


def many(column: str, number: int) -> str:
    """SQL for `column` being among the JSON list of parameter `number`."""
    return f"{column} IN (SELECT value FROM json_each(${number}))"


def rows_of(number: int, *columns: str) -> str:
    """SQL for the rows of the JSON list of lists in parameter `number`, as `columns`.

    One statement for many rows: to run it for each of them is a hop between threads for each.
    """
    values = ", ".join(
        f"json_extract(value, '$[{place}]') AS {name}" for place, name in enumerate(columns)
    )
    return f"(SELECT {values} FROM json_each(${number})) AS given"


def containing(text: str) -> str:
    """The LIKE pattern (with backslash for ESCAPE) that finds `text` as it stands."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
