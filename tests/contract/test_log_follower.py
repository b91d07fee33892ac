"""The tail: every event once and in order, whoever committed it; never current without having compared."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.node.log_follower import LogFollower
from gateway.store.engine import StoreUnavailable
from tests.contract.domain import Between, an_event, append, log, refusing, soon, unguarded


class Follower:
    """A tail that notes what it does: the numbers it applies, and `compare`."""

    def __init__(self, engine, **options) -> None:
        self.between = Between(engine)
        self.did: list[int | str] = []
        self.compared = asyncio.Event()
        self.compare_fails = False
        self.tail = LogFollower(self.between, self._apply, self._compare, **options)

    def _apply(self, entry) -> None:
        assert self.tail.position < entry.seq, "a position was expected to be of what is applied"
        self.did.append(entry.seq)

    async def _compare(self) -> None:
        assert not self.tail.current, "no node was expected to be current while it compares"
        self.did.append("compare")
        self.compared.set()
        if self.compare_fails:
            raise StoreUnavailable("the store is away again")

    @contextlib.asynccontextmanager
    async def running(self):
        await self.tail.start()
        task = asyncio.create_task(self.tail.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), f"the tail was expected to go on, but {task}"

    async def reached(self, seq):
        await soon(self.tail.wait_for_event(seq), f"event {seq} applied")

    async def loses_its_store(self):
        """Return once the tail has noticed."""
        self.between.away = True
        await soon(self._until(lambda: not self.tail.current), "notice of the store's loss")

    async def is_current(self):
        await soon(self._until(lambda: self.tail.current), "a tail that is current")

    @staticmethod
    async def _until(holds):
        while not holds():  # noqa: ASYNC110 - there is no event for a tail's state
            await asyncio.sleep(0)


@pytest.fixture
def follower(engine):
    return Follower(engine)


async def test_events_are_applied_once_and_in_order(engine, follower):
    await append(engine, an_event("before the start"))
    async with follower.running():
        assert follower.tail.current
        assert follower.did == ["compare"], "a tail was expected to begin at the end of the log"
        await asyncio.gather(*(append(engine, an_event()) for _ in range(50)))
        await append(engine, an_event(), an_event())
        await follower.reached(54)
    assert follower.did == ["compare", *range(3, 55)]
    assert follower.tail.position == 54


async def test_more_than_a_batch_is_applied_at_once(engine):
    follower = Follower(engine, batch=3)
    async with follower.running():
        for count in (10, 3):
            await append(engine, *[an_event()] * count)
        await follower.reached(14)
    assert follower.did == ["compare", *range(2, 15)]


async def test_waiters_wake_when_their_event_has_been_applied(engine, follower):
    async with follower.running():
        await follower.reached(1)  # alice's: it was there before
        next_ones = [asyncio.create_task(follower.tail.wait_for_event(seq)) for seq in (2, 2, 3)]
        impatient = asyncio.create_task(follower.tail.wait_for_event(2))
        await asyncio.wait([impatient], timeout=0)
        impatient.cancel()
        await append(engine, an_event())
        await soon(asyncio.gather(*next_ones[:2]), "both waiters for event 2 awake")
        assert not next_ones[2].done(), "who waits for event 3 was expected to sleep on"
        await append(engine, an_event())
        await soon(next_ones[2], "the waiter for event 3 awake")


async def test_a_commit_of_another_process_is_seen(follower, open_store):
    async with open_store() as elsewhere, follower.running():
        for seq in (2, 3):
            await append(elsewhere, an_event())
            await follower.reached(seq)
    assert follower.did == ["compare", 2, 3]


async def test_a_lost_wake_up_loses_nothing(engine, follower):
    follower.between.changed = asyncio.Event()  # which nobody ever sets
    async with follower.running():
        await append(engine, an_event())
        await follower.reached(2)
    assert follower.did == ["compare", 2]


async def test_a_tail_is_not_current_before_it_has_started(follower):
    assert not follower.tail.current
    follower.between.away = True
    with refusing(StoreUnavailable, "the start without a store"):
        await follower.tail.start()
    assert not follower.tail.current


async def test_a_tail_that_was_cut_off_compares_before_it_is_current(engine, follower):
    async with follower.running():
        follower.did.clear()
        await follower.loses_its_store()
        assert "away" in follower.tail.fault, "the fault was expected to say why"
        await append(engine, an_event(), an_event())
        follower.compare_fails = True
        follower.compared.clear()
        follower.between.away = False
        await soon(follower.compared.wait(), "a comparison with the table")
        await follower.reached(3)
        assert follower.did[:3] == [2, 3, "compare"], "it was expected to catch up, then compare"
        assert not follower.tail.current, "a failed comparison was expected to count for nothing"
        follower.compare_fails = False
        await follower.is_current()
        assert follower.did[2:] == ["compare"] * len(follower.did[2:]), "events are applied once"
        follower.did.clear()
        await append(engine, an_event())
        await follower.reached(4)
        assert follower.did == [4], "a current tail was expected not to compare again"
    assert follower.tail.position == len(await log(engine))


async def test_whoever_waits_in_vain_is_forgotten(follower):
    async with follower.running():
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await follower.tail.wait_for_event(99)
        assert not follower.tail._waiters, "memory must not grow with what never happens"


# --- another log than the one that was followed --------------------------------------------------


async def rewrite(engine, *statements):
    """As whoever puts another database in its place; the engine's own users could not."""

    await unguarded(engine)

    async def unit(transaction):
        for statement in statements:
            await transaction.run(statement)

    await engine.write(unit)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM ice_events WHERE seq > 1",
        "DELETE FROM ice_events",
        "UPDATE ice_events SET actor = 'mallory' WHERE seq = 3",
    ],
    ids=["an older copy", "an empty one", "another history"],
)
async def test_a_log_that_is_not_the_one_that_was_followed_is_condemned(
    engine, follower, statement
):
    async with follower.running():
        await append(engine, an_event(), an_event())
        await follower.reached(3)
        await rewrite(engine, statement)
        await soon(follower._until(lambda: not follower.tail.current), "notice of another log")
        assert "event 3 is missing or different" in follower.tail.fault
        assert follower.tail.fault in follower.between.condemned
        assert "start it again" in follower.tail.fault


