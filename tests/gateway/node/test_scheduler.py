"""When a node looks for what is due, and that an ICE gets it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta

import pytest

from gateway.app import Tuning
from gateway.core.audit_event import Actor, Event, LogEntry, Via
from gateway.core.problems import Problem
from gateway.node.node import NodeLimits
from gateway.node.scheduler import Scheduler
from gateway.runtime.eventloop import cancel_and_wait
from gateway.services.schedules import WantedSchedule
from gateway.store.engine import StoreUnavailable
from tests.support.clock import RunningClock
from tests.support.harness import ADMIN, harness
from tests.support.ice import PATIENCE, until
from tests.support.work import accept, connected, expect_run, finished

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class FakeDecider:
    """Says when the next occurrence is, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.next: datetime | None = None
        self.faults: list[Exception] = []
        self.held = False

    async def earliest(self) -> datetime | None:
        return self.next

    async def decide_due(self) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.asked.append("decide")

    async def realign(self) -> None:
        self.asked.append("realign")


@pytest.fixture
def clock():
    return RunningClock(NOON)


@pytest.fixture
def decider():
    return FakeDecider()


@contextlib.asynccontextmanager
async def scheduling(decider, clock, **options):
    given = {"monotonic": time.monotonic, "held": lambda: decider.held, "look": 0.02}
    scheduler = Scheduler(clock=clock, **(given | options))
    task = asyncio.create_task(scheduler.run(decider))
    await asyncio.sleep(0)
    try:
        yield scheduler
    finally:
        await cancel_and_wait(task)


def an_entry(action: str) -> LogEntry:
    return LogEntry(1, Event.of(NOON, Actor("root", Via.API, ""), action), "")


async def test_it_looks_at_the_start_and_then_only_after_an_event(decider, clock):
    async with scheduling(decider, clock) as scheduler:
        await until(lambda: decider.asked == ["realign", "decide"])
        clock.skip(days=1)
        scheduler.apply(an_entry("provision"))
        scheduler.apply(an_entry("request-operation"))
        await asyncio.sleep(0.1)
        assert decider.asked == ["realign", "decide"]
        scheduler.apply(an_entry("create-schedule"))
        await until(
            lambda: decider.asked[2:] == ["realign", "decide"]
        )  # the clock was set meanwhile
        scheduler.apply(an_entry("change-schedule"))
        await until(lambda: decider.asked[4:] == ["decide"])
        scheduler.refresh()
        await until(lambda: decider.asked[5:] == ["decide"])


async def test_it_decides_when_it_is_due_and_not_before(decider, clock):
    decider.next = NOON + timedelta(seconds=0.3)
    async with scheduling(decider, clock, look=30):
        await until(lambda: decider.asked == ["realign", "decide"])
        decider.next = None  # then nothing more
        await until(lambda: len(decider.asked) > 2)
        assert clock() >= NOON + timedelta(seconds=0.3)
        assert decider.asked[2:] == ["decide"]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_clock_that_is_set_is_noticed(decider, clock, step):
    decider.next = NOON + timedelta(days=1)
    async with scheduling(decider, clock):
        await until(lambda: decider.asked == ["realign", "decide"])
        clock.ahead += step
        await until(lambda: decider.asked[2:] == ["realign", "decide"])


async def test_it_goes_on_after_the_store_was_away_and_after_a_fault(decider, clock, said):
    decider.faults = [StoreUnavailable("away"), ValueError("a bug")]
    async with scheduling(decider, clock, retry=0.01):
        await until(lambda: "decide" in decider.asked)
    assert [line["event"] for line in said] == ["scheduler failed"]


async def test_nothing_is_decided_in_a_restored_database_until_it_is_confirmed(decider, clock):
    decider.held = True
    async with scheduling(decider, clock) as scheduler:
        scheduler.refresh()
        await asyncio.sleep(0.05)
        assert decider.asked == []
        decider.held = False
        scheduler.apply(an_entry("confirm-restore"))
        await until(lambda: decider.asked == ["realign", "decide"])


async def test_an_ice_gets_what_is_due(tmp_path):
    """Created while nothing was scheduled; then the clock is set an hour ahead."""
    clock = RunningClock()
    minute = (clock().minute + 30) % 60
    tuning = Tuning(node=NodeLimits(schedule_look=0.05))
    async with harness(tmp_path, clock=clock, tuning=tuning) as running:
        ice = await connected(running)
        service = running.gateway.services.schedules
        new = WantedSchedule(
            *("hourly", f"{minute} * * * *", "UTC", b'"smoke"'), ice_name="lab-1", grace=3600
        )
        made = await service.create(ADMIN, service.prepare(ADMIN, new))
        assert not isinstance(made, Problem)
        for _ in range(2):
            await running.settled()
            clock.ahead += HOUR
            run = await expect_run(ice)
            accept(ice, run["id"])
            assert (run["kind"], run["params"]) == ("schedule", "smoke")
            shown = (await running.admin.get(f"/operations/{run['id']}")).json
            assert datetime.fromisoformat(shown["run_at"]).minute == minute
            assert shown["requested_by"] == ADMIN.name
            await finished(ice, run["id"])


async def test_what_was_due_while_the_store_was_away_is_decided_when_it_is_back(
    tmp_path, monkeypatch
):
    clock = RunningClock()
    tuning = Tuning(node=NodeLimits(schedule_look=0.05))
    async with harness(tmp_path, clock=clock, tuning=tuning) as running:
        await connected(running)
        engine, service = running.gateway.engine, running.gateway.services.schedules
        new = WantedSchedule("often", "* * * * *", "UTC", ice_name="lab-1")
        made = await service.create(ADMIN, service.prepare(ADMIN, new))
        write, tried = engine.write, asyncio.Event()

        async def away(_):
            tried.set()
            raise StoreUnavailable("away")

        monkeypatch.setattr(engine, "write", away)
        clock.ahead += HOUR
        async with asyncio.timeout(PATIENCE):
            await tried.wait()
        monkeypatch.setattr(engine, "write", write)
        found = await running.eventually(
            f"/schedules/{made.id}/occurrences", lambda answer: len(answer.json["items"]) > 1
        )
        *_, ran, missed = found.json["items"]  # another minute may have begun
        assert missed["skipped"] == "missed"
        assert 59 <= missed["count"] <= 61
        assert (await running.admin.get(f"/operations/{ran['operation']}")).status == 200
