"""SQL of the audit log `ice_events`: appended in the transaction of the change, read in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from gateway.core.audit_event import (
    COLUMNS,
    GENESIS,
    Actor,
    AuditAction,
    Event,
    LogEntry,
    Position,
    Via,
    digest_of,
)
from gateway.core.hash_chain import Head
from gateway.core.times import from_text, to_text, to_text_or_none
from gateway.store.engine import (
    AppendedEvent,
    Fetch,
    Row,
    Transaction,
    as_json,
    conditions,
    damaged,
    rows_of,
)

_COLUMNS: Final = ", ".join(COLUMNS)
_INTEGERS: Final = ("seq", "generation")
FEW: Final = 5_000
"""Events that are sorted within 10 ms."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list; None stands for all."""

    ice_name: str | None = None
    actor: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def append(transaction: Transaction, events: Sequence[Event]) -> list[AppendedEvent]:
    """Log `events` with this transaction; their numbers are known once it is committed."""
    appended = [AppendedEvent(event) for event in events]
    transaction.appended += appended
    return appended


async def number(transaction: Transaction) -> Head | None:
    """Write the events of the transaction, numbered and chained, as its last step before the commit.

    For an engine on which no other transaction writes at the same time. Returns the newest event; None if there
    is none.
    """
    if not transaction.appended:
        return None
    end = await Events(transaction.fetch).end()
    seq, digest = end.seq, end.digest
    rows = []
    for appended in transaction.appended:
        seq += 1
        row = LogEntry(seq, appended.event, digest).columns()
        digest = digest_of(row)
        rows.append(row)
        appended.seq = seq
    given = rows_of(1, *(f"#{name}" if name in _INTEGERS else name for name in COLUMNS))
    # A trigger of the table refuses a number that is not the next one.
    await transaction.run(
        f"INSERT INTO ice_events ({_COLUMNS}) SELECT {_COLUMNS} FROM {given}",
        as_json(rows),
    )
    return Head(seq, digest)


def hashed_part(event: Event) -> str:
    """The text that `LogEntry.digest` hashes between the number of an event and the digest before it."""
    columns = LogEntry(0, event, "").columns()[1:-1]
    return msgspec.json.encode(columns)[1:-1].decode()


async def prune(transaction: Transaction, seq: int) -> int:
    """Delete the events up to `seq`; returns how many. A trigger refuses events that no checkpoint covers."""
    return await transaction.run("DELETE FROM ice_events WHERE seq <= $1", seq)


