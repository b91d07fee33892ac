"""The JSON objects of schedules, beside those of `services.schemas`.

Tested in tests/gateway/admin/api/test_schedules.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.operation import NotValid
from gateway.core.schedule import SHOWN, Occurrence, Schedule, SkipReason
from gateway.core.times import to_text
from gateway.services.schemas import Time, described
from gateway.store.schedules import NumberedOccurrence, Schedules


class OccurrenceDocument(msgspec.Struct, kw_only=True):
    """What became of an occurrence: the id of its operation, or why it was skipped.

    Of `missed` ones that follow each other, `at` is the first and `count` says how many; 100 stands for as many or
    more.
    """

    at: Time
    operation: str | None
    skipped: SkipReason | None
    count: int
    recordedon: Time


class OccurrencePage(msgspec.Struct):
    """Occurrences, newest first; `next` is the cursor of the next page, null at the end."""

    items: list[OccurrenceDocument]
    next: str | None


class ScheduleDocument(msgspec.Struct, kw_only=True):
    """A schedule of an ICE or a pool; `timeout` and `grace` are seconds.

    `next` are the next five occurrences, none if it is disabled. `last` is what became of the newest one. `fault` says
    why an enabled schedule has no next occurrence. Its operations are requested by `requested_by`.
    """

    id: str
    name: str
    ice_name: str | None
    pool: str | None
    params: Any
    cron: str
    timezone: str
    timeout: int
    grace: int
    enabled: bool
    next: list[Time]
    last: OccurrenceDocument | None
    fault: str | None
    requested_by: str
    createdon: Time


class SchedulePage(msgspec.Struct):
    """Schedules, newest first; `next` is the cursor of the next page, null at the end."""

    items: list[ScheduleDocument]
    next: str | None


def occurrence_document(occurrence: Occurrence) -> OccurrenceDocument:
    """Describe an occurrence."""
    return described(OccurrenceDocument, occurrence)


def occurrence_page(found: Sequence[NumberedOccurrence], following: str | None) -> OccurrencePage:
    """Describe occurrences; `following` is the cursor of the next page."""
    return OccurrencePage([occurrence_document(one.occurrence) for one in found], following)


def fault_of(schedule: Schedule) -> str | None:
    """Why an enabled schedule has no next occurrence; None if it has one."""
    if not schedule.enabled:
        return None
    try:
        upcoming = schedule.upcoming(1)
    except NotValid as fault:
        return f"{fault.field} {fault}"
    return None if upcoming else "it was stopped by a fault: the gateway's log says more"


def schedule_document(schedule: Schedule, last: Occurrence | None) -> ScheduleDocument:
    """Describe a schedule; to find the next five occurrences takes up to 10 ms."""
    fault = fault_of(schedule)
    upcoming = [] if fault is not None else schedule.upcoming(SHOWN)
    return described(
        ScheduleDocument,
        schedule,
        params=msgspec.Raw(schedule.params),
        next=list(map(to_text, upcoming)),
        last=None if last is None else occurrence_document(last),
        fault=fault,
    )


async def schedule_documents(table: Schedules, found: Sequence[Schedule]) -> list[ScheduleDocument]:
    """Describe schedules with what became of their newest occurrences, in a thread: each takes up to 10 ms."""
    last = await table.last(found)
    return await asyncio.to_thread(
        lambda: [schedule_document(one, last.get(one.id)) for one in found]
    )
