"""How an ICE and an operation of a pool are chosen, and why one waits, on both engines."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from client.protocol import OperationKind
from gateway.core.consent import accepts_to_text
from gateway.core.ice import IceType
from gateway.core.operation import Move, Operation, State, Waits
from gateway.core.pool import Pool
from gateway.core.times import to_text
from gateway.store import ices, operations, pools, work_queue
from gateway.store.engine import as_json
from gateway.store.operations import Operations
from gateway.store.waits import Backlog, Waiting, backlog, waits
from gateway.store.work_queue import Group, Worker
from tests.contract.domain import (
    NOW,
    a_connection,
    add_registered,
    an_event,
    minutes,
    opened,
    record,
)

LATER = NOW + timedelta(hours=1)
"""Late enough that a session without a word accepts everything."""


@pytest.fixture
async def lab(engine):
    """Two pools and three ICEs of the first, one of which belongs to the second."""
    for name in ("lab", "gpu"):
        pool = Pool(name, "", None, {name: "yes"}, "root", NOW)
        await engine.write(lambda transaction, pool=pool: pools.add(transaction, pool))
    for number in (1, 2, 3):
        await join(
            engine, f"lab-{number}", {"lab": "yes"} | ({"gpu": "yes"} if number == 3 else {})
        )
    return engine


async def join(engine, name, labels, user="alice"):
    ice = await add_registered(engine, name, user)
    await engine.write(
        lambda transaction: ices.describe(transaction, [(ice, labels, "", an_event("label", ice))])
    )
    await record(engine, opened=[opened(ice, a_connection(f"session of {name}"))])
    return ice


async def request(engine, name, pool=None, ice_name=None, kind=OperationKind.EXECUTE, **others):
    asked = replace(
        Operation.request(
            name, ice_name, kind, b"1", requested_by="root", now=NOW, pool=pool, **others
        )
    )
    await engine.write(lambda transaction: operations.insert(transaction, asked))
    return asked


def worker(name, **others):
    usual = Worker(name, IceType.NORMAL, 1, f"session of {name}", "alice", ())
    return replace(usual, **others)


async def claim(engine, name, **others):
    found = await engine.write(
        lambda transaction: work_queue.claim(transaction, worker(name, **others), LATER)
    )
    return None if found is None else found.id


async def free(engine, limit=9, pool="lab", node="node-a", kind=OperationKind.EXECUTE, **group):
    wanted = Group(**{"kind": kind, "requested_by": "root", "refused_by": "[]", "count": 1} | group)
    return await work_queue.free_ices(engine.fetch, pool, wanted, node=node, now=LATER, limit=limit)


async def finish(engine, operation, at):
    async def unit(transaction):
        old = await operations.Operations(transaction.fetch).find(operation)
        assert await operations.replace(transaction, old, old.moved(Move.SUCCEED, at))

    await engine.write(unit)


async def cancel(engine, operation):
    async def unit(transaction):
        old = await operations.Operations(transaction.fetch).find(operation)
        await operations.replace(transaction, old, old.moved(Move.CANCEL, LATER, error=b"{}"))

    await engine.write(unit)


async def pause(engine, name, until=None):
    await engine.write(
        lambda transaction: transaction.run(
            "UPDATE ice_tokens SET pausedon = $1, pausedby = 'root', pauseduntil = $2"
            " WHERE ice_name = $3",
            to_text(NOW),
            until and to_text(until),
            name,
        )
    )


async def test_of_many_claims_for_one_operation_one_wins(lab):
    await request(lab, "one", "lab")
    found = await asyncio.gather(*(claim(lab, f"lab-{number}") for number in (1, 2, 3)))
    assert sorted(filter(None, found)) == ["one"]
    assert await work_queue.waiting_pools(lab.fetch) == ["lab"]  # it may come back


async def test_who_works_for_a_pool(lab):
    everyone = ["lab-1", "lab-2", "lab-3"]
    await request(lab, "own", ice_name="lab-2")
    await request(lab, "one", "lab")
    assert await work_queue.working(lab.fetch, everyone) is None
    await claim(lab, "lab-1")
    assert await work_queue.working(lab.fetch, everyone) == ["lab-1"]
    assert await work_queue.working(lab.fetch, ["lab-2"]) == []


async def test_the_oldest_of_its_pools_that_an_ice_may_run(lab):
    await request(lab, "gpu", "gpu")
    await request(lab, "later", "lab", kind=OperationKind.SCHEDULE, run_at=LATER + timedelta(1))
    await request(lab, "debug", "lab", kind=OperationKind.DEBUG)
    await request(lab, "lab", "lab")
    assert await claim(lab, "lab-1", owner_only=[OperationKind.DEBUG]) == "lab"
    assert await claim(lab, "lab-2") == "debug"
    await finish(lab, "debug", LATER)
    assert await claim(lab, "lab-3") == "gpu"
    assert await claim(lab, "lab-1", session="x") is None


async def test_what_a_session_has_refused_is_not_for_it(lab):
    asked = await request(lab, "one", "lab")
    assert await claim(lab, "lab-1") == "one"

    async def decline(transaction):
        sent = await operations.Operations(transaction.fetch).find("one")
        back = sent.declined("session of lab-1", LATER, b"1")
        assert await operations.replace(transaction, sent, back)
        return back

    back = await lab.write(decline)
    assert (back.state, back.ice_name, back.sent) == (State.QUEUED, None, None)
    assert await claim(lab, "lab-1") is None
    assert await free(lab, refused_by=back.refused_by.decode()) == ["lab-2", "lab-3"]
    assert (await waits(lab.fetch, [back], LATER)) == {}
    assert asked.id == back.id
    assert await claim(lab, "lab-1", session="another") == "one"


@pytest.mark.parametrize("why", ["own", "active", "paused", "label", "generation"])
async def test_an_ice_that_may_not_takes_none(lab, why):
    await request(lab, "one", "lab")
    others = {}
    match why:
        case "own":
            await request(lab, "own", ice_name="lab-1")
        case "active":
            await request(lab, "other", "gpu")
            other = worker("lab-1")
            sent = replace(await request(lab, "own", ice_name="lab-1"), state=State.SENT, sent=NOW)
            assert await lab.write(lambda each: work_queue.send(each, sent, other, LATER))
        case "paused":
            await pause(lab, "lab-1")
        case "label":
            await lab.write(
                lambda transaction: transaction.run(
                    "UPDATE ice_tokens SET labels = '{}' WHERE ice_name = 'lab-1'"
                )
            )
        case _:
            others = {"generation": 2}
    assert await claim(lab, "lab-1", **others) is None
    if not others:
        assert await free(lab) == ["lab-2", "lab-3"]
    assert await claim(lab, "lab-2") == "one"


async def test_work_of_its_own_that_is_not_due_or_not_accepted_is_no_reason(lab):
    await request(lab, "own", ice_name="lab-1", kind=OperationKind.DEBUG)
    await request(
        lab, "due", ice_name="lab-1", kind=OperationKind.SCHEDULE, run_at=LATER + timedelta(1)
    )
    await lab.write(
        lambda transaction: transaction.run(
            "UPDATE ice_tokens SET accepts = $1 WHERE ice_name = 'lab-1'",
            accepts_to_text(frozenset({OperationKind.EXECUTE})),
        )
    )
    await request(lab, "one", "lab")
    assert await free(lab, limit=1) == ["lab-1"]
    assert await claim(lab, "lab-1", owner_only=[OperationKind.DEBUG]) == "one"


async def test_those_that_idle_longest_come_first(lab):
    for name, at in (("lab-1", 20), ("lab-2", 10)):
        await request(lab, f"of {name}", "lab")
        assert await claim(lab, name) == f"of {name}"
        await finish(lab, f"of {name}", minutes(at))
    assert await free(lab) == ["lab-3", "lab-2", "lab-1"]
    assert await free(lab, limit=2) == ["lab-3", "lab-2"]
    await pause(lab, "lab-3", LATER + timedelta(minutes=1))
    await pause(lab, "lab-2", LATER)
    assert await free(lab) == ["lab-2", "lab-1"]
    assert await free(lab, node="node-b") == []
    assert await free(lab, pool="gpu") == []


async def test_who_was_sent_an_operation_of_a_pool_and_has_not_accepted_it(lab):
    await request(lab, "one", "lab")
    assert await claim(lab, "lab-1") == "one"
    assert await work_queue.sent_to(lab.fetch, "lab", "node-a") == ["lab-1"]
    assert await work_queue.sent_to(lab.fetch, "lab", "node-b") == []
    assert await work_queue.sent_to(lab.fetch, "gpu", "node-a") == []
    await finish(lab, "one", LATER)
    assert await work_queue.sent_to(lab.fetch, "lab", "node-a") == []


async def test_what_waits_in_a_pool(lab):
    assert await work_queue.pool_queue(lab.fetch, "lab", LATER) is None
    run_at = LATER + timedelta(hours=1)
    await request(lab, "later", "lab", kind=OperationKind.SCHEDULE, run_at=run_at)
    found = await work_queue.pool_queue(lab.fetch, "lab", LATER)
    assert (list(found.due), found.next_due) == ([], run_at)
    for name in ("one", "two"):
        await request(lab, name, "lab")
    found = await work_queue.pool_queue(lab.fetch, "lab", LATER)
    assert list(found.due) == [Group(OperationKind.EXECUTE, work_queue.NOBODY, "[]", 2)]
    assert found.next_due == run_at


async def test_why_operations_wait(lab):
    """All in one call, as a listing asks."""
    await join(lab, "away", {"none": "yes"})
    await record(lab, closed=["session of away"])
    held = accepts_to_text(frozenset())
    asked = [
        (await request(lab, "first", ice_name="lab-1"), None),
        (await request(lab, "second", ice_name="lab-1"), Waits.OPERATION_BEFORE),
        (
            await request(
                lab,
                "at",
                ice_name="lab-1",
                kind=OperationKind.SCHEDULE,
                run_at=LATER + timedelta(1),
            ),
            Waits.RUN_AT,
        ),
        (await request(lab, "offline", ice_name="away"), Waits.OFFLINE),
        (await request(lab, "paused", ice_name="lab-2"), Waits.PAUSED),
        (await request(lab, "held", ice_name="lab-3"), Waits.NOT_ACCEPTED),
        (await request(lab, "in pool", "lab"), Waits.ALL_BUSY),
        (await request(lab, "no one takes it", "gpu"), Waits.NOT_ACCEPTED),
    ]
    await pause(lab, "lab-2")
    await lab.write(
        lambda transaction: transaction.run(
            "UPDATE ice_tokens SET accepts = $1 WHERE ice_name = 'lab-3'", held
        )
    )
    found = await waits(lab.fetch, [operation for operation, _ in asked], LATER)
    assert {operation.id: found.get(operation.id) for operation, _ in asked} == {
        operation.id: why for operation, why in asked
    }
    due = Counter(why for _, why in asked if why is not Waits.RUN_AT)
    counted = await backlog(lab.fetch, LATER, 99, 9)
    assert (counted.running, counted.not_due, counted.not_examined) == (0, 1, 0)
    assert counted.due == {why: Waiting(count, NOW) for why, count in due.items()}


async def test_why_operations_wait_that_ices_refused(lab):
    assert (await request(lab, "work of its own", ice_name="lab-3")).is_due(LATER)
    expected = {0: None, 1: None, 2: Waits.ALL_BUSY, 3: Waits.NOT_ACCEPTED}
    asked = [
        replace(
            await request(lab, str(count), "lab"),
            refused_by=as_json(
                [f"session of lab-{number + 1}" for number in range(count)]
            ).encode(),
        )
        for count in expected
    ]
    found = await waits(lab.fetch, asked, LATER)
    assert {count: found.get(str(count)) for count in expected} == expected


async def test_of_one_schedule_one_operation_runs_at_a_time(lab):
    kind = OperationKind.SCHEDULE
    for name in ("first", "second"):
        second = replace(
            Operation.request(
                name, None, kind, b"1", requested_by="root", now=NOW, pool="lab", run_at=NOW
            ),
            schedule="s1",
        )
        await lab.write(lambda transaction, new=second: operations.insert(transaction, new))
    queue = await work_queue.pool_queue(lab.fetch, "lab", LATER)
    assert ([group.count for group in queue.due], queue.next_due) == ([1], None)
    assert await claim(lab, "lab-1") == "first"
    assert await claim(lab, "lab-2") is None
    assert await waits(lab.fetch, [second], LATER) == {"second": Waits.OPERATION_BEFORE}
    queue = await work_queue.pool_queue(lab.fetch, "lab", LATER)
    assert (queue.due, queue.next_due) == ([], None)
    await finish(lab, "first", LATER)
    assert await waits(lab.fetch, [second], LATER) == {}
    assert await claim(lab, "lab-2") == "second"


async def test_the_backlog_is_examined_from_its_oldest_on(lab):
    run_at = NOW + timedelta(minutes=1)
    await request(lab, "last", "lab", kind=OperationKind.SCHEDULE, run_at=run_at)
    for name in ("sent", "first", "second"):
        await request(lab, name, ice_name="lab-1")
    sent = replace(await Operations(lab.fetch).find("sent"), state=State.SENT, sent=NOW)
    assert await lab.write(lambda each: work_queue.send(each, sent, worker("lab-1"), LATER))
    before = {Waits.OPERATION_BEFORE: Waiting(2, NOW)}
    assert await backlog(lab.fetch, LATER, 2, 9) == Backlog(1, 0, before, 1)
    assert await backlog(lab.fetch, LATER, 3, 9) == Backlog(
        1, 0, before | {None: Waiting(1, run_at)}, 0
    )
    assert await backlog(lab.fetch, NOW, 3, 9) == Backlog(1, 1, before, 0)
    assert await backlog(lab.fetch, LATER, 3, 0) == Backlog(1, 0, before, 1)


async def test_of_one_schedule_one_operation_runs_at_a_time_at_its_own_ice(lab):
    """The one of another is not accepted; the one of the ICE's user waits for it all the same."""
    for name, by in (("first", "root"), ("second", "alice")):
        second = replace(
            Operation.request(
                *(name, "lab-1", OperationKind.SCHEDULE, b"1"), requested_by=by, now=NOW, run_at=NOW
            ),
            schedule="s1",
        )
        await lab.write(lambda transaction, new=second: operations.insert(transaction, new))
    held = worker("lab-1", owner_only=(OperationKind.SCHEDULE,))
    found = await work_queue.find_next(lab.fetch, held, LATER)
    assert found.operation.id == "first"
    assert await waits(lab.fetch, [second], LATER) == {"second": Waits.OPERATION_BEFORE}
    await request(lab, "of the pool", "lab")
    assert await claim(lab, "lab-1", owner_only=(OperationKind.SCHEDULE,)) == "of the pool"
    await finish(lab, "of the pool", LATER)
    await cancel(lab, "first")
    assert (await work_queue.find_next(lab.fetch, held, LATER)).operation.id == "second"
