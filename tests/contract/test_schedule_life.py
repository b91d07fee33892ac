"""What becomes of the occurrences of schedules, whatever happens to clocks, nodes and the database."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.protocol import OperationKind
from gateway.core.accounts import User
from gateway.core.audit_event import Actor, Via
from gateway.core.cron import Cron
from gateway.core.ice import Action
from gateway.core.operation import Move, State
from gateway.core.pool import Pool
from gateway.core.problems import Problem
from gateway.core.roles import Role
from gateway.core.times import to_text
from gateway.services.operation_requests import OperationRequest, OperationService
from gateway.services.schedules import ScheduleService, WantedSchedule
from gateway.store import accounts, ices, operations, pools
from gateway.store.engine import StoreUnavailable
from gateway.store.events import Events
from gateway.store.operations import OperationFilter, Operations
from gateway.store.schedules import Schedules
from gateway.store.sqlite.engine import open_sqlite
from tests.contract.domain import (
    NOW,
    ROOT,
    Between,
    add_registered,
    add_user,
    an_event,
    deregistered,
    minutes,
)
from tests.support.schedules import faults_of

ALICE = Actor("alice", Via.API, "192.0.2.8")
SHELL = Actor("deploy", Via.COMMAND, "host")
KEPT_BYTES = 100_000


class Desk:
    """Schedules and their operations in a database, with a clock that is set by hand."""

    def __init__(self, engine, *, now: datetime = NOW) -> None:
        self.engine = engine
        self.now = now
        self.between = Between(engine)
        self.requests = self._requests(self.between)
        self.service = self.node(self.between)
        self.rows = Schedules(engine.fetch)

    def _requests(self, engine) -> OperationService:
        return OperationService(engine=engine, clock=lambda: self.now, kept_bytes=KEPT_BYTES)

    def node(self, engine, **bounds: Any) -> ScheduleService:
        requests = self._requests(engine)
        return ScheduleService(engine=engine, clock=lambda: self.now, requests=requests, **bounds)

    async def make(self, actor: Actor = ROOT, **how: object):
        how = {"name": "smoke", "cron": "* * * * *", "timezone": "UTC"} | how
        if "pool" not in how:
            how.setdefault("ice_name", "lab-1")
        prepared = self.service.prepare(actor, WantedSchedule(**how))
        assert not isinstance(prepared, Problem), prepared
        made = await self.service.create(actor, prepared)
        assert not isinstance(made, Problem), made
        return made

    async def at(self, now: datetime) -> None:
        """The clock shows `now`, and what is due is decided on."""
        self.now = now
        await self.service.decide_due()

    async def operations(self, schedule: str):
        """Oldest first."""
        found, _ = await Operations(self.engine.fetch).page(
            OperationFilter(schedule=schedule), 1000
        )
        return [one.operation for one in reversed(found)]

    async def history(self, schedule: str):
        """Oldest first."""
        return [one.occurrence for one in reversed(await self.rows.occurrences(schedule, 2000))]

    async def skips(self, schedule: str) -> list[tuple[datetime, str, int]]:
        found = await self.history(schedule)
        return [(one.at, one.skipped.value, one.count) for one in found if one.skipped is not None]

    async def finish(self, operation) -> None:
        ended = operation.moved(Move.CANCEL, self.now, error=b"{}")
        await self.engine.write(lambda unit: operations.replace(unit, operation, ended))


@pytest.fixture
async def desk(engine):
    """Root, alice and her ICE, which is registered; a pool."""
    await add_user(engine, "root", Role.ADMIN)
    await add_registered(engine)
    pool = Pool("builders", "", None, {"os": "linux"}, "root", NOW)
    await engine.write(lambda transaction: pools.add(transaction, pool))
    return Desk(engine)


async def change_user(desk: Desk, name: str, **changes: object) -> None:
    async def unit(transaction):
        user = await accounts.find_user(transaction, name)
        assert isinstance(user, User)
        await accounts.update_user(transaction, replace(user, **changes))

    await desk.engine.write(unit)


async def test_an_occurrence_becomes_one_operation(desk):
    made = await desk.make(ALICE, timeout=90, params=b'{"suite": "a"}')
    await desk.at(minutes(1) - timedelta(microseconds=1))
    assert await desk.operations(made.id) == []
    await desk.at(minutes(1) + timedelta(seconds=2))
    [one] = await desk.operations(made.id)
    assert (one.kind, one.params, one.state) == (
        OperationKind.SCHEDULE,
        b'{"suite": "a"}',
        State.QUEUED,
    )
    assert (one.ice_name, one.requested_by, one.schedule) == ("lab-1", "alice", made.id)
    assert (one.run_at, one.deadline) == (minutes(1), minutes(2.5))
    assert one.idempotency_key == f"schedule:{made.id}:2026-11-22T09:31:00.000000Z"
    [row] = await desk.history(made.id)
    assert (row.at, row.operation, row.skipped, row.count) == (minutes(1), one.id, None, 1)
    *_, entry = await Events(desk.engine.fetch).after(0, 100)
    event = entry.event
    assert (event.action, event.ice_name) == ("request-operation", "lab-1")
    assert event.actor == Actor("alice", Via.SCHEDULE, made.id)
    assert event.detail["schedule"] == made.id
    await desk.service.decide_due()
    assert len(await desk.operations(made.id)) == 1


async def test_an_occurrence_of_a_pool_waits_for_any_of_its_ices(desk):
    made = await desk.make(pool="BUILDERS")
    await desk.at(minutes(1))
    [one] = await desk.operations(made.id)
    assert (one.ice_name, one.pool) == (None, "builders")
    *_, entry = await Events(desk.engine.fetch).after(0, 100)
    assert (entry.event.ice_name, entry.event.detail["pool"]) == (None, "builders")


async def test_two_that_decide_at_once_make_one(desk):
    made = [await desk.make(pool="builders", name=f"n{place}") for place in range(5)]
    desk.now = minutes(1)
    others = [desk.node(desk.engine) for _ in range(3)]
    await asyncio.gather(*(one.decide_due() for one in (desk.service, *others)))
    for one in made:
        assert len(await desk.operations(one.id)) == 1
        assert len(await desk.history(one.id)) == 1


async def deregister(desk: Desk) -> None:
    async def unit(transaction):
        [ice] = (await ices.find_many(transaction, ["lab-1"])).values()
        event = an_event(Action.DEREGISTER, ice)
        await ices.replace(transaction, [(ice, deregistered(ice), event)])

    await desk.engine.write(unit)


async def pause(desk: Desk) -> None:
    async def unit(transaction):
        await transaction.run("UPDATE ice_tokens SET pausedon = '2026-01-01T00:00:00.000000Z'")

    await desk.engine.write(unit)


async def fill(desk: Desk) -> None:
    async def unit(transaction):
        [ice] = (await ices.find_many(transaction, ["lab-1"])).values()
        return ice

    ice = await desk.engine.write(unit)
    request = OperationRequest(OperationKind.EXECUTE, b'"' + b"x" * (KEPT_BYTES - 100) + b'"')
    assert not isinstance(await desk.requests.request(ROOT, ice, request), Problem)


SPOILS = {
    "forbidden": lambda desk: change_user(desk, "alice", disabledon=NOW),
    "wrong-status": deregister,
    "paused": pause,
    "queue-full": fill,
}


@pytest.mark.parametrize("reason", SPOILS)
async def test_an_occurrence_is_left_out_and_listed_with_the_reason(desk, reason):
    made = await desk.make(ALICE, params=b'"' + b"p" * 200 + b'"')
    await SPOILS[reason](desk)
    await desk.at(minutes(1))
    assert await desk.operations(made.id) == []
    assert await desk.skips(made.id) == [(minutes(1), reason, 1)]
    found = await desk.rows.find(made.id)
    assert (found.next, found.last) == (minutes(2), minutes(1))


async def test_the_right_is_that_of_who_asked_for_it(desk):
    of_pool = await desk.make(pool="builders")
    await change_user(desk, "root", role=Role.MEMBER)
    gone = await desk.make(replace(ROOT, name="nobody"))
    by_command = await desk.make(SHELL)
    await desk.at(minutes(1))
    assert await desk.skips(of_pool.id) == [(minutes(1), "forbidden", 1)]
    assert await desk.skips(gone.id) == [(minutes(1), "forbidden", 1)]
    assert len(await desk.operations(by_command.id)) == 1


async def test_while_one_is_unfinished_the_next_is_left_out(desk):
    made = await desk.make()
    await desk.at(minutes(1))
    await desk.at(minutes(2))
    assert await desk.skips(made.id) == [(minutes(2), "unfinished", 1)]
    [one] = await desk.operations(made.id)
    await desk.finish(one)
    ran = await desk.service.run(ALICE, made.id, "token-1")
    assert (ran.requested_by, ran.token, ran.run_at) == ("alice", "token-1", minutes(2))
    assert (ran.deadline, ran.schedule) == (minutes(2) + timedelta(days=1), made.id)
    await desk.at(minutes(3))
    assert (await desk.skips(made.id))[1:] == [(minutes(3), "unfinished", 1)]
    again = await desk.service.run(ALICE, made.id)
    assert again.id != ran.id
    assert len(await desk.operations(made.id)) == 3


async def test_a_disabled_one_can_be_run_but_not_of_an_ice_that_takes_nothing(desk):
    made = await desk.make(enabled=False)
    assert not isinstance(await desk.service.run(ROOT, made.id), Problem)
    await deregister(desk)
    assert (await desk.service.run(ROOT, made.id)).code == "wrong-status"
    assert (await desk.service.run(ROOT, "other")).code == "not-found"


async def test_after_an_hour_without_a_database_only_the_newest_runs(desk):
    made = await desk.make()
    desk.between.away = True
    with pytest.raises(StoreUnavailable):
        await desk.at(minutes(1))
    desk.between.away = False
    await desk.at(minutes(60) + timedelta(seconds=20))
    [one] = await desk.operations(made.id)
    assert one.run_at == minutes(60)
    assert await desk.skips(made.id) == [(minutes(1), "missed", 59)]
    assert (await desk.rows.find(made.id)).next == minutes(61)


async def test_one_that_is_too_late_is_missed(desk):
    made = await desk.make(cron="0 12 * * *", grace=60)
    noon = NOW.replace(hour=12, minute=0)
    await desk.at(noon + timedelta(seconds=61))
    assert await desk.skips(made.id) == [(noon, "missed", 1)]
    assert await desk.operations(made.id) == []


async def test_each_occurrence_is_counted_by_the_node_that_decided_on_it(desk):
    made, decided = await desk.make(), []
    nodes = [desk.node(desk.engine, decided=decided.append) for _ in range(2)]
    desk.now = minutes(3)
    await asyncio.gather(*(node.decide_due() for node in nodes))
    assert decided == await desk.history(made.id)
    assert [each.count for each in decided] == [2, 1]


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
async def test_a_node_that_dies_at_the_instant_neither_loses_nor_doubles_it(desk, when):
    made = await desk.make()
    desk.now = minutes(1)
    gate = desk.between.hold("write", fails=when == "before the commit")
    dying = asyncio.create_task(desk.service.decide_due())
    await gate.reached.wait()
    dying.cancel()
    await asyncio.wait([dying])
    await desk.node(desk.engine).decide_due()
    assert len(await desk.operations(made.id)) == 1
    assert len(await desk.history(made.id)) == 1


async def test_a_clock_that_is_set_back_brings_nothing_back(desk):
    made = await desk.make()
    await desk.at(minutes(3))
    await desk.at(minutes(-60))
    await desk.service.realign()
    await desk.at(minutes(3))
    assert len(await desk.history(made.id)) == 2  # two were missed, one ran
    await desk.at(minutes(4))
    assert (await desk.rows.find(made.id)).last == minutes(4)


async def test_a_clock_that_was_years_ahead_does_not_end_a_schedule(desk):
    made = await desk.make()
    await desk.at(NOW + timedelta(days=3650))
    assert (await desk.rows.find(made.id)).next > NOW + timedelta(days=3600)
    desk.now = NOW
    await desk.service.realign()
    assert (await desk.rows.find(made.id)).next == minutes(1)


async def test_an_occurrence_that_ran_does_not_run_again(desk):
    made = await desk.make()
    await desk.at(minutes(1))
    [one] = await desk.operations(made.id)
    await desk.finish(one)
    await store(desk, made, "next", to_text(minutes(1)))
    await store(desk, made, "requested_by", "alice")
    await desk.service.decide_due()
    assert [each.id for each in await desk.operations(made.id)] == [one.id]
    assert (await desk.rows.find(made.id)).next == minutes(2)


async def store(desk: Desk, schedule, column: str, value: str) -> None:
    async def unit(transaction):
        sql = f"UPDATE ice_schedules SET {column} = $1 WHERE id = $2"  # noqa: S608 - the test's own
        assert await transaction.run(sql, value, schedule.id) == 1

    await desk.engine.write(unit)


async def test_one_without_its_zone_does_not_stop_the_others(desk, said):
    lost = await desk.make()
    other = await desk.make(pool="builders")
    await store(desk, lost, "timezone", "Europe/Atlantis")
    await desk.service.realign()
    await desk.at(minutes(1))
    assert len(await desk.operations(other.id)) == 1
    assert (await desk.rows.find(lost.id)).next is None
    assert (await desk.rows.find(lost.id)).enabled
    assert [line["schedule"] for line in said] == [lost.id]
    await store(desk, lost, "timezone", "Europe/Berlin")
    await desk.service.realign()
    assert (await desk.rows.find(lost.id)).next == minutes(2)


async def test_one_with_a_damaged_row_does_not_stop_the_others(desk, said):
    bad = await desk.make()
    other = await desk.make(pool="builders")
    await store(desk, bad, "createdon", "long ago")
    await desk.at(minutes(1))
    assert len(await desk.operations(other.id)) == 1
    assert await desk.rows.earliest() == minutes(2)
    assert [line["schedule"] for line in said] == [bad.id]


async def test_who_changes_it_is_who_asks_from_then_on(desk):
    made = await desk.make(ALICE)
    disabled = await desk.service.change(ROOT, made.id, {"enabled": False})
    assert (disabled.requested_by, disabled.next) == ("alice", None)
    enabled = await desk.service.change(ROOT, made.id, {"enabled": True})
    assert (enabled.requested_by, enabled.via, enabled.next) == ("root", Via.API, minutes(1))
    changed = await desk.service.change(ALICE, made.id, {"params": b'"secret"', "grace": 5})
    assert (changed.requested_by, changed.grace) == ("alice", 5)
    *_, entry = await Events(desk.engine.fetch).after(0, 100)
    assert entry.event.detail == {
        "schedule": made.id,
        "name": "smoke",
        "grace": 5,
        "grace_before": 600,
        "requested_by": "alice",
        "requested_by_before": "root",
        "params_changed": True,
        "generation_before": 1,
    }
    refused = await desk.service.change(ROOT, made.id, {"cron": "* * * * * *"})
    assert (refused.code, refused.more) == ("invalid", {"field": "cron"})
    assert await desk.rows.find(made.id) == changed


async def test_bounds_of_their_number(desk):
    desk.service = desk.node(desk.engine, of_target=2, in_all=3)
    await desk.make()
    await desk.make()
    prepared = desk.service.prepare(ROOT, WantedSchedule("n", "* * * * *", "UTC", ice_name="LAB-1"))
    assert (await desk.service.create(ROOT, prepared)).code == "too-many-schedules"
    await desk.make(pool="builders")
    prepared = desk.service.prepare(ROOT, WantedSchedule("n", "* * * * *", "UTC", pool="builders"))
    assert (await desk.service.create(ROOT, prepared)).code == "too-many-schedules"


# --- everything at once --------------------------------------------------------------------------

CRONS = (
    ("*/7 * * * *", "UTC", {}),
    ("30 2 * * *", "Europe/Berlin", {"pool": "builders", "grace": 7200}),
    ("0 */2 * * *", "Australia/Lord_Howe", {"grace": 60}),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0, 500)),
        st.tuples(st.just("set back"), st.floats(0, 30)),
        st.tuples(st.just("race"), st.floats(0, 30)),
        st.tuples(st.sampled_from(["dies before", "dies after", "away"]), st.floats(0, 90)),
        st.tuples(st.sampled_from(["finish", "run"]), st.floats(0, 10)),
    ),
    max_size=40,
)
BEGIN = datetime.fromisoformat("2026-03-28T12:00:00Z")
"""A day before clocks change in Berlin, a week before they do in Lord Howe."""


@given(STEPS)
@settings(
    max_examples=settings.default.max_examples // 4, suppress_health_check=[HealthCheck.too_slow]
)
def test_each_occurrence_is_accounted_for_once(steps):
    """In minutes; three schedules, two nodes, clocks set back, deaths and outages."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_story(Path(folder), steps))


