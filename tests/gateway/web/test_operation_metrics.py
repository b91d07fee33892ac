"""The metrics of operations: what a node counts, and what a scrape reads of the table."""

from __future__ import annotations

import asyncio
import contextlib
import math
from datetime import datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from gateway.core.operation import Waits
from gateway.core.schedule import Occurrence, SkipReason
from gateway.core.times import utc_now
from gateway.store.engine import StoreUnavailable
from gateway.store.waits import Backlog, Waiting
from gateway.web.operation_metrics import BacklogMetrics, OperationMetrics
from tests.support.clock import RunningClock
from tests.support.harness import POLL, harness
from tests.support.work import asked, connected, finished, in_state, take

QUEUED = "ice_gateway_operations_queued"
LONGEST = "ice_gateway_operations_longest_wait_seconds"
PATIENCE = 10.0
RUNNING = "ice_gateway_operations_running"
NOW = utc_now()
READING = Backlog(2, 3, {Waits.PAUSED: Waiting(4, NOW - timedelta(seconds=5))}, 6)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


async def test_what_a_node_does_with_operations(tmp_path):
    clock = RunningClock()
    async with harness(tmp_path, clock=clock) as running:
        metrics = running.gateway.node._meters
        ice, away = await connected(running), await running.provision("lab-2")
        await (await away.connect()).leave()
        await running.eventually("/ices/lab-2", lambda answer: answer.json["connection"] is None)
        first, second = [await asked(running.admin) for _ in range(2)]
        overdue = await asked(running.admin, "lab-2", deadline=clock.at(600))
        assert await take(ice) == first
        clock.skip(seconds=60)
        await metrics.backlog.refresh()
        assert value(metrics.registry, RUNNING) == 1
        for why in ("operation-before", "offline"):
            assert value(metrics.registry, QUEUED, waits=why) == 1
            assert 60 <= value(metrics.registry, LONGEST, waits=why) < 90
        await finished(ice, first)
        assert await take(ice) == second
        await running.admin.post(f"/operations/{second}/cancel")
        clock.skip(seconds=600)
        await in_state(running, overdue, "expired")
        ends = {"succeeded": 1, "cancelled": 1, "expired": 1, "failed": 0, "lost": 0}
        for state, count in ends.items():
            found = value(metrics.registry, "ice_gateway_operations_ended_total", state=state)
            assert found == count, state
        for what, count, least in (("wait", 2, 60), ("run", 1, 60)):
            name = f"ice_gateway_operation_{what}_seconds"
            assert value(metrics.registry, f"{name}_count") == count
            assert least <= value(metrics.registry, f"{name}_sum") < least + 30


class Reader:
    """Reads the backlog; each reading waits for `go`, and fails with `error` if there is one."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.readings = 0

    async def __call__(self, now: datetime) -> Backlog:
        self.readings += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return READING


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
async def of_reader(reader):
    """Makes the gauges of what `reader` reads."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**times: float) -> BacklogMetrics:
            made = BacklogMetrics(reader, lambda: NOW, **times)
            stack.push_async_callback(made.close)
            return made

        yield make


def shown(backlog: BacklogMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in backlog.collect()
        for sample in metric.samples
    }


async def test_the_backlog_is_read_once_for_many_scrapes(of_reader, reader):
    backlog = of_reader()
    assert shown(backlog) == {}
    await asyncio.gather(*(backlog.refresh() for _ in range(5)))
    await backlog.refresh()
    assert reader.readings == 1
    found = shown(backlog)
    assert (found[RUNNING,], found[QUEUED, "run-at"], found[QUEUED, "not-examined"]) == (2, 3, 6)
    assert (found[QUEUED, "paused"], found[LONGEST, "paused"]) == (4, 5)
    assert found[QUEUED, "nothing"] == found[LONGEST, "all-busy"] == 0
    labels = {key[1] for key in found if key[0] == LONGEST}
    assert labels == {"nothing", *Waits} - {"run-at"}


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("a fault of ours")])
async def test_what_cannot_be_read_is_not_shown(of_reader, reader, error):
    backlog = of_reader(fresh=-math.inf)
    await backlog.refresh()
    reader.error = error
    async with asyncio.timeout(PATIENCE):
        while shown(backlog):  # the first reading is shown 20 times as long as it took
            await backlog.refresh()
            await asyncio.sleep(POLL)
    reader.error = None
    async with asyncio.timeout(PATIENCE):
        while not shown(backlog):
            await backlog.refresh()
            await asyncio.sleep(POLL)


async def test_a_scrape_does_not_wait_for_a_slow_database(of_reader, reader):
    backlog = of_reader(patience=0.01)
    reader.go.clear()
    for _ in range(2):
        await backlog.refresh()
        assert shown(backlog) == {}
    reader.go.set()
    async with asyncio.timeout(PATIENCE):
        while not shown(backlog):
            await backlog.refresh()
            await asyncio.sleep(POLL)
    assert reader.readings == 1


def test_what_became_of_the_occurrences_of_schedules():
    registry = CollectorRegistry()
    metrics = OperationMetrics(registry)
    metrics.decided_occurrence(Occurrence(NOW, NOW, None, SkipReason.MISSED, 59))
    metrics.decided_occurrence(Occurrence(NOW, NOW, "operation-1", None))
    found = {
        outcome: value(registry, "ice_gateway_schedule_occurrences_total", outcome=outcome)
        for outcome in ("missed", "requested", "paused")
    }
    assert found == {"missed": 59, "requested": 1, "paused": 0}
