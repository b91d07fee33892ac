"""Several gateways on one PostgreSQL on one screen: `make cluster`.

    python -m tests.cluster.show [--ices 200]

A real server, real gateways as processes, a load balancer in front, and reference ICEs. Every line is told
after it was observed; the first thing that does not happen ends the story with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gateway.cli.demo_story import Admin, NotObserved, Story
from tests.support.fleet import Fleet
from tests.support.node import Node, api_token, run_command, running
from tests.support.postgres import Postgres, postgres
from tests.support.relay import Relay, relaying

NAMES = ("gw-1", "gw-2", "gw-3")
LEASE = 5.0
_PATIENCE = 60.0
_EVERY = 0.05


@dataclass
class Scene:
    """Who takes part."""

    story: Story
    server: Postgres
    folder: Path
    balancer: Relay
    nodes: list[Node]
    session: aiohttp.ClientSession
    token: str
    fleet: Fleet

    @property
    def database(self) -> str:
        return self.server.url("ice")

    def admin(self, node: Node | None = None) -> Admin:
        """The admin at a node, or at whichever the balancer chooses."""
        return Admin(self.session, self.balancer.url if node is None else node.url, self.token)

    async def held(self) -> Counter[str]:
        """How many ICEs each node holds, by the table."""
        rows = await asyncio.to_thread(
            self.server.sql, "SELECT node, count(*) FROM ice_sessions GROUP BY node", database="ice"
        )
        return Counter(
            {name: int(count) for name, count in (row.split("|") for row in rows.split())}
        )

    async def settled(self, number: int) -> str:
        """Wait until so many are in the table as connected; how they are spread."""
        async with asyncio.timeout(_PATIENCE):
            while (held := await self.held()).total() != number:  # noqa: ASYNC110
                await asyncio.sleep(_EVERY)
        return ", ".join(f"{name} {held[name]}" for name in NAMES if held[name])


def tell(ices: int) -> int:
    """Tell the story; 0 only if all of it happened."""
    story = Story()
    try:
        asyncio.run(_tell(story, ices))
    except (NotObserved, TimeoutError, RuntimeError, aiohttp.ClientError) as error:
        story.say("demo", f"FAILED: {str(error) or 'it took too long'}")
        return 1
    except KeyboardInterrupt:
        story.say("demo", "interrupted")
        return 1
    story.say("demo", "all of it happened")
    return 0


async def _tell(story: Story, ices: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.to_thread(lambda: stack.enter_context(postgres()))
        server.sql("CREATE DATABASE ice")
        version = server.sql("SHOW server_version").strip()
        story.say(
            "postgres", f"PostgreSQL {version} serves port {server.port}, without root's rights"
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ice-cluster-")))
        balancer = stack.enter_context(relaying())
        nodes = [
            Node(*(folder, name, server.url("ice"), balancer.url), NODE__LEASE=f"{LEASE:.0f}s")
            for name in NAMES
        ]
        await stack.enter_async_context(running(nodes))
        for node in nodes:
            balancer.targets.append(node.address)
            story.say(node.name, f"serves {node.url} on the same database")
        token = await api_token(folder, server.url("ice"))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        fleet = await stack.enter_async_context(Fleet(folder, balancer.url))
        scene = Scene(story, server, folder, balancer, nodes, session, token, fleet)
        names = [f"build-{number:03}" for number in range(ices)]
        await _arrival(scene, names)
        await _drop(scene, names)
        await _death(scene, names[1:])
        await _rolling_restart(scene, names[1:])
        verified = await run_command(folder, scene.database, "audit", "verify")
        story.say("admin", f"the audit log: {verified.splitlines()[0]}")


async def _arrival(scene: Scene, names: list[str]) -> None:
    admin, tokens = scene.admin(), {}
    for name in names:
        wanted = {"ice_name": name, "ice_type": "ci-cd"}
        tokens[name] = (await admin.call(201, "POST", "/ices", wanted))["token"]
    scene.story.say("admin", f"provisioned {len(names)} ICEs, each at whichever node answered")
    began = time.monotonic()
    await scene.fleet.start(tokens)
    seconds = time.monotonic() - began
    spread = await scene.settled(len(names))
    scene.story.say("ices", f"{len(names)} registered and connected in {seconds:.1f} s: {spread}")


async def _drop(scene: Scene, names: list[str]) -> None:
    """An admin at one node takes out an ICE that another holds."""
    ice = names[0]
    entry = await scene.admin().call(200, "GET", f"/ices/{ice}")
    holder = entry["connection"]["node"]
    acting = next(node for node in scene.nodes if node.name != holder)
    began = time.monotonic()
    answer = await scene.admin(acting).call(200, "POST", f"/ices/{ice}/deregister")
    [drop] = answer["dropped"]
    scene.story.require("the node that dropped it", holder, drop["node"])
    scene.story.require("unconfirmed nodes", [], answer["unconfirmed"])
    at = await scene.fleet.event(
        lambda _, name, event: name == ice and event.code == 4101, _PATIENCE
    )
    scene.story.say(
        "admin",
        f"deregistered {ice} at {acting.name}: {holder} has dropped it after {drop['elapsed_ms']:.1f} ms,"
        f" its ICE saw 4101 {(at - began) * 1000:.1f} ms after the call",
    )
    scene.fleet.forget(ice)


async def _death(scene: Scene, names: list[str]) -> None:
    """A node is killed; its ICEs come back at the others."""
    dying = scene.nodes[2]
    lost = (await scene.held())[dying.name]
    began = time.monotonic()
    dying.signal(signal.SIGKILL)
    await dying.ended()
    scene.story.say(dying.name, f"killed with {lost} ICEs")
    answer = await scene.admin().call(200, "POST", f"/ices/{names[0]}/disconnect")
    scene.story.require("who has not confirmed", [dying.name], answer["unconfirmed"])
    scene.story.say(
        "admin",
        f"disconnected {names[0]}: {dying.name} has not confirmed, and may act for as long as its lease lasts",
    )
    await scene.fleet.back(_PATIENCE)
    absences = scene.fleet.absences(began)
    scene.story.require("ICEs that were away", True, len(absences) >= lost)
    spread = await scene.settled(len(names))
    scene.story.say("ices", f"all are back, the last after {absences[-1]:.1f} s: {spread}")
    await _start(scene, dying)
    await scene.fleet.back(_PATIENCE)
    scene.story.say(dying.name, "started again")


async def _rolling_restart(scene: Scene, names: list[str]) -> None:
    """One node after the other, while people look at the page."""
    asked: Counter[int] = Counter()
    looking = asyncio.create_task(_look(scene, asked))
    began = time.monotonic()
    for node in scene.nodes:
        held = (await scene.held())[node.name]
        since = time.monotonic()
        node.signal(signal.SIGTERM)
        scene.story.require(f"exit status of {node.name}", 0, await node.ended())
        await _start(scene, node)
        await scene.fleet.back(_PATIENCE)
        await scene.settled(len(names))
        absences = scene.fleet.absences(since)
        last = (
            f"the last of its {held} ICEs was back after {absences[-1]:.1f} s"
            if absences
            else "held none"
        )
        scene.story.say(node.name, f"restarted: {last}")
    looking.cancel()
    await asyncio.wait([looking])
    spread = await scene.settled(len(names))
    scene.story.require("answers of the page", {200}, set(asked))
    scene.story.say(
        "admin",
        f"all three restarted in {time.monotonic() - began:.1f} s; of {asked.total()} looks at the page"
        f" all were answered: {spread}",
    )


async def _start(scene: Scene, node: Node) -> None:
    before = node.address
    await node.start()
    scene.balancer.targets = [
        node.address if target == before else target for target in scene.balancer.targets
    ]


async def _look(scene: Scene, asked: Counter[int]) -> None:
    """Ask for the list again and again, by the balancer."""
    while True:
        asked[await _status(scene)] += 1
        await asyncio.sleep(_EVERY)


async def _status(scene: Scene) -> Any:
    headers = {"Authorization": f"Bearer {scene.token}", "Connection": "close"}
    url = f"{scene.balancer.url}/admin/api/v1/ices?limit=10"
    try:
        async with scene.session.get(url, headers=headers) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ices", type=int, default=200)
    sys.exit(tell(parser.parse_args().ices))


if __name__ == "__main__":
    main()