async def _story(folder: Path, steps) -> None:
    async with open_sqlite(folder / "ice.db") as engine:
        await add_user(engine, "root", Role.ADMIN)
        await add_user(engine, "alice")
        await add_registered(engine)
        pool = Pool("builders", "", None, {"os": "linux"}, "root", NOW)
        await engine.write(lambda transaction: pools.add(transaction, pool))
        desk = Desk(engine, now=BEGIN)
        made = [await desk.make(cron=cron, timezone=zone, **how) for cron, zone, how in CRONS]
        asked = 0
        for what, count in steps:
            asked += await _step(desk, made, what, count)
        desk.now = max(desk.now, BEGIN) + timedelta(days=1)
        await desk.service.decide_due()
        for one in made:
            await _check(desk, one.id)
        found = [one for each in made for one in await desk.operations(each.id)]
        assert sum(one.idempotency_key is None for one in found) == asked


async def _step(desk: Desk, made, what: str, count: float) -> int:
    """Returns how many operations were asked for without an occurrence."""
    if what == "set back":
        desk.now -= timedelta(minutes=count)
        await desk.service.realign()
        return 0
    desk.now += timedelta(minutes=count)
    match what:
        case "dies before" | "dies after":
            await _die(desk, fails=what == "dies before")
        case "pass":
            await desk.service.decide_due()
        case "race":
            other = desk.node(desk.engine)
            await asyncio.gather(desk.service.decide_due(), other.decide_due())
        case "finish":
            await _finish(desk, made)
        case "run":
            assert not isinstance(await desk.service.run(ROOT, made[0].id), Problem)
    return int(what == "run")


async def _die(desk: Desk, *, fails: bool) -> None:
    """Die at the first commit of what is due, before it or after it."""
    if not await desk.rows.due(desk.now, 1):
        return
    gate = desk.between.hold("write", fails=fails)
    dying = asyncio.create_task(desk.service.decide_due())
    await gate.reached.wait()
    dying.cancel()
    await asyncio.wait([dying])


async def _finish(desk: Desk, made) -> None:
    for one in made:
        for operation in await desk.operations(one.id):
            if not operation.is_finished:
                await desk.finish(operation)


async def _check(desk: Desk, schedule_id: str) -> None:
    """The history and the operations say of each instant, once and in order, what became of it."""
    schedule = await desk.rows.find(schedule_id)
    rows = await desk.history(schedule_id)
    assert faults_of(schedule, rows, await desk.operations(schedule_id)) == []
    # Earlier than its first one, if the clock was set back before that.
    assert rows[0].at <= Cron.parse(schedule.cron, schedule.timezone).next_after(BEGIN)
