"""Nodes that ended without saying so: who comes after them, and what is told of them."""

from __future__ import annotations

import asyncio
import functools
import json

import pytest

from gateway.store import nodes
from gateway.store.nodes import Node, Nodes
from gateway.store.opening import open_store
from tests.contract.domain import NOW, soon
from tests.support.harness import command

VANISHED = Node("old", "old", "9.9.9", "another-key", "", NOW, 0, draining=False, lease=0.5)


async def left_behind(place, node=VANISHED):
    """A row of a node that never says anything again."""
    async with open_store(str(place.options["database__url"])) as engine:
        await engine.write(functools.partial(nodes.join, node=node))


async def test_a_node_that_would_not_fit_to_one_that_has_vanished_joins(place):
    await left_behind(place)
    async with place.join("node-a") as harness:
        found = await Nodes(harness.gateway.engine.fetch).all()
        assert [node.name for node in found] == ["node-a"]


async def test_a_node_that_has_vanished_is_gone_after_its_lease(place):
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
