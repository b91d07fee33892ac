"""The audit log is proven, pruned behind a checkpoint, and proven again; nothing else may go."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.hash_chain import Head
from gateway.services.audit import Audit, Pruned
from gateway.store.engine import StoreUnavailable
from tests.contract.domain import (
    NOW,
    ROOT,
    RULE_BROKEN,
    an_event,
    append,
    log,
    minutes,
    refusing,
    unguarded,
)


@pytest.fixture
async def audit(engine):
    """An audit of ten events, a minute apart; it is ten minutes past."""
    await append(
        engine, *(replace(an_event(f"act-{each}"), at=minutes(each)) for each in range(1, 10))
    )
    return Audit(engine=engine, clock=lambda: minutes(10))


async def numbers(engine):
    return [entry.seq for entry in await log(engine)]


async def run(engine, statement):
    return await engine.write(lambda transaction: transaction.run(statement))


async def test_what_is_old_is_pruned_and_the_rest_is_proven(engine, audit):
    head = await audit.head()
    old = (await log(engine))[3]
    assert await audit.prune(ROOT, minutes(4)) == Pruned(4, 4)
    assert await numbers(engine) == list(range(5, 12))
    [*_, checkpoint] = await log(engine)
    assert checkpoint.event.action == "prune"
    assert checkpoint.event.detail == {"pruned_to": 4, "digest": old.digest()}
    assert (await audit.verify(head)).fault is None
    assert (await audit.verify(Head(4, old.digest()))).fault is None
    assert "event 3 was pruned" in (await audit.verify(Head(3, "0" * 64))).fault
    assert await audit.prune(ROOT, minutes(4)) == Pruned(0, 4)
    assert await numbers(engine) == list(range(5, 12)), "nothing was old, so nothing was written"


async def test_all_may_go_but_the_checkpoint_and_numbers_go_on(engine, audit):
    assert (await audit.prune(ROOT, minutes(60))).seq == 10
    assert await numbers(engine) == [11]
    await append(engine, an_event("next"))
    assert await numbers(engine) == [11, 12]
    assert (await audit.verify()).fault is None
    assert (await audit.prune(ROOT, minutes(60))).seq == 12
    assert await numbers(engine) == [13]
    assert (await audit.verify(await audit.head())).fault is None


class Dying:
    """An engine that fails after so many writes."""

    def __init__(self, engine, writes):
        self._engine = engine
        self._left = writes

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def write(self, unit):
        if not self._left:
            raise StoreUnavailable("as if killed")
        self._left -= 1
        return await self._engine.write(unit)


@pytest.mark.parametrize("batches", range(3))
async def test_a_pruning_that_is_broken_off_leaves_a_proven_log(engine, audit, batches):
    head = await audit.head()
    dying = Dying(engine, writes=1 + batches)  # the checkpoint comes first
    with refusing(StoreUnavailable, "the pruning"):
        await Audit(engine=dying, clock=lambda: minutes(10), batch=2).prune(ROOT, minutes(6))
    assert (await numbers(engine))[0] == 1 + 2 * batches
    assert (await audit.verify(head)).fault is None
    assert await audit.prune(ROOT, minutes(6)) == Pruned(6 - 2 * batches, 6)
    assert await numbers(engine) == list(range(7, 12)), "one checkpoint was to be enough"
    assert (await audit.verify(head)).fault is None


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM ice_events WHERE seq = 5",
        "DELETE FROM ice_events WHERE seq <= 5",
        "DELETE FROM ice_events WHERE seq = 11",
        "DELETE FROM ice_events",
    ],
)
async def test_a_checkpoint_covers_no_event_behind_it(engine, audit, statement):
    await audit.prune(ROOT, minutes(4))
    before = await log(engine)
    with refusing(RULE_BROKEN, statement):
        await run(engine, statement)
    assert await log(engine) == before


async def test_a_broken_chain_is_not_pruned(engine, audit):
    await unguarded(engine)
    await run(engine, "UPDATE ice_events SET actor = 'nobody' WHERE seq = 3")
    assert (await audit.verify()).fault == "event 3 was altered"
    assert "event 3 was altered" in await audit.prune(ROOT, minutes(8))
    assert len(await numbers(engine)) == 10


async def test_a_checkpoint_that_says_nothing_covers_nothing(engine, audit):
    await audit.prune(ROOT, minutes(4))
    await unguarded(engine)
    await run(engine, "UPDATE ice_events SET detail = '[1]' WHERE action = 'prune'")
    assert (await audit.verify()).fault == "events 1 to 4 were removed"


async def test_an_audit_is_right_though_the_log_is_pruned_meanwhile(engine, audit):
    audit = Audit(engine=engine, clock=lambda: minutes(10), batch=1)
    head = await audit.head()
    found, _ = await asyncio.gather(audit.verify(head), audit.prune(ROOT, minutes(8)))
    assert found.fault is None


async def test_of_two_prunings_at_once_one_leaves_a_checkpoint(engine, audit):
    """The slower has looked at a log that the quicker has pruned when it comes to write."""

    class Slow:
        def __init__(self):
            self.quicker = True

        def __getattr__(self, name):
            return getattr(engine, name)

        async def write(self, unit):
            if self.quicker:
                self.quicker = False
                await audit.prune(ROOT, minutes(4))
            return await engine.write(unit)

    slower = Audit(engine=Slow(), clock=lambda: minutes(10))
    assert await slower.prune(ROOT, minutes(4)) == Pruned(0, 4)
    assert await numbers(engine) == list(range(5, 12)), "one checkpoint was expected"
    assert (await audit.verify()).fault is None


# PostgreSQL takes no text that is none.


@pytest.mark.parametrize("open_store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ice_events SET actor = CAST(x'ff' AS TEXT) WHERE seq = 3",
        "UPDATE ice_events SET previous = CAST(x'ff' AS TEXT) WHERE seq = 3",
    ],
)
async def test_an_event_that_is_no_text_is_named(engine, audit, statement):
    await unguarded(engine)
    await run(engine, statement)
    assert (await audit.verify()).fault == "event 3 was altered"
    assert "nothing was pruned" in await audit.prune(ROOT, minutes(8))


@pytest.mark.parametrize("open_store", ["sqlite"], indirect=True)
async def test_a_checkpoint_that_is_no_text_covers_nothing(engine, audit):
    await audit.prune(ROOT, minutes(4))
    await unguarded(engine)
    await run(engine, "UPDATE ice_events SET detail = CAST(x'ff' AS TEXT) WHERE action = 'prune'")
    assert (await audit.verify()).fault == "events 1 to 4 were removed"


async def test_readers_share_a_verdict_for_a_minute(engine, audit):
    now = [NOW]
    shared = Audit(engine=engine, clock=lambda: now[0])
    first, at = await shared.shared_verdict()
    await append(engine, an_event())
    assert await shared.shared_verdict() == (first, at)
    now[0] = minutes(2)
    again, at = await shared.shared_verdict()
    assert (again.head.seq, at) == (11, minutes(2))
