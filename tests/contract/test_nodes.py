"""The nodes of a database: each judges the others by its own clock, and one that renews its lease stays."""

from __future__ import annotations

import functools

import pytest

from gateway.store import nodes
from gateway.store.nodes import NodeRecord, Nodes, Renewal
from gateway.store.sessions import Opened
from tests.contract.domain import (
    NOW,
    a_connection,
    add_registered,
    opened,
    record,
)


def a_node(name: str, **others) -> NodeRecord:
    return NodeRecord(
        name, f"node-{name}", "1", "", "", NOW, 0, **{"draining": False, "lease": 30.0} | others
    )


@pytest.fixture
async def table(engine):
    """`a` holds a session of lab-1."""
    for node in (a_node("a"), a_node("b")):
        await engine.write(functools.partial(nodes.join, node=node))
    ice = await add_registered(engine)
    await record(engine, opened=[opened(ice, a_connection("s1", "node-a"))])
    return engine


async def renew(engine, name):
    return await engine.write(
        lambda transaction: nodes.renew(transaction, name, seen_seq=7, keys="k", dropped=[])
    )


async def sweep(engine, *vanished):
    await engine.write(lambda transaction: nodes.sweep(transaction, vanished))


async def states(engine):
    return {node.name: node.state for node in await Nodes(engine.fetch).all()}


async def sessions(engine):
    return await engine.fetch("SELECT session FROM ice_sessions")


async def test_a_node_that_has_vanished_is_gone_with_all_that_it_held(table):
    seen = await Nodes(table.fetch).renewals(but="b")
    assert seen == [Renewal("a", 0, 30.0)]
    await sweep(table, *seen)
    assert await states(table) == {"node-a": "gone", "node-b": "serves"}
    assert await sessions(table) == []
    assert await Nodes(table.fetch).renewals(but="b") == []
    assert await Nodes(table.fetch).behind(1, "b") == []


async def test_a_node_that_has_renewed_its_lease_meanwhile_has_not_vanished(table):
    seen = await Nodes(table.fetch).renewals(but="b")
    assert await renew(table, "a") is False
    await sweep(table, *seen)
    assert await states(table) == {"node-a": "serves", "node-b": "serves"}
    assert await sessions(table) == [("s1",)]


async def test_a_node_that_was_taken_for_gone_does_not_renew_its_lease_any_more(table):
    """Others act as if it were not there: its old lease must not count again."""
    await sweep(table, *await Nodes(table.fetch).renewals(but="b"))
    assert await renew(table, "a") is None
    assert (await states(table))["node-a"] == "gone"


async def test_a_node_that_is_behind_is_waited_for_until_it_is_gone(table):
    assert await Nodes(table.fetch).behind(1, "b") == ["node-a"]
    assert await renew(table, "a") is False
    assert await Nodes(table.fetch).behind(7, "b") == []
    assert await Nodes(table.fetch).behind(8, "b") == ["node-a"]


async def test_a_gone_node_is_forgotten_when_one_of_its_name_has_joined(table):
    await sweep(table, *await Nodes(table.fetch).renewals(but="b"))
    again = NodeRecord("a2", "node-a", "1", "", "", NOW, 0, draining=False, lease=30.0)
    await table.write(lambda transaction: nodes.join(transaction, again))
    await sweep(table)
    assert [(node.instance, node.state) for node in await Nodes(table.fetch).all()] == [
        ("a2", "serves"),
        ("b", "serves"),
    ]


async def test_whoever_joins_forgets_the_gone(table):
    await sweep(table, *await Nodes(table.fetch).renewals(but="b"))
    alive = await table.write(nodes.alive)
    assert [node.name for node in alive] == ["node-b"]
    assert await states(table) == {"node-b": "serves"}


async def test_the_lease_clock_is_pushed_on_and_never_back(table):
    clock = Nodes(table.fetch).clock
    now = await clock(0.0)
    assert await clock(now + 5.0) >= now
    assert await clock(0.0) >= now


async def test_of_two_readings_the_later_has_the_higher_number(table):
    numbers = [(await table.look_up("SELECT reading_number()"))[0][0] for _ in range(3)]
    assert numbers == sorted(set(numbers))


async def test_a_session_is_superseded_by_a_later_one_on_another_node_alone(table):
    later, latest = [await add_registered(table, name) for name in ("lab-2", "lab-3")]
    sessions_of = [
        (later, "node-a", "mine", 3.0),
        (later, "node-b", "older", 2.0),
        (latest, "node-a", "moved", 4.0),
        (latest, "node-b", "newer", 5.0),
        (latest, "node-a", "back", 6.0),
    ]
    await record(
        table,
        opened=[
            Opened(ice.ice_name, ice.generation, a_connection(session, node), reading)
            for ice, node, session, reading in sessions_of
        ],
    )
    nodes_of = Nodes(table.fetch)
    assert await nodes_of.superseded("node-a", ["lab-3", "lab-9"]) == [("lab-3", "moved")]
    assert await nodes_of.superseded("node-a", ["lab-1", "lab-2"]) == []
    everyone = ["lab-1", "lab-2", "lab-3"]
    both = [("lab-2", "older"), ("lab-3", "newer")]
    assert sorted(await nodes_of.superseded("node-b", everyone)) == both
    if table.shared:  # PostgreSQL alone has nodes
        [(last,)] = await table.fetch("SELECT max(number) FROM ice_sessions")
        assert (await nodes_of.snapshot()).newest == last
        assert sorted(await nodes_of.superseded_since("node-b", 0)) == both
        assert await nodes_of.superseded_since("node-b", last - 1) == [("lab-3", "newer")]
        assert await nodes_of.superseded_since("node-a", last) == []
