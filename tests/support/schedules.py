"""Whether the history of a schedule and its operations agree with the instants of its cron expression."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from gateway.core.cron import Cron
from gateway.core.operation import Operation
from gateway.core.schedule import MAX_COUNTED, Occurrence, Schedule, SkipReason


def faults_of(
    schedule: Schedule,
    history: Sequence[Occurrence],
    operations: Sequence[Operation],
    stopped: Sequence[tuple[datetime, datetime | None]] = (),
) -> list[str]:
    """What is amiss: each instant up to the last decision is told of once, and each operation is one of them.

    Args:
        schedule: as it is now.
        history: all of it, oldest first.
        operations: all that it requested.
        stopped: when it was disabled: nothing needs to be told of what occurs from the first time until before the
            second, None while it still is.
    """
    cron = Cron.parse(schedule.cron, schedule.timezone)
    if schedule.last is None:
        return [] if not history else ["it has a history, and no last occurrence"]
    if not history:
        return ["it has a last occurrence, and no history"]

    def instants(begin: datetime) -> Iterator[datetime]:
        return itertools.chain([begin], cron.all_after(begin))

    faults = []
    last = schedule.last
    # Earlier than the first after it was made, if the clock was set back.
    first = min(history[0].at, cron.next_after(schedule.createdon) or last)
    due = list(itertools.takewhile(lambda one: one <= last, instants(first)))
    ends = [*(row.at for row in history[1:]), last + timedelta(microseconds=1)]
    told: list[datetime] = []
    for row, end in zip(history, ends, strict=True):
        if row.count != 1 and row.skipped is not SkipReason.MISSED:
            faults.append(f"{row} counts several")
        if row.count == MAX_COUNTED:  # or more
            told += itertools.takewhile(lambda one, end=end: one < end, instants(row.at))  # type: ignore[misc]
        else:
            told += itertools.islice(instants(row.at), row.count)
    left_out = {
        one for one in due for begin, end in stopped if begin <= one and (end is None or one < end)
    }
    if told != [one for one in due if one in told or one not in left_out]:
        faults.append(f"{sorted(set(due) - set(told))} are left out, or told of twice: {told}")
    ran = {row.operation: row.at for row in history if row.operation is not None}
    found = {one.id: one.run_at for one in operations if one.idempotency_key is not None}
    if found != ran:
        faults.append(f"the operations are {found}, and the history has {ran}")
    return faults
