"""`ice_pools`, and which ICEs belong to a pool."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from client.protocol import OperationKind
from gateway.core.attention import NO_EXPECTATIONS
from gateway.core.audit_event import Via
from gateway.core.ice import IceType
from gateway.core.operation import Move, Operation
from gateway.core.pool import Pool
from gateway.core.schedule import Schedule
from gateway.services.pools import PoolService, WantedPool
from gateway.store import ice_filter, ices, operations, pools, schedules
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from gateway.store.pools import PoolCounts, Pools, PoolUse
from tests.contract.domain import (
    NOW,
    ROOT,
    Halt,
    a_connection,
    add,
    add_registered,
    an_event,
    an_ice,
    change,
    deregistered,
    opened,
    record,
    soon,
)

ODD = 'a "b":"c", \\ é'
POOL = Pool("GPU", "with graphics", None, {"gpu": "yes"}, "root", NOW)


async def add_pool(engine, pool: Pool) -> bool:
    return await engine.write(lambda transaction: pools.add(transaction, pool))


async def names(engine, condition: str, join: str, *params: object) -> list[str]:
    rows = await engine.fetch(
        f"SELECT t.ice_name FROM ice_tokens t {join} WHERE {condition} ORDER BY t.ice_name",  # noqa: S608
        *params,
    )
    return [name for (name,) in rows]


async def label(engine, ice, labels):
    await engine.write(
        lambda transaction: ices.describe(transaction, [(ice, labels, "", an_event("label", ice))])
    )


async def request(engine, name: str, pool: str, *moves: Move, ice_name: str | None = None):
    """An operation of a pool after these moves."""

    async def unit(transaction):
        old = Operation.request(
            name, ice_name, OperationKind.REMOTE_EXECUTE, b"1", requested_by="root", now=NOW
        )
        old = replace(old, pool=pool)
        await operations.insert(transaction, old)
        for move in moves:
            new = old.moved(move, NOW)
            assert await operations.replace(transaction, old, new)
            old = new

    await engine.write(unit)


async def test_a_pool_is_kept_as_it_was_made(engine):
    assert await add_pool(engine, POOL)
    assert not await add_pool(engine, replace(POOL, name="gpu"))
    assert await Pools(engine.fetch).find("gpu") == POOL
    changed = replace(POOL, description="", ice_type=IceType.CI_CD, labels={"a": ODD})
    await engine.write(lambda transaction: pools.update(transaction, changed))
    assert await engine.write(lambda transaction: pools.find(transaction, "Gpu")) == changed
    await engine.write(lambda transaction: pools.delete(transaction, "GPU"))
    assert await Pools(engine.fetch).find("gpu") is None


async def test_pools_are_listed_by_their_folded_names(engine):
    found = [replace(POOL, name=name, description=f"of {name}") for name in ("a", "B", "c_1", "cx")]
    for pool in reversed(found):
        await add_pool(engine, pool)
    table = Pools(engine.fetch)
    assert await table.after("", "", 9) == found
    assert await table.after("", "b", 1) == found[2:3]
    assert await table.after("", "", 2, 1) == found[1:3]
    assert await table.after("OF C_", "", 9) == found[2:3]
    assert [await table.count(text) for text in ("", "of", "B", "%")] == [4, 4, 1, 0]
    assert await table.names() == ["a", "B", "c_1", "cx"]
    assert await engine.write(pools.count) == 4


async def test_both_ways_of_asking_find_the_same_ices(engine):
    """By conditions on the labels of a known pool, and by a join of the tables."""
    sets = [{}, {"os": "linux"}, {"os": "linux", "site": ODD}, {"os": "linux2"}, {"linux": "os"}]
    for number, (labels, user) in enumerate(itertools.product(sets, ("alice", None))):
        await label(engine, await add_registered(engine, f"ice-{number}", user), labels)
    gone = await add_registered(engine, "gone")
    await label(engine, gone, {"os": "linux"})
    await change(engine, (gone, deregistered(gone)))
    sizes = []
    for number, (labels, kind) in enumerate(
        itertools.product(sets[1:], (None, IceType.NORMAL, IceType.CI_CD))
    ):
        pool = replace(POOL, name=f"p{number}", labels=labels, ice_type=kind)
        await add_pool(engine, pool)
        belongs = f"{ice_filter.MEMBER} AND p.name = '{pool.name}'"
        found = await names(engine, belongs, "JOIN ice_pools p ON TRUE")
        where = IceFilter(pool=pool)
        listed = await IceListing(engine).page(where, 99)
        assert [ice.ice.ice_name for ice in listed] == found
        for covered in (False, True):
            params: list[object] = []
            matching = ice_filter.matching(where, NO_EXPECTATIONS, params, covered=covered)
            assert await names(engine, matching, "", *params) == found
        sizes.append(len(found))
    assert sizes == [4, 2, 2, 2, 1, 1, 2, 1, 1, 2, 1, 1]


async def test_ices_of_pools_are_counted_together(engine):
    free = await add_registered(engine, "free", None)
    busy = await add_registered(engine, "busy", None)
    for ice in (free, busy):
        await label(engine, ice, {"gpu": "yes"})
        await record(engine, [opened(ice, a_connection(f"s-{ice.ice_name}"))])
    await request(engine, "works", "GPU", Move.SEND, Move.ACCEPT, ice_name="busy")
    for name, labels in (("away", {"gpu": "yes", "os": "linux"}), ("other", {})):
        await label(engine, await add_registered(engine, name), labels)
    gone = await add_registered(engine, "gone")
    await label(engine, gone, {"gpu": "yes"})
    await change(engine, (gone, deregistered(gone)))
    table = Pools(engine.fetch)
    found = [
        POOL,
        replace(POOL, ice_type=IceType.NORMAL),
        replace(POOL, labels={"os": "linux"}),
        replace(POOL, labels={"os": "none"}),
    ]
    assert await table.counts(found) == [
        PoolCounts(3, 2, 1),
        PoolCounts(1, 0, 0),
        PoolCounts(1, 0, 0),
        PoolCounts(0, 0, 0),
    ]
    assert await table.counts([]) == []


async def test_a_provisioned_ice_belongs_to_its_pool(engine):
    ice = an_ice()
    await add(engine, ice)
    await label(engine, ice, {"gpu": "yes"})
    assert await Pools(engine.fetch).counts([POOL]) == [PoolCounts(1, 0, 0)]


@pytest.mark.parametrize(
    ("moves", "waits"),
    [((), 1), ((Move.SEND,), 1), ((Move.SEND, Move.ACCEPT), 0), ((Move.CANCEL,), 0)],
)
async def test_a_pool_is_in_use_while_operations_wait(engine, moves, waits):
    await add_registered(engine, "lab-1")
    await add_pool(engine, POOL)
    await request(engine, "one", "GPU", *moves, ice_name="lab-1" if moves else None)
    assert await engine.write(lambda tx: pools.use(tx, "GPU")) == PoolUse(waits, None)
    counted = await Pools(engine.fetch).waiting([POOL, replace(POOL, name="other")])
    assert counted == ({"GPU": 1} if waits else {})


async def test_a_pool_is_in_use_while_a_schedule_names_it(engine):
    await add_pool(engine, POOL)
    nightly = Schedule(
        *("1", "nightly", None, "GPU", b"1", "0 0 * * *", "UTC", "root", Via.API, NOW),
        enabled=False,
    )
    await engine.write(lambda tx: schedules.add(tx, nightly))
    assert await engine.write(lambda tx: pools.use(tx, "GPU")) == PoolUse(0, "nightly")


def service(engine, **options) -> PoolService:
    return PoolService(engine=engine, clock=lambda: NOW, **options)


async def test_of_two_who_make_a_pool_one_changes_it(engine):
    done = await asyncio.gather(
        *(service(engine).set(ROOT, WantedPool(name, {"gpu": name})) for name in ("gpu", "GPU"))
    )
    assert sorted(each.created for each in done) == [False, True]
    [pool] = await Pools(engine.fetch).after("", "", 9)
    assert {each.pool.name for each in done} == {pool.name}


async def test_pools_are_bounded(engine):
    few = service(engine, most=1)
    assert (await few.set(ROOT, WantedPool("gpu", {"gpu": ""}))).created
    refused = await few.set(ROOT, WantedPool("more", {"gpu": ""}))
    assert (refused.code, refused.more) == ("invalid", {"field": "name"})
    assert not (await few.set(ROOT, WantedPool("gpu", {"gpu": "yes"}))).created


async def test_a_pool_is_deleted_only_before_or_after_it_is_requested(engine):
    """A request holds the pool's row until its operation is there."""
    await add_pool(engine, POOL)
    halt = Halt()

    async def requesting(transaction):
        assert await pools.find(transaction, "GPU") == POOL
        await halt.stop()
        new = Operation.request(
            "one", None, OperationKind.REMOTE_EXECUTE, b"1", requested_by="root", now=NOW
        )
        await operations.insert(transaction, replace(new, pool="GPU"))

    request = asyncio.create_task(engine.write(requesting))
    await soon(halt.reached.wait(), "the request")
    delete = asyncio.create_task(service(engine).delete(ROOT, "gpu"))
    halt.go()
    await soon(request, "its operation")
    assert (await soon(delete, "the deletion")).code == "in-use"
