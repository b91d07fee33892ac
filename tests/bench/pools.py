"""Measures the operations of pools: at one gateway on SQLite, and at three nodes on PostgreSQL.

    python -m tests.bench.pools [--operations 1000] [--ices 200]

Three pools overlap. Every operation has to run once, and every ICE has to get the oldest one that it may run: none of its
pools that was stored before the ICE's turn, and is older, may still wait when the ICE works.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.bench.enrolments import DURABLE, cpu
from tests.bench.systems import free_port
from tests.support.fleet import Fleet
from tests.support.harness import API
from tests.support.node import Node, api_token, running
from tests.support.postgres import postgres

POOLS: Final = {
    "a": lambda number: number % 2 == 0,
    "b": lambda number: number % 3 == 0,
    "c": lambda number: number >= 100,
}
"""Which ICEs belong to a pool, by number. Those that belong to none are bystanders."""
_AT_ONCE: Final = 20
"""Requests in flight."""
_PATIENCE: Final = 300.0
_PAGE: Final = 200
_MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of our own in it


async def _provision(session: aiohttp.ClientSession, url: str, count: int) -> dict[str, str]:
    """Pools and ICEs with their labels; the tokens by name."""
    ices = [
        {
            "ice_name": f"ice-{number:04}",
            "ice_type": "ci-cd",
            "labels": {pool: "yes" for pool, holds in POOLS.items() if holds(number)},
        }
        for number in range(count)
    ]
    async with session.post(
        f"{url}{API}/ices/bulk", json={"action": "provision", "ices": ices}
    ) as answer:
        made = (await answer.json())["items"]
    for pool in POOLS:
        async with session.put(f"{url}{API}/pools/{pool}", json={"labels": {pool: "yes"}}):
            pass
    return {item["ice_name"]: item["token"] for item in made}


async def _request(session: aiohttp.ClientSession, urls: list[str], count: int) -> dict[str, float]:
    """Request operations, of the pools and at the nodes in turn; by id when each was known to be stored."""
    turns, pools = asyncio.Semaphore(_AT_ONCE), list(POOLS)

    async def one(number: int) -> tuple[str, float]:
        body = {"kind": "remote-execute", "params": {"seconds": 0.02}}
        pool = pools[number % len(pools)]
        async with (
            turns,
            session.post(
                f"{urls[number % len(urls)]}{API}/pools/{pool}/operations", json=body
            ) as answer,
        ):
            made = await answer.json()
            if answer.status != 202:
                raise SystemExit(f"a request was answered {answer.status}: {made}")
            return str(made["id"]), time.time()

    return dict(await asyncio.gather(*map(one, range(count))))


async def _finished(session: aiohttp.ClientSession, url: str, count: int) -> list[dict[str, Any]]:
    """Every operation once all have finished."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            async with session.get(f"{url}{API}/operations?state=succeeded&limit=1") as answer:
                await answer.read()
            found = await _all(session, url)
            if sum(each["finished"] is not None for each in found) == count:
                return found
            await asyncio.sleep(0.5)


async def _all(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        async with session.get(f"{url}{API}/operations?limit={_PAGE}{cursor}") as answer:
            page = await answer.json()
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def _passed_over(found: list[dict[str, Any]], stored: dict[str, float]) -> int:
    """How many operations an ICE got although an older one of its pools waited all the while."""
    times = [
        (
            _seconds(each["created"]),
            stored[each["id"]],
            _seconds(each["sent"]),
            _seconds(each["progress"]["at"]),
            each["pool"],
            int(each["ice_name"].rpartition("-")[2]),
        )
        for each in found
    ]
    return sum(
        any(
            other_created < created
            and other_stored < sent
            and other_sent > works
            and POOLS[other_pool](ice)
            for other_created, other_stored, other_sent, _, other_pool, _ in times
        )
        for created, _, sent, works, _, ice in times
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


async def _measure(nodes: list[Node], token: str, ices: int, count: int) -> None:
    urls = [node.url for node in nodes]
    headers = {"Authorization": f"Bearer {token}"}
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
        # In memory: 200 ICEs have a disk each.
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY)))
        tokens = await _provision(session, urls[0], ices)
        fleets = []
        for place, url in enumerate(urls):
            fleet = await stack.enter_async_context(Fleet(state / f"fleet-{place}", url))
            await fleet.start(
                {
                    name: secret
                    for number, (name, secret) in enumerate(tokens.items())
                    if number % len(urls) == place
                }
            )
            fleets.append(fleet)
        before = sum(map(cpu, nodes))
        began = time.monotonic()
        stored = await _request(session, urls, count)
        asked = time.monotonic() - began
        found = await _finished(session, urls[0], count)
        used = sum(map(cpu, nodes)) - before
    states = Counter(each["state"] for each in found)
    results = [each["result"]["did"] for each in found if each["result"]]
    waited = sorted(_seconds(each["sent"]) - _seconds(each["created"]) for each in found)
    took = max(_seconds(each["finished"]) for each in found) - min(
        _seconds(each["created"]) for each in found
    )
    workers = Counter(each["ice_name"] for each in found)
    passed_over = _passed_over(found, stored)
    print(
        f"{count} operations, {ices} ICEs: requested in {asked:.2f} s, all done in {took:.2f} s"
        f" ({count / took:.0f}/s); waited p50 {statistics.median(waited) * 1000:.0f} ms,"
        f" p99 {waited[len(waited) * 99 // 100] * 1000:.0f} ms; {len(workers)} ICEs worked,"
        f" {min(workers.values())} to {max(workers.values())} each; CPU of the gateway"
        f" {used / count * 1000:.2f} ms each; {dict(states)}; {passed_over} passed over an older one",
        flush=True,
    )
    if (
        sorted(results) != sorted(stored)
        or set(states) != {"succeeded"}
        or passed_over
        or not all(POOLS[each["pool"]](int(each["ice_name"][-4:])) for each in found)
    ):
        raise SystemExit("an operation did not run once, in its pool, in its turn")


@contextlib.asynccontextmanager
async def _nodes(folder: Path, database: str, count: int) -> AsyncIterator[tuple[list[Node], str]]:
    token = await api_token(folder, database)
    ports = [free_port() for _ in range(count)]
    nodes = [
        Node(folder, f"node-{port}", database, f"http://127.0.0.1:{port}", SERVER__PORT=str(port))
        for port in ports
    ]
    async with running(nodes):
        yield nodes, token


async def measure(ices: int, count: int) -> None:
    """Both variants."""
    with tempfile.TemporaryDirectory(prefix="ice-pools-") as name:
        folder = Path(name)
        async with _nodes(folder, f"sqlite:///{folder}/ice.db", 1) as (nodes, token):
            print("one gateway on SQLite: ", end="", flush=True)
            await _measure(nodes, token, ices, count)
    with (
        tempfile.TemporaryDirectory(prefix="ice-pools-") as name,
        postgres(*DURABLE) as server,
    ):
        async with _nodes(Path(name), server.database(), 3) as (nodes, token):
            print("three nodes on PostgreSQL: ", end="", flush=True)
            await _measure(nodes, token, ices, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--ices", type=int, default=200)
    given = parser.parse_args()
    asyncio.run(measure(given.ices, given.operations))


if __name__ == "__main__":
    sys.exit(main())
