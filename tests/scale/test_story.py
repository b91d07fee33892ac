"""The whole run with a few ICEs: all come, are dropped, and are back after a restart of each node and a storm."""

from __future__ import annotations

import pytest

from tests.scale import report
from tests.scale.story import Plan, percentiles, play

ICES = 40


@pytest.mark.long
async def test_a_small_run_loses_nobody():
    times = {"quiet": 1.0, "idle": 6.0, "settle": 0.5, "steady": 0.1, "limit": 120.0}
    plan = Plan(ices=ICES, nodes=2, churn=6.0, **times)
    outcome = await play(plan)
    assert outcome.faults == []
    phases = outcome.phases
    assert phases["ramp"]["admitted"] == ICES
    assert phases["churn"]["went"] > 0
    dropped = phases["idle"]["drop_answered_ms"]["n"]
    assert dropped == ICES // 10
    for phase in ("restart", "storm"):
        assert phases[phase]["connected"] == ICES - dropped
    assert phases["storm"]["closed"] == {"1006": ICES - dropped}
    run = {**vars(outcome), "date": "2026-01-01", "machine": report.facts()}
    assert f"| {ICES} at 2 |" in report.figures([run])


def test_percentiles():
    assert percentiles([]) == {"n": 0}
    assert percentiles(range(1, 101)) == {"n": 100, "p50": 50.5, "p99": 99, "max": 100}
    assert percentiles([3.0])["p99"] == 3.0