class Events:
    """Reads the log by `fetch`; `few` events are sorted rather than searched for by their numbers."""

    def __init__(self, fetch: Fetch, few: int = FEW) -> None:
        self._fetch = fetch
        self._few = few

    async def last(self) -> int:
        """The number of the newest event, 0 if there is none."""
        [(seq,)] = await self._fetch("SELECT coalesce(max(seq), 0) FROM ice_events")
        return int(seq)

    async def end(self) -> Position:
        """The position after the newest event."""
        rows = await self._fetch(f"SELECT {_COLUMNS} FROM ice_events ORDER BY seq DESC LIMIT 1")
        return Position.after(_from_row(rows[0])) if rows else Position(0, GENESIS)

    async def first(self) -> int:
        """The number of the oldest event that was not pruned, 0 if there is none."""
        [(seq,)] = await self._fetch("SELECT coalesce(min(seq), 0) FROM ice_events")
        return int(seq)

    async def next_after(self, seq: int) -> int:
        """The number of the first event after `seq`, 0 if there is none."""
        [(found,)] = await self._fetch(
            "SELECT coalesce(min(seq), 0) FROM ice_events WHERE seq > $1", seq
        )
        return int(found)

    async def before_time(self, moment: datetime) -> int:
        """The number up to which all events are older than `moment`, 0 if there is none."""
        [(seq,)] = await self._fetch(
            "SELECT coalesce((SELECT min(seq) - 1 FROM ice_events WHERE at >= $1),"
            " (SELECT max(seq) FROM ice_events), 0)",
            to_text(moment),
        )
        return int(seq)

    async def rows_after(self, seq: int, limit: int) -> list[Row]:
        """The stored rows after number `seq`, with `audit_event.COLUMNS`."""
        return await self._fetch(
            f"SELECT {_COLUMNS} FROM ice_events WHERE seq > $1 ORDER BY seq LIMIT $2", seq, limit
        )

    async def generations(self, after: str, limit: int) -> list[tuple[str, int, int | None]]:
        """ICEs after the folded name `after`: name, generation, and the highest generation in the log, if any.

        One snapshot has both.
        """
        rows = await self._fetch(
            "SELECT ice_name, generation, (SELECT max(generation) FROM ice_events"
            " WHERE lower(ice_events.ice_name) = lower(ice_tokens.ice_name))"
            " FROM ice_tokens WHERE lower(ice_name) > $1 ORDER BY lower(ice_name) LIMIT $2",
            after,
            limit,
        )
        return [(ice_name, generation, logged) for ice_name, generation, logged in rows]

    async def lacks_all(self) -> bool:
        """Whether there are users but no event: adding a user logs one."""
        [(lacking,)] = await self._fetch(
            "SELECT EXISTS (SELECT 1 FROM users) AND NOT EXISTS (SELECT 1 FROM ice_events)"
        )
        return bool(lacking)

    async def details(self, action: str) -> list[str]:
        """The stored details of all events of an action, oldest first."""
        rows = await self._fetch(
            "SELECT detail FROM ice_events WHERE action = $1 ORDER BY seq", action
        )
        return [detail for (detail,) in rows]

    async def failed_logins(self, after: datetime, until: datetime) -> list[str]:
        """The users of the failed logins after `after`, up to `until`."""
        rows = await self._fetch(
            # A literal, since the partial index matches no parameter.
            f"SELECT detail FROM ice_events WHERE action = '{AuditAction.LOGIN_FAILED}' AND at > $1 AND at <= $2",
            to_text(after),
            to_text(until),
        )
        try:
            return [msgspec.json.decode(detail)["user"] for (detail,) in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise damaged("a failed login in the audit log", error) from error

    async def last_of(self, ice_name: str, limit: int) -> list[LogEntry]:
        """The newest events of an ICE (case folded), newest first."""
        return await self._entries(
            "lower(ice_name) = $1 ORDER BY seq DESC LIMIT $2", ice_name.lower(), limit
        )

    async def after(self, seq: int, limit: int, where: EventFilter | None = None) -> list[LogEntry]:
        """The events numbered above `seq`, oldest first."""
        params: list[object] = [seq, limit]
        where = where or EventFilter()
        number, matching = await self._number(where), _conditions(where, params)
        return await self._entries(
            f"{number} > $1 AND {matching} ORDER BY {number} LIMIT $2", *params
        )

    async def before(self, seq: int, limit: int, where: EventFilter) -> list[LogEntry]:
        """The events numbered below `seq`, newest first."""
        params: list[object] = [seq, limit]
        number, matching = await self._number(where), _conditions(where, params)
        return await self._entries(
            f"{number} < $1 AND {matching} ORDER BY {number} DESC LIMIT $2", *params
        )

    async def _number(self, where: EventFilter) -> str:
        """SQL for the number: without its index if only few events are of the time asked for.

        Those few are then found by the time and sorted; by number the log might be read to its end for them.
        """
        if where.since is None and where.until is None:
            return "seq"
        params: list[object] = [self._few + 1]
        matching = _conditions(EventFilter(since=where.since, until=where.until), params)
        [(count,)] = await self._fetch(
            f"SELECT count(*) FROM (SELECT 1 FROM ice_events WHERE {matching} LIMIT $1) AS found",
            *params,
        )
        return "+seq" if count <= self._few else "seq"

    async def _entries(self, which: str, *params: object) -> list[LogEntry]:
        rows = await self._fetch(f"SELECT {_COLUMNS} FROM ice_events WHERE {which}", *params)
        return [_from_row(row) for row in rows]


def _conditions(where: EventFilter, params: list[object]) -> str:
    """SQL for the filter; its parameters are added to `params`."""
    return conditions(
        params,
        ("lower(ice_name) = {0}", where.ice_name and where.ice_name.lower()),
        ("actor = {0}", where.actor),
        ("action = {0}", where.action),
        ("at >= {0}", to_text_or_none(where.since)),
        ("at < {0}", to_text_or_none(where.until)),
    )


def _from_row(row: Row) -> LogEntry:
    seq, at, actor, via, address, action, ice_name, generation, detail, previous = row
    try:
        return LogEntry(
            seq,
            Event(
                from_text(at),
                Actor(actor, Via(via), address),
                action,
                ice_name,
                generation,
                msgspec.json.decode(detail),
            ),
            previous,
        )
    except (ValueError, TypeError) as error:
        raise damaged(f"event {seq} of the audit log", error) from error
