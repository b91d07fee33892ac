"""Schedules while gateways die at random: ten seconds here, minutes by `make torture`."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.audit_event import Via
from gateway.core.schedule import Occurrence, Schedule, SkipReason
from tests.support.schedules import faults_of
from tests.torture.schedules import report, torture


@pytest.mark.long
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_each_occurrence_is_accounted_for_once(engine, request):
    seed = secrets.randbelow(10**6)
    url = None if engine == "sqlite" else request.getfixturevalue("database_url")
    done = await torture(10, seed, url)
    assert not done.faults, report(done, seed)
    assert done.kills >= 2, f"more was expected to die: {report(done, seed)}"
    assert done.outcomes["ran"] >= 3, f"some were expected to run: {report(done, seed)}"


NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ONE = Schedule(
    *("s1", "n", "lab-1", None, b"{}", "* * * * *", "UTC", "root", Via.API, NOON),
    last=NOON + 4 * MINUTE,
)
FIRST, LAST = (ONE.operation(name, NOON + at * MINUTE, NOON) for name, at in (("a", 0), ("b", 4)))
HISTORY = [
    Occurrence(NOON, NOON, "a", None),
    Occurrence(NOON + MINUTE, NOON, None, SkipReason.UNFINISHED),
    Occurrence(NOON + 2 * MINUTE, NOON, None, SkipReason.MISSED, 2),
    Occurrence(NOON + 4 * MINUTE, NOON, "b", None),
]


@pytest.mark.parametrize(
    ("history", "operations", "said"),
    [
        (HISTORY, [FIRST, LAST], None),
        ([*HISTORY[:1], *HISTORY[2:]], [FIRST, LAST], "left out"),
        ([*HISTORY, HISTORY[3]], [FIRST, LAST], "told of twice"),
        ([*HISTORY[:2], replace(HISTORY[2], count=1), HISTORY[3]], [FIRST, LAST], "left out"),
        ([replace(HISTORY[0], count=2), *HISTORY[1:]], [FIRST, LAST], "counts several"),
        (HISTORY, [FIRST], "the operations are"),
        (HISTORY, [FIRST, LAST, replace(LAST, id="c")], "the operations are"),
        ([], [], "no history"),
    ],
)
def test_what_does_not_agree_is_found_out(history, operations, said):
    """Or else the torture would prove nothing."""
    faults = faults_of(ONE, history, operations)
    assert bool(faults) is bool(said), faults
    assert said is None or any(said in fault for fault in faults), faults
