"""SQL of `ice_schedules` and `ice_schedule_occurrences`.

Who changes a schedule locks its ICE or pool first, then the schedule, so that two transactions never wait for each
other.

Tested in tests/contract/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.audit_event import Via
from gateway.core.ice import fold
from gateway.core.schedule import Occurrence, Schedule
from gateway.core.times import from_text_or_none, to_text, to_text_or_none
from gateway.store.engine import (
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    conditions,
    containing,
    from_columns,
    is_in,
    places,
    rows_of,
)
from gateway.store.operations import OF_USER, fitting
from gateway.store.pauses import paused

KEPT: Final = 1000
"""Occurrences of a schedule that are kept."""
_NAMES: Final = tuple(Schedule.__dataclass_fields__)
_COLUMNS: Final = ", ".join(_NAMES)
_BRIEF: Final = _COLUMNS.replace("params", "'null'")
_BY_ID: Final = f"SELECT {_COLUMNS} FROM ice_schedules WHERE id = $1"
_CHANGED: Final = tuple(name for name in _NAMES if name not in ("id", "ice_name", "pool"))
_OCCURRENCE_NAMES: Final = tuple(Occurrence.__dataclass_fields__)
_OCCURRENCE: Final = ", ".join(_OCCURRENCE_NAMES)
_FOUND: Final = (
    "(lower(name) LIKE {0} ESCAPE '\\' OR lower(coalesce(ice_name, pool)) LIKE {0} ESCAPE '\\')"
)


@dataclass(frozen=True, slots=True)
class ScheduleFilter:
    """Which schedules to list; None stands for all.

    Attributes:
        owner: the user the ICE is tagged to.
        text: a part of the name, or of that of the ICE or pool.
    """

    ice_name: str | None = None
    pool: str | None = None
    owner: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class NumberedOccurrence:
    """An occurrence with its number, which is in the order in which they were decided on."""

    number: int
    occurrence: Occurrence


# --- in a transaction ----------------------------------------------------------------------------


async def find(transaction: Transaction, schedule_id: str) -> Schedule | None:
    """The schedule of this id, locked until the transaction ends."""
    rows = await transaction.hold(_BY_ID, schedule_id)
    return _schedule(rows[0]) if rows else None


async def counts(transaction: Transaction, schedule: Schedule) -> tuple[int, int]:
    """How many schedules its ICE or pool has, and how many there are."""
    where, target = _of_target(schedule)
    [(of_target, total)] = await transaction.fetch(
        f"SELECT (SELECT count(*) FROM ice_schedules WHERE {where}), (SELECT count(*) FROM ice_schedules)",
        target,
    )
    return int(of_target), int(total)


def _of_target(schedule: Schedule) -> tuple[str, str]:
    if schedule.pool is not None:
        return "lower(pool) = $1", fold(schedule.pool)
    return "lower(ice_name) = $1", fold(schedule.ice_name or "")


async def add(transaction: Transaction, schedule: Schedule) -> None:
    """Store a new schedule."""
    await transaction.run(
        f"INSERT INTO ice_schedules ({_COLUMNS}) VALUES ({places(len(_NAMES))})",
        *columns_of(schedule, _NAMES),
    )


async def update(transaction: Transaction, schedule: Schedule) -> None:
    """Store all but the target of a schedule that the caller has locked."""
    settings = ", ".join(f"{name} = ${place}" for place, name in enumerate(_CHANGED, 2))
    await transaction.run(
        f"UPDATE ice_schedules SET {settings} WHERE id = $1",
        schedule.id,
        *columns_of(schedule, _CHANGED),
    )


async def move_on(transaction: Transaction, old: Schedule, new: Schedule) -> bool:
    """Compare and swap the next occurrence; False if another transaction has decided on that of `old`."""
    return bool(
        await transaction.run(
            "UPDATE ice_schedules SET next = $3, last = $4 WHERE id = $1 AND next = $2",
            old.id,
            to_text_or_none(old.next),
            to_text_or_none(new.next),
            to_text_or_none(new.last),
        )
    )


async def stop(transaction: Transaction, schedule_id: str) -> None:
    """Let a schedule come no more, though it stays enabled."""
    await transaction.run("UPDATE ice_schedules SET next = NULL WHERE id = $1", schedule_id)


async def delete(transaction: Transaction, schedule_id: str) -> None:
    """Delete a schedule that the caller has locked, and its history; its operations stay."""
    await transaction.run("DELETE FROM ice_schedule_occurrences WHERE schedule = $1", schedule_id)
    await transaction.run("DELETE FROM ice_schedules WHERE id = $1", schedule_id)


async def leave_to_former_users(transaction: Transaction, ices: Sequence[tuple[str, str]]) -> None:
    """Disable the schedules that these users have of these ICEs, given as pairs of ICE and user.

    Those made by a command stay: it was an operator's, whatever their name is.
    """
    await transaction.run(
        "UPDATE ice_schedules SET enabled = 0, next = NULL, former_user = given.owner"
        f" FROM {rows_of(1, 'name', 'owner')}"
        " WHERE lower(ice_schedules.ice_name) = lower(given.name)"
        f" AND ice_schedules.requested_by = given.owner AND ice_schedules.via <> '{Via.COMMAND}'",
        as_json(list(ices)),
    )


async def record(
    transaction: Transaction, schedule_id: str, occurrences: Sequence[Occurrence]
) -> None:
    """Add to the history of a schedule, and delete what is too old in it."""
    for occurrence in occurrences:
        await transaction.run(
            f"INSERT INTO ice_schedule_occurrences (schedule, {_OCCURRENCE})"
            f" VALUES ({places(len(_OCCURRENCE_NAMES) + 1)})",
            schedule_id,
            *columns_of(occurrence, _OCCURRENCE_NAMES),
        )
    await transaction.run(
        "DELETE FROM ice_schedule_occurrences WHERE schedule = $1 AND number <= ("
        "SELECT number FROM ice_schedule_occurrences WHERE schedule = $1"
        f" ORDER BY number DESC LIMIT 1 OFFSET {KEPT})",
        schedule_id,
    )


async def has_unfinished(fetch: Fetch, schedule_id: str) -> bool:
    """Whether an operation of the schedule has not finished."""
    return bool(
        await fetch(
            "SELECT 1 FROM ice_operations WHERE schedule = $1 AND finished IS NULL LIMIT 1",
            schedule_id,
        )
    )


async def is_paused(fetch: Fetch, ice_name: str, now: datetime) -> bool:
    """Whether an ICE, given by its exact name, is paused."""
    return bool(
        await fetch(
            f"SELECT 1 FROM ice_tokens t WHERE t.ice_name = $1 AND {paused('t', 2)}",
            ice_name,
            to_text(now),
        )
    )


async def was_requested(fetch: Fetch, schedule: Schedule, occurrence: datetime) -> bool:
    """Whether an occurrence became an operation before, of any requester."""
    return bool(
        await fetch(
            "SELECT 1 FROM ice_operations WHERE schedule = $1 AND idempotency_key = $2 LIMIT 1",
            schedule.id,
            schedule.idempotency_key(occurrence),
        )
    )


async def zones(fetch: Fetch) -> dict[str, int]:
    """The time zones of the enabled schedules, and how many are in each."""
    rows = await fetch(
        "SELECT timezone, count(*) FROM ice_schedules WHERE enabled = 1 GROUP BY timezone ORDER BY timezone"
    )
    return {name: int(number) for name, number in rows}


# --- reading -------------------------------------------------------------------------------------


class Schedules:
    """Reads schedules and their history."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def find(self, schedule_id: str) -> Schedule | None:
        """The schedule of this id."""
        rows = await self._fetch(_BY_ID, schedule_id)
        return _schedule(rows[0]) if rows else None

    async def names(self, ids: Sequence[str]) -> dict[str, str]:
        """The names of the schedules with these ids, by id; those that were deleted are left out."""
        rows = await self._fetch(
            f"SELECT id, name FROM ice_schedules WHERE {is_in('id', 1)}", as_json(list(ids))
        )
        return {schedule_id: str(name) for schedule_id, name in rows}

    async def page(
        self, where: ScheduleFilter, limit: int, place: str | None = None
    ) -> tuple[list[Schedule], bool]:
        """At most `limit` schedules made before `place`, newest first, and whether there are more.

        A page of large parameters holds fewer.
        """
        params: list[object] = [limit + 1]
        rows = await self._fetch(
            f"SELECT id, octet_length(params) FROM ice_schedules WHERE {_before(params, where, place)}"
            " ORDER BY createdon DESC, id DESC LIMIT $1",
            *params,
        )
        count = fitting([int(size) for _, size in rows[:limit]])
        found = await self._fetch(
            f"SELECT {_COLUMNS} FROM ice_schedules WHERE {is_in('id', 1)}"
            " ORDER BY createdon DESC, id DESC",
            as_json([schedule_id for schedule_id, _ in rows[:count]]),
        )
        return [_schedule(row) for row in found], len(rows) > count

    async def brief(self, where: ScheduleFilter, limit: int, *, offset: int = 0) -> list[Schedule]:
        """Schedules without their `params`, newest first; the first `offset` of them are left out."""
        params: list[object] = [limit, offset]
        rows = await self._fetch(
            f"SELECT {_BRIEF} FROM ice_schedules WHERE {_before(params, where, None)}"
            " ORDER BY createdon DESC, id DESC LIMIT $1 OFFSET $2",
            *params,
        )
        return [_schedule(row) for row in rows]

    async def count(self, where: ScheduleFilter) -> int:
        """How many schedules match."""
        params: list[object] = []
        [(number,)] = await self._fetch(
            f"SELECT count(*) FROM ice_schedules WHERE {_before(params, where, None)}", *params
        )
        return int(number)

    async def earliest(self) -> datetime | None:
        """The earliest next occurrence of all schedules."""
        [(moment,)] = await self._fetch(
            "SELECT min(next) FROM ice_schedules WHERE next IS NOT NULL"
        )
        return from_text_or_none(moment)

    async def due(
        self, now: datetime, limit: int, after: tuple[str, str] | None = None
    ) -> list[tuple[str, str]]:
        """Place and id of the schedules that are due at `now`, those that wait longest first, from `after` on."""
        rows = await self._fetch(
            "SELECT next, id FROM ice_schedules WHERE next <= $1 AND (next, id) > ($2, $3)"
            " ORDER BY next, id LIMIT $4",
            to_text(now),
            *(after or ("", "")),
            limit,
        )
        return [(place, schedule_id) for place, schedule_id in rows]

    async def enabled(self, limit: int, after: str = "") -> list[Schedule]:
        """Enabled schedules without their `params`, in the order of their ids, after this id."""
        rows = await self._fetch(
            f"SELECT {_BRIEF} FROM ice_schedules WHERE enabled = 1 AND id > $1 ORDER BY id LIMIT $2",
            after,
            limit,
        )
        return [_schedule(row) for row in rows]

    async def occurrences(
        self, schedule_id: str, limit: int, before: int | None = None
    ) -> list[NumberedOccurrence]:
        """What became of the occurrences of a schedule, numbered below `before`, newest first."""
        params: list[object] = [schedule_id, limit]
        rows = await self._fetch(
            f"SELECT number, {_OCCURRENCE} FROM ice_schedule_occurrences"
            f" WHERE schedule = $1 AND {conditions(params, ('number < {0}', before))}"
            " ORDER BY number DESC LIMIT $2",
            *params,
        )
        return [NumberedOccurrence(row[0], _occurrence(row[1:])) for row in rows]

    async def last(self, found: Sequence[Schedule]) -> dict[str, Occurrence]:
        """The newest occurrence of each of these schedules, by id; one without any is left out."""
        rows = await self._fetch(
            f"SELECT schedule, {_OCCURRENCE} FROM ice_schedule_occurrences WHERE number IN ("
            "SELECT (SELECT max(number) FROM ice_schedule_occurrences WHERE schedule = s.id)"
            f" FROM ice_schedules s WHERE {is_in('s.id', 1)})",
            as_json([schedule.id for schedule in found]),
        )
        return {row[0]: _occurrence(row[1:]) for row in rows}


def _before(params: list[object], where: ScheduleFilter, place: str | None) -> str:
    """The condition of a filter and a place; their values are appended to `params`."""
    createdon, _, schedule_id = (place or "").partition(" ")
    place_fits = "TRUE"
    if place is not None:
        params += [createdon, schedule_id]
        place_fits = f"(createdon, id) < (${len(params) - 1}, ${len(params)})"
    return f"{place_fits} AND " + conditions(
        params,
        ("lower(ice_name) = {0}", None if where.ice_name is None else fold(where.ice_name)),
        ("lower(pool) = {0}", None if where.pool is None else fold(where.pool)),
        (OF_USER, where.owner),
        (_FOUND, None if where.text is None else containing(fold(where.text))),
    )


def _schedule(row: Row) -> Schedule:
    values = dict(zip(_NAMES, row, strict=True))
    values["params"] = values["params"].encode()
    values["enabled"] = bool(values["enabled"])
    return from_columns(Schedule, tuple(values.values()), f"the schedule {row[0]}")


def _occurrence(row: Row) -> Occurrence:
    return from_columns(Occurrence, row, "the history of a schedule")