async def test_another_log_is_noticed_after_a_start_without_news(engine, follower):
    await append(engine, an_event(), an_event())
    async with follower.running():
        await rewrite(engine, "DELETE FROM ice_events WHERE seq = 3")
        await soon(follower._until(lambda: not follower.tail.current), "notice of another log")


async def test_a_log_whose_beginning_was_pruned_is_still_the_same(engine, follower):
    async with follower.running():
        await append(engine, an_event())
        await follower.reached(2)
        follower.between.away = True
        await soon(follower._until(lambda: not follower.tail.current), "the loss of the store")
        await append(engine, an_event())
        await rewrite(engine, "DELETE FROM ice_events WHERE seq < 3")
        follower.between.away = False
        await follower.reached(3)
        await follower.is_current()
    assert not follower.between.condemned


async def test_what_was_pruned_before_it_was_read_is_made_up_for(engine, follower):
    """Nobody can read it any more, but the table says what it did: whom to drop, for one."""
    await follower.tail.start()
    await append(engine, an_event("deregister"), an_event("prune"))
    await rewrite(engine, "DELETE FROM ice_events WHERE seq < 3")
    await follower.tail.poll()
    assert follower.did == ["compare", 3, "compare"]
    assert follower.tail.current


async def test_a_wake_up_taken_by_a_look_that_failed_is_not_lost(engine, follower):
    """The events may not be readable just when news of them was."""
    async with follower.running():
        gate = follower.between.hold("follow", fails=True)
        await append(engine, an_event())
        await soon(gate.reached.wait(), "a look at the log")
        gate.open.set()
        await follower.reached(2)
        await follower.is_current()
    assert follower.did == ["compare", 2, "compare"]
