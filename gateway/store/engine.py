"""The interface of a database engine: consistent reads, grouped transactions, notice of commits.

Tested in tests/contract/test_group_commit.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import msgspec
import structlog

from gateway.core.audit_event import Event
from gateway.core.text import printable_line
from gateway.core.times import to_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_log = structlog.get_logger()

A = TypeVar("A")
T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")
Row = tuple[Any, ...]


class StoreUnavailable(Exception):
    """The database cannot be read or written now; the text tells an operator why.

    The change was not made and will not be made later.
    """


class StoreLocked(StoreUnavailable):
    """Another process held the database for longer than the timeout."""


class Undecodable(StoreUnavailable):
    """A row holds bytes that are not UTF-8: no gateway wrote it."""


class Damaged(StoreUnavailable):
    """A row cannot be decoded: no gateway wrote it."""


class OutcomeUnknown(StoreUnavailable):
    """A commit failed, and the change may have been made or not."""


def damaged(what: str, error: Exception) -> Damaged:
    """The error for a row that cannot be decoded."""
    return Damaged(
        f"{what} is damaged ({printable_line(str(error))}): stop the gateway, restore a backup, start it again"
    )


class StoreRefused(Exception):
    """The database cannot be used at all (newer, foreign, served already); the text says why."""


class StoreRefusedForNow(StoreRefused):
    """Another process holds it, or its server is not the primary yet: this may pass by itself."""


class AppendedEvent:
    """An event that is logged with a transaction; `seq` is set once that is committed."""

    __slots__ = ("event", "seq")

    seq: int

    def __init__(self, event: Event) -> None:
        self.event = event


class Transaction(Protocol):
    """A running transaction. Parameters are numbered `$1`, `$2` in the text."""

    appended: list[AppendedEvent]
    """The events to log. The engine numbers them last, so that it holds the lock of the log only briefly."""

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query."""

    async def hold(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query on one table, locked until this transaction ends."""

    async def lock(self, sql: str, *params: object) -> None:
        """Like `hold`, for a caller that does not need the rows."""

    async def run(self, sql: str, *params: object) -> int:
        """Run a statement; returns how many rows it changed."""


Unit = Callable[[Transaction], Awaitable[T]]
"""Work for one transaction. It may run again if its group was rolled back.

It awaits nothing but its transaction, and leaves alone what belongs to the loop: SQLite runs it in a thread.
"""


class Part(Generic[A, T]):
    """A unit that is done together with the others of its `work` in the transaction.

    `work` gets the `item` of each, in order, and returns a result for each. As a unit, it may run again, also with
    fewer items: if it fails for several, each is tried alone.
    """

    __slots__ = ("item", "work")

    def __init__(self, work: Callable[[Transaction, list[A]], Awaitable[list[T]]], item: A) -> None:
        self.work = work
        self.item = item

    async def __call__(self, transaction: Transaction) -> T:
        """Do it alone."""
        [result] = await self.work(transaction, [self.item])
        return result


Fetch = Callable[..., Awaitable[list[Row]]]
"""A method of an engine that reads: it takes SQL, then its parameters."""

Tell = Callable[[str], None]
"""Called with a sentence for the operator."""


def log(sentence: str) -> None:
    """Log a sentence for the operator as a warning."""
    _log.warning(sentence)


class Engine(Protocol):
    """A database. Every method raises `StoreUnavailable`."""

    name: str
    """Its name for an operator: a path, or a URL without its password."""

    shared: bool
    """Whether several gateways may serve it at a time: True for PostgreSQL, False for an SQLite file."""

    changed: asyncio.Event
    """Set after each commit of this process, and soon after one of another process, to wake the log follower."""

    @property
    def fault(self) -> str | None:
        """Why writes fail, for an operator; None while they succeed."""

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """The rows of a query, from one snapshot."""

    async def look_up(self, sql: str, *params: object) -> list[Row]:
        """Like `fetch`, on a connection for the look-ups of admissions only."""

    async def follow(self, sql: str, *params: object) -> list[Row]:
        """Like `fetch`, on a connection for the log follower only, so that no listing delays a drop."""

    def gather(self, key: str, columns: Iterable[str]) -> str:
        """SQL that makes one JSON object of all rows: for each `key` an object of the `columns`."""

    async def write(self, unit: Unit[T]) -> T:
        """Run `unit` in a transaction, durable when this returns; units that wait are grouped."""

    async def has_changed(self) -> bool:
        """Whether any process has committed since the last call."""

    async def try_out(self) -> None:
        """Commit a write that changes nothing, to update `fault`; never raises."""

    async def is_served(self) -> bool:
        """Whether a gateway serves it now."""

    def condemn(self, reason: str) -> None:
        """Refuse all reads and writes from now on: the contents are not to be trusted."""

    async def close(self) -> None:
        """Finish the running writes and close the database."""


LEASE_CLOCK: Final = "(SELECT lease_clock())"
"""SQL for the clock that all nodes share. A statement reads it once: without SELECT it would for each row."""


def is_in(column: str, number: int) -> str:
    """SQL for: the text `column` is in the JSON list of parameter `number`."""
    return f"{column} IN (SELECT atom FROM json_each(${number}))"


_NUL: Final = rb"\u0000"
_KINDS: Final = {"#": "BIGINT", "~": "DOUBLE PRECISION"}


def rows_of(number: int, *columns: str) -> str:
    """SQL for the rows of the JSON list of lists in parameter `number`, as `columns`.

    A column holds text; a `#` before its name makes it an integer, a `~` a float. One statement for many rows
    saves a call of SQLite, or a round trip to PostgreSQL, for each row.
    """
    values = []
    for place, column in enumerate(columns):
        value = f"json_extract(value, '$[{place}]')"
        kind = _KINDS.get(column[0])
        values.append(
            f"{value} AS {column}" if kind is None else f"CAST({value} AS {kind}) AS {column[1:]}"
        )
    return f"(SELECT {', '.join(values)} FROM json_each(${number})) AS given"


def conditions(params: list[object], *wanted: tuple[str, object]) -> str:
    """SQL for the conditions whose value is not None. A value is added to `params`; `{0}` is its number."""
    found = ["TRUE"]
    for condition, value in wanted:
        if value is not None:
            params.append(value)
            found.append(condition.format(f"${len(params)}"))
    return " AND ".join(found)


def columns_of(item: object, names: Iterable[str]) -> Row:
    """The attributes of these names as a row stores them."""
    values = [getattr(item, name) for name in names]
    # Nearly every value is a text or None.
    return tuple([one if one is None or type(one) is str else _stored(one) for one in values])


def _stored(value: object) -> object:
    if isinstance(value, datetime):
        return to_text(value)
    if isinstance(value, bool):
        return int(value)
    return value.decode() if isinstance(value, bytes) else value


def from_columns(kind: type[D], row: Sequence[object], what: str) -> D:
    """The dataclass whose fields a row stores, in their order.

    Raises `StoreUnavailable` for a damaged row, which the error calls `what`.
    """
    try:
        return msgspec.convert(dict(zip(kind.__dataclass_fields__, row, strict=True)), kind)
    except msgspec.ValidationError as error:
        raise damaged(what, error) from error


async def begin(transaction: Transaction) -> None:
    """Begin a transaction now; one of SQLite begins, and keeps other writers out, with its first statement."""
    await transaction.fetch("SELECT 1")


def places(number: int) -> str:
    """SQL for the first parameters."""
    return ", ".join(f"${place}" for place in range(1, number + 1))


def as_json(rows: Sequence[object]) -> str:
    """A parameter for `is_in` or `rows_of`, without NUL: PostgreSQL accepts none, and no stored text holds one."""
    encoded = msgspec.json.encode(rows)
    if _NUL in encoded:  # or a backslash that is escaped, and u0000
        encoded = msgspec.json.encode(_without_nul(msgspec.to_builtins(rows)))
    return encoded.decode()


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value


def containing(text: str) -> str:
    """The LIKE pattern (with backslash for ESCAPE) that finds `text` literally."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    # SQLite ends a pattern at a NUL, and so would find everything; what is stored has none.
    return f"%{escaped.replace(chr(0), chr(0xFFFD))}%"
