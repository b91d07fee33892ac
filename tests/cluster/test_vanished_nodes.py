"""Nodes that ended without saying so: who comes after them, and what is told of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json

import pytest

from gateway.store import nodes
from gateway.store.nodes import NodeRecord, Nodes
from gateway.store.open import open_store
from tests.contract.domain import NOW, soon
from tests.support.harness import command
from tests.support.ice import Refused

VANISHED = NodeRecord("old", "old", "9.9.9", "another-key", "", NOW, 0, draining=False, lease=0.5)


async def left_behind(place, node=VANISHED):
    """A row of a node that never says anything again."""
    async with open_store(str(place.options["database__url"])) as engine:
        await engine.write(functools.partial(nodes.join, node=node))


async def test_a_node_that_would_not_fit_to_one_that_has_vanished_joins(place):
    await left_behind(place)
    async with place.join("node-a") as harness:
        found = await Nodes(harness.gateway.engine.fetch).all()
        assert [node.name for node in found] == ["node-a"]


async def test_a_node_that_has_vanished_is_gone_after_its_lease(often_swept, place):
    async with place.join("node-a") as harness:
        await left_behind(place)

        async def gone():
            while (  # noqa: ASYNC110 - the clocks of nodes have no event
                await Nodes(harness.gateway.engine.fetch).all()
            )[-1].state != "gone":
                await asyncio.sleep(0.05)

        await soon(gone(), "the end of a node that vanished")


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_where_nobody_serves_every_node_is_gone(place):
    """Nobody is left to mark the last one."""
    await left_behind(place)
    url = str(place.options["database__url"])
    listed = json.loads((await command("nodes", "list", "--json", "--database", url)).stdout)
    assert [(node["name"], node["state"], node["lease_left"]) for node in listed] == [
        ("old", "gone", 0.0)
    ]
    people = await command("nodes", "list", "--database", url)
    assert people.stdout == ""
    assert people.stderr.startswith(
        "ice-gateway: gone, see --all: old\nice-gateway: no node serves"
    )
    assert "gone" in (await command("nodes", "list", "--all", "--database", url)).stdout


async def test_a_node_that_was_taken_for_gone_comes_back_and_has_let_go_of_its_sessions(cluster):
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    await cluster.b.settled()
    engine = cluster.a.gateway.engine
    [instance] = [one.instance for one in await Nodes(engine.fetch).all() if one.name == "node-b"]

    async def take_for_gone():
        """A renewal may come between."""
        while True:
            seen = [
                one for one in await Nodes(engine.fetch).renewals("") if one.instance == instance
            ]
            if not seen:
                return
            await engine.write(functools.partial(nodes.sweep, vanished=seen))

    await soon(take_for_gone(), "node-b taken for gone")
    await connection.expect_dropped(1012)
    again = await soon(admitted(ice.at(cluster.b)), "node-b again")
    assert (await cluster.a.act("lab-1", "deregister"))["unconfirmed"] == []
    await again.expect_dropped(4101)


async def admitted(ice):
    while True:
        with contextlib.suppress(Refused):
            return await ice.connect()
        await asyncio.sleep(0.05)
