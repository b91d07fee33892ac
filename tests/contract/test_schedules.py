"""`ice_schedules` and `ice_schedule_occurrences`."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from client.protocol import OperationKind
from gateway.core.audit_event import Via
from gateway.core.operation import Move, Operation
from gateway.core.pool import Pool
from gateway.core.schedule import Occurrence, Schedule, SkipReason
from gateway.store import operations, pools, schedules
from gateway.store.schedules import KEPT, ScheduleFilter, Schedules
from tests.contract.domain import NOW, add, an_ice, minutes


def a_schedule(name: str = "s1", **how: object) -> Schedule:
    asked = {
        "id": name,
        "name": f"The {name}",
        "ice_name": "lab-1",
        "pool": None,
        "params": b'{"suite": "smoke"}',
        "cron": "*/10 * * * *",
        "timezone": "Europe/Berlin",
        "requested_by": "alice",
        "via": Via.API,
        "createdon": NOW,
    }
    return Schedule(**(asked | how)).checked(NOW)  # type: ignore[arg-type]


@pytest.fixture
async def engine(engine):
    """The engine with an ICE of alice, one without a user, and a pool."""
    await add(engine, an_ice())
    await add(engine, an_ice("Build-7", None))
    pool = Pool("Builders", "", None, {"os": "linux"}, "root", NOW)
    await engine.write(lambda transaction: pools.add(transaction, pool))
    return engine


async def added(engine, *found: Schedule) -> list[Schedule]:
    async def unit(transaction):
        for one in found:
            await schedules.add(transaction, one)

    await engine.write(unit)
    return list(found)


async def names(engine, **where: object) -> list[str]:
    found = await Schedules(engine.fetch).brief(ScheduleFilter(**where), 100)
    return [one.id for one in found]


async def test_a_schedule_is_kept_as_it_was_made(engine):
    [kept] = await added(engine, a_schedule())
    rows = Schedules(engine.fetch)
    assert await rows.find("s1") == kept
    assert await rows.names(["s1", "s2"]) == {"s1": kept.name}
    assert await rows.find("s2") is None
    changed = replace(kept, name="x", enabled=False, next=None, last=NOW, former_user="alice")
    await engine.write(lambda transaction: schedules.update(transaction, changed))
    assert await engine.write(lambda transaction: schedules.find(transaction, "s1")) == changed
    await engine.write(lambda transaction: schedules.delete(transaction, "s1"))
    assert await rows.find("s1") is None


async def test_listings_are_filtered_and_the_newest_come_first(engine):
    of_build = a_schedule("s2", ice_name="Build-7", createdon=minutes(1))
    of_pool = a_schedule("s3", ice_name=None, pool="Builders", createdon=minutes(1))
    lost = a_schedule("s4", former_user="bob", createdon=minutes(2))
    await added(engine, a_schedule(), of_build, of_pool, lost)
    assert await names(engine) == ["s4", "s3", "s2", "s1"]
    assert await names(engine, ice_name="BUILD-7") == ["s2"]
    assert await names(engine, pool="builders") == ["s3"]
    assert await names(engine, owner="alice") == ["s1"]
    assert await names(engine, text="BUILD") == ["s3", "s2"]
    assert await names(engine, text="the s1") == ["s1"]
    rows = Schedules(engine.fetch)
    assert await rows.count(ScheduleFilter(text="build")) == 2
    page, more = await rows.page(ScheduleFilter(), 2)
    assert ([one.id for one in page], more) == (["s4", "s3"], True)
    assert page[0].params == b'{"suite": "smoke"}'
    rest, more = await rows.page(ScheduleFilter(), 2, page[-1].place)
    assert ([one.id for one in rest], more) == (["s2", "s1"], False)
    assert await rows.page(ScheduleFilter(pool="other"), 2) == ([], False)
    [brief, *_] = await rows.brief(ScheduleFilter(), 1, offset=1)
    assert (brief.id, brief.params) == ("s3", b"null")


async def test_a_page_of_large_parameters_holds_fewer(engine):
    large = b'"' + b"x" * 999_000 + b'"'
    await added(engine, *(a_schedule(f"s{place}", params=large) for place in range(6)))
    page, more = await Schedules(engine.fetch).page(ScheduleFilter(), 6)
    assert (len(page), more) == (4, True)


async def test_counts_are_of_the_target_and_of_all(engine):
    await added(engine, a_schedule(), a_schedule("s2"), a_schedule("s3", ice_name="Build-7"))
    new = a_schedule("s4", ice_name="LAB-1")
    assert await engine.write(lambda transaction: schedules.counts(transaction, new)) == (2, 3)
    new = a_schedule("s4", ice_name=None, pool="builders")
    assert await engine.write(lambda transaction: schedules.counts(transaction, new)) == (0, 3)


async def test_the_due_ones_come_in_order_and_disabled_ones_never(engine):
    soon, later = a_schedule("b"), a_schedule("a", cron="30 * * * *")
    await added(engine, soon, later, a_schedule("c", enabled=False))
    rows = Schedules(engine.fetch)
    assert await rows.earliest() == soon.next == minutes(10)
    assert await rows.due(minutes(9), 10) == []
    found = await rows.due(minutes(60), 10)
    assert [schedule_id for _, schedule_id in found] == ["b", "a"]
    assert await rows.due(minutes(60), 10, after=found[0]) == found[1:]
    assert [one.id for one in await rows.enabled(10)] == ["a", "b"]
    assert [one.id for one in await rows.enabled(10, "a")] == ["b"]
    await engine.write(lambda transaction: schedules.stop(transaction, "b"))
    assert await rows.earliest() == later.next


async def test_one_of_two_that_move_it_on_wins(engine):
    [old] = await added(engine, a_schedule())
    new = replace(old, next=minutes(20), last=minutes(10))

    async def unit(transaction):
        return await schedules.move_on(transaction, old, new)

    assert await engine.write(unit)
    assert not await engine.write(unit)
    assert await Schedules(engine.fetch).find("s1") == new


async def test_history_is_kept_as_far_as_it_is_bounded(engine):
    await added(engine, a_schedule(), a_schedule("s2"))
    made = [Occurrence(minutes(n), NOW, f"o{n}", None) for n in range(KEPT)]
    skipped = Occurrence(minutes(KEPT), NOW, None, SkipReason.MISSED, 7)
    other = Occurrence(NOW, NOW, "other", None)
    await engine.write(lambda transaction: schedules.record(transaction, "s2", [other]))
    await engine.write(lambda transaction: schedules.record(transaction, "s1", made))
    await engine.write(lambda transaction: schedules.record(transaction, "s1", [skipped]))
    rows = Schedules(engine.fetch)
    found = await rows.occurrences("s1", 2 * KEPT)
    assert [one.occurrence for one in reversed(found)] == [*made[1:], skipped]
    assert await rows.occurrences("s1", 1, found[0].number) == [found[1]]
    both = [a_schedule(), a_schedule("s2"), a_schedule("s3")]
    assert await rows.last(both) == {"s1": skipped, "s2": other}
    await engine.write(lambda transaction: schedules.delete(transaction, "s1"))
    assert await rows.occurrences("s1", 1) == []
    assert len(await rows.occurrences("s2", 2)) == 1


async def test_an_unfinished_operation_is_found_by_its_schedule(engine):
    [one] = await added(engine, a_schedule())
    due = minutes(10)
    operation = one.operation("o1", due, due)
    assert not await schedules.was_requested(engine.fetch, one, due)
    await engine.write(lambda transaction: operations.insert(transaction, operation))
    assert operation.kind is OperationKind.SCHEDULE
    assert await schedules.was_requested(engine.fetch, one, due)
    assert await schedules.has_unfinished(engine.fetch, "s1")
    assert not await schedules.has_unfinished(engine.fetch, "s2")
    ended = operation.moved(Move.CANCEL, due, error=b"{}")
    assert isinstance(ended, Operation)
    await engine.write(lambda transaction: operations.replace(transaction, operation, ended))
    assert not await schedules.has_unfinished(engine.fetch, "s1")


async def test_an_operation_of_a_pool_is_known_by_its_key(engine):
    [one] = await added(engine, a_schedule(ice_name=None, pool="Builders"))
    operation = one.operation("o1", NOW, NOW)
    await engine.write(lambda transaction: operations.insert(transaction, operation))
    assert await schedules.was_requested(engine.fetch, one, NOW)


async def test_a_pause_counts_until_it_ends(engine):
    assert not await schedules.is_paused(engine.fetch, "lab-1", NOW)

    async def pause(transaction):
        sql = "UPDATE ice_tokens SET pausedon = $1, pauseduntil = $2 WHERE ice_name = 'lab-1'"
        ends = NOW + timedelta(minutes=5)
        await transaction.run(
            sql, "2026-11-22T09:00:00.000000Z", f"{ends:%Y-%m-%dT%H:%M:%S}.000000Z"
        )

    await engine.write(pause)
    assert await schedules.is_paused(engine.fetch, "lab-1", NOW)
    assert not await schedules.is_paused(engine.fetch, "lab-1", minutes(5))


async def test_those_of_a_former_user_are_disabled(engine):
    mine, other = a_schedule("s1"), a_schedule("s2", requested_by="root")
    elsewhere = a_schedule("s3", ice_name="Build-7")
    command = a_schedule("s4", via=Via.COMMAND)
    await added(engine, mine, other, elsewhere, command)
    moved = [("LAB-1", "alice")]
    await engine.write(lambda transaction: schedules.leave_to_former_users(transaction, moved))
    rows = Schedules(engine.fetch)
    disabled = replace(mine, enabled=False, next=None, former_user="alice")
    assert await rows.find("s1") == disabled
    assert await rows.find("s2") == other
    assert await rows.find("s3") == elsewhere
    assert await rows.find("s4") == command
