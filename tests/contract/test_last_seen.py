"""`lastseen`: the time of the node's confirmation while connected, stored when the session ends, never earlier."""

from __future__ import annotations

import pytest

from gateway.core.ice import Status
from gateway.store import nodes, sessions
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from gateway.store.ice_order import Order, SortKey
from gateway.store.nodes import NodeRecord
from tests.contract.domain import (
    NOW,
    a_connection,
    a_connection_event,
    add_registered,
    minutes,
    opened,
    record,
)


class Table:
    """ICEs that come, and nodes that confirm them and die."""

    def __init__(self, engine) -> None:
        self.engine = engine

    async def comes(self, name, node="node-a", at=NOW) -> None:
        ice = await add_registered(self.engine, name)
        session = opened(ice, a_connection(f"session of {name}", node))
        admitted = a_connection_event("admitted", ice_name=name, at=at)
        await record(self.engine, opened=[session], connection_events=[admitted])

    async def confirms(self, node, at) -> None:
        await self.engine.write(lambda transaction: sessions.confirm(transaction, node, at))

    async def seen(self):
        page = await IceListing(self.engine).page(IceFilter(), 100)
        return {listed.ice.ice_name: listed.lastseen for listed in page}


@pytest.fixture
def table(engine) -> Table:
    return Table(engine)


async def test_connected_ices_are_seen_when_their_node_last_confirmed(table):
    await table.comes("lab-1")
    await table.comes("lab-2", node="node-b", at=minutes(3))
    await add_registered(table.engine, "lab-3")
    assert await table.seen() == {"lab-1": NOW, "lab-2": minutes(3), "lab-3": None}
    await table.confirms("node-a", minutes(4))
    await table.confirms("node-b", minutes(2))
    seen = {"lab-1": minutes(4), "lab-2": minutes(3), "lab-3": None}
    assert await table.seen() == seen, "a session that began later is seen at its begin"
    found = await IceListing(table.engine).page(
        IceFilter(), 9, order=Order(SortKey.LAST_SEEN, descending=True)
    )
    assert [listed.ice.ice_name for listed in found] == ["lab-1", "lab-2", "lab-3"]
    await table.confirms("node-b", minutes(5))
    assert (await IceListing(table.engine).find("lab-2")).lastseen == minutes(5)


@pytest.fixture
async def of_all_nodes(table):
    """ICEs before, at, between and after the confirmations of four nodes, connected and not."""
    for node, at in {"node-a": 3, "node-b": 6, "node-c": 6}.items():
        await table.confirms(node, minutes(at))
    for number in range(9):
        # `node-d` has not confirmed yet.
        for node in ("node-a", "node-b", "node-c", "node-d"):
            await table.comes(f"{node}-{number}", node, minutes(number))
        gone = await add_registered(table.engine, f"gone-{number}")
        closed = a_connection_event("closed", "1000", ice_name=gone.ice_name, at=minutes(number))
        await record(table.engine, connection_events=[closed])
    for number in range(2):
        await add_registered(table.engine, f"new-{number}")
        ice = await add_registered(table.engine, f"bare-{number}")
        await record(table.engine, [opened(ice, a_connection(f"bare {number}", "node-a"))])
    return IceListing(table.engine)


@pytest.mark.parametrize("descending", [False, True])
async def test_a_listing_by_last_seen_merges_what_nodes_confirmed(of_all_nodes, descending):
    order = Order(SortKey.LAST_SEEN, descending)
    every = await of_all_nodes.page(IceFilter(), 100)
    there = [listed for listed in every if listed.lastseen is not None]
    there.sort(key=lambda listed: (listed.lastseen, listed.ice.ice_name), reverse=descending)
    without = [listed for listed in every if listed.lastseen is None]
    assert (len(there), len(without)) == (9 * 5 + 2, 2)
    filters = (
        (IceFilter(), lambda _: True),
        (IceFilter(connected=True), lambda listed: listed.connection is not None),
        (
            IceFilter(connected=False, status=Status.REGISTERED),
            lambda listed: not listed.connection,
        ),
        (IceFilter(words=("node",)), lambda listed: "node" in listed.ice.ice_name),
    )
    for where, matches in filters:
        expected = [listed for listed in (*there, *without) if matches(listed)]
        by_offset = [
            listed
            for start in range(0, 56, 7)
            for listed in await of_all_nodes.page(where, 7, order=order, offset=start)
        ]
        assert by_offset == expected, f"{where}: by offset"
        by_mark, after = [], None
        while page := await of_all_nodes.page(where, 7, order=order, after=after):
            by_mark += page
            after = page[-1].mark(order)
        assert by_mark == expected, f"{where}: by mark"


async def test_a_time_that_is_earlier_changes_nothing(table):
    """Of two nodes that an ICE is at in turn one may have a clock that is behind."""
    await table.comes("lab-1", at=minutes(3))
    closed = a_connection_event("closed", "1000", at=minutes(2))
    await record(table.engine, closed=["session of lab-1"], connection_events=[closed])
    assert await table.seen() == {"lab-1": minutes(3)}


async def starts(transaction):
    await sessions.clear(transaction, "node-a")


async def is_swept(transaction):
    """`node-b` alone has a lease."""
    other = NodeRecord("i", "node-b", "1", "", "", NOW, 0, draining=False, lease=60.0)
    await nodes.join(transaction, other)
    await nodes.sweep(transaction)


@pytest.mark.parametrize("clear", [starts, is_swept])
async def test_what_was_shown_is_stored_when_the_sessions_of_a_dead_node_are_cleared(table, clear):
    await table.comes("lab-1")
    await table.comes("lab-2", at=minutes(2))
    await table.comes("lab-3", node="node-b")
    await add_registered(table.engine, "lab-4")
    await table.confirms("node-a", minutes(1))
    await table.confirms("node-b", minutes(9))
    shown = await table.seen()
    await table.engine.write(clear)
    assert await table.seen() == shown
    listed = await IceListing(table.engine).page(IceFilter(connected=True), 100)
    assert [one.ice.ice_name for one in listed] == ["lab-3"]
    rows = await table.engine.fetch("SELECT node FROM ice_confirmed")
    assert rows == [("node-b",)], "a dead node's confirmation goes with its sessions"


async def test_what_was_shown_is_stored_when_a_gateway_that_is_alone_starts_again(table):
    await table.comes("lab-1")
    await table.comes("lab-2", node="node-b")
    await table.confirms("node-a", minutes(1))
    await table.engine.write(nodes.forget_all)
    assert await table.seen() == {"lab-1": minutes(1), "lab-2": NOW}
    assert not await IceListing(table.engine).page(IceFilter(connected=True), 100)
    assert await table.engine.fetch("SELECT * FROM ice_confirmed") == []
