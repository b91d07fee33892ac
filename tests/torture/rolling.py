"""A rolling restart behind HAProxy: every ICE is back soon, nothing is lost, the page works throughout.

    python -m tests.torture.rolling [--ices 1000] [--operations 50]

Nodes, server and balancer are real, the ICEs are reference clients in this process. While one node after the
other is restarted, operations go on at some of the ICEs, and a person looks at the page again and again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.fleet import Fleet
from tests.support.haproxy import haproxy
from tests.support.harness import API
from tests.support.node import Node, api_token, run_command, running
from tests.support.postgres import Postgres, postgres

NAMES = ("gw-1", "gw-2", "gw-3")
_PATIENCE = 120.0
_EVERY = 0.1
_BODY_SECONDS = 3.0
"""How long an operation takes: longer than a restart."""


@dataclass
class Outcome:
    """What was observed."""

    ices: int
    absences: list[list[float]] = field(default_factory=list)
    """By node restarted: how long each of its ICEs was away, in seconds."""
    restarts: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """With which each node has ended."""
    moved: set[str] = field(default_factory=set)
    """Who had to come back."""
    looks: Counter[int] = field(default_factory=Counter)
    """Answers of the page by status; 0 where there was none."""
    operations: Counter[str] = field(default_factory=Counter)
    audit: str = ""


@contextlib.asynccontextmanager
async def nodes_on(server: Postgres, folder: Path, public: str) -> AsyncIterator[list[Node]]:
    """Three nodes, each on a port that it keeps."""
    server.sql("CREATE DATABASE rolling")
    nodes = [
        Node(
            *(folder, name, server.url("rolling"), public),
            SERVER__PORT=str(_free_port()),
            SERVER__TRUSTED_PROXIES="127.0.0.1",
        )
        for name in NAMES
    ]
    async with running(nodes):
        yield nodes


async def play(ices: int, operations: int) -> Outcome:
    """The whole story; raises `TimeoutError` where it does not come to its end."""
    outcome = Outcome(ices)
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.to_thread(lambda: stack.enter_context(postgres()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ice-rolling-")))
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        nodes = await stack.enter_async_context(nodes_on(server, folder, url))
        stack.enter_context(haproxy(folder, [(node.name, node.address) for node in nodes], port))
        token = await api_token(folder, server.url("rolling"))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})
        )
        fleet = await stack.enter_async_context(Fleet(folder, url))
        names = [f"build-{number:04}" for number in range(ices)]
        await fleet.start(await _tokens(session, url, names))
        asked = [
            await _post(session, url, f"/ices/{name}/operations", _WORK)
            for name in names[:operations]
        ]
        looking = asyncio.create_task(_look(session, url, outcome.looks))
        for node in nodes:
            since = time.monotonic()
            node.signal(signal.SIGTERM)
            outcome.statuses.append(await node.ended())
            await node.start()
            outcome.restarts.append(time.monotonic() - since)
            await fleet.back(_PATIENCE)
            outcome.absences.append(fleet.absences(since))
            outcome.moved |= fleet.closed(since)
        looking.cancel()
        await asyncio.wait([looking])
        if not looking.cancelled():
            looking.result()  # which says why nobody has looked any more
        for operation in asked:
            outcome.operations[await _state(session, url, operation["id"])] += 1
        outcome.audit = await run_command(folder, server.url("rolling"), "audit", "verify")
    return outcome


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


_WORK = {"kind": "remote-execute", "params": {"seconds": _BODY_SECONDS}}


async def _tokens(session: aiohttp.ClientSession, url: str, names: list[str]) -> dict[str, str]:
    return {
        name: (await _post(session, url, "/ices", {"ice_name": name, "ice_type": "ci-cd"}))["token"]
        for name in names
    }


async def _post(session: aiohttp.ClientSession, url: str, path: str, body: Any) -> Any:
    async with session.post(f"{url}{API}{path}", json=body) as response:
        response.raise_for_status()
        return await response.json()


async def _state(session: aiohttp.ClientSession, url: str, operation: str) -> str:
    async with session.get(f"{url}{API}/operations/{operation}?wait=30") as response:
        return str((await response.json())["state"])


async def _look(session: aiohttp.ClientSession, url: str, looks: Counter[int]) -> None:
    """Open the page again and again, each time on a connection of its own."""
    while True:
        try:
            async with session.get(
                f"{url}{API}/ices?limit=20", headers={"Connection": "close"}
            ) as response:
                await response.read()
                looks[response.status] += 1
        except aiohttp.ClientError:
            looks[0] += 1
        await asyncio.sleep(_EVERY)


def report(outcome: Outcome) -> str:
    """What was observed, in a few lines."""
    lines = [
        f"{outcome.ices} ICEs at three nodes behind HAProxy, one node restarted after the other"
    ]
    for name, seconds, absences in zip(NAMES, outcome.restarts, outcome.absences, strict=True):
        middle, last = (absences[len(absences) // 2], absences[-1]) if absences else (0.0, 0.0)
        lines.append(
            f"{name}: stopped and started in {seconds:.1f} s; {len(absences)} ICEs were away, half of them"
            f" for {middle:.1f} s at the most, the last for {last:.1f} s"
        )
    lines.append(f"looks at the page by status: {dict(outcome.looks)}")
    lines.append(f"operations that were under way: {dict(outcome.operations)}")
    lines.append(outcome.audit)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ices", type=int, default=1000)
    parser.add_argument("--operations", type=int, default=50)
    options = parser.parse_args()
    outcome = asyncio.run(play(options.ices, options.operations))
    sys.stdout.write(report(outcome) + "\n")
    lost = set(outcome.looks) != {200} or set(outcome.operations) != {"succeeded"}
    sys.exit(lost or any(outcome.statuses) or len(outcome.moved) != options.ices)


if __name__ == "__main__":
    main()
