"""What is done to the crowd and its nodes, and what is measured meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from client.backoff import STEADY
from tests.scale.agent import PUBLIC, name_of
from tests.scale.crowd import Crowd, Seen, crowd
from tests.scale.prepare import prepare
from tests.scale.samples import Sample, pages_of, sample
from tests.support.harness import API
from tests.support.node import Node, running
from tests.support.postgres import Postgres, postgres

DATABASE = "scale"
DEREGISTERED = 4101
DEREGISTRATIONS = 100
SPREAD = 200
"""Sessions a second to which a node that stops spreads the return of its ICEs (docs/protocol.md, 1012)."""
_SETTINGS = (
    *("fsync=on", "full_page_writes=on", "autovacuum=on", "wal_level=replica"),
    *("shared_buffers=1GB", "max_wal_size=4GB", "checkpoint_timeout=5min", "max_connections=300"),
)
_AT_ONCE = 48
"""Handshakes in progress of each generator while the ICEs come for the first time."""
_PAGE_EVERY = 0.5
_LATE = 30.0
"""Seconds for which those who have not come back are waited for, beyond what was reckoned with."""


@dataclass(frozen=True)
class Plan:
    """How much is done. Times are seconds."""

    ices: int
    nodes: int
    quiet: float
    """Nothing happens at all, first without ICEs (half of it), then with them."""
    idle: float
    """The whole time for which the ICEs are idle: `quiet`, as long with a few that come and go, then with admins, too."""
    churn: float
    """The share of the ICEs that goes and comes back each minute."""
    limit: float
    """The whole run takes no longer; `idle` is cut for it."""
    bystander: bool = False
    """The last node gets no ICE: it shows what a node has to do because of the others' ICEs."""
    settle: float = 11.0
    """Until every connection of PostgreSQL has told what it did."""
    steady: float = STEADY
    """Before the storm, so that no backoff goes on from the restart."""


@dataclass
class Outcome:
    """What was measured, by phase, and what went wrong."""

    ices: int
    nodes: int
    bystander: bool
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Their number, p50 and p99, in the unit of the values."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    p99 = ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]
    return {"n": len(values), "p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}


class Story:
    """A run on started nodes, phase by phase."""

    def __init__(
        self, plan: Plan, server: Postgres, nodes: list[Node], ices: Crowd, token: str
    ) -> None:
        self._plan = plan
        self._server = server
        self._nodes = nodes
        self._ices = ices
        self._headers = {"Authorization": f"Bearer {token}"}
        self._expected = ices.size
        self.outcome = Outcome(ices.size, plan.nodes, plan.bystander)

    def _sample(self) -> Sample:
        logs = [node.log for node in self._nodes]
        return sample(self._server, DATABASE, [node.pid for node in self._nodes], logs)

    def _note(self, phase: str, **figures: Any) -> None:
        self.outcome.phases[phase] = figures
        print(f"{phase}: {_short(figures)}", flush=True)

    @contextlib.asynccontextmanager
    async def _measured(self, phase: str) -> AsyncIterator[dict[str, Any]]:
        """Put down what the machine did meanwhile, beside what the body adds."""
        before, cpu = self._sample(), self._ices.cpu
        figures: dict[str, Any] = {}
        yield figures
        span = self._sample().since(before).json()
        generators = (self._ices.cpu - cpu) / span["seconds"]
        self._note(phase, **figures, **span, generators_cpu_per_s=round(generators, 3))

    async def empty(self) -> None:
        """Nodes without ICEs."""
        await asyncio.sleep(self._plan.settle)
        async with self._measured("empty"):
            await asyncio.sleep(self._plan.quiet / 2)

    async def ramp(self) -> None:
        """All ICEs come, some hundred at a time."""
        await self._ices.look()
        async with self._measured("ramp") as figures:
            began = time.monotonic()
            self._ices.tell("connect", at_once=_AT_ONCE)
            seen = await self._ices.until(self._expected, 60 + self._expected / 100)
            took = seen.last_admitted - began
            figures.update(_seen(seen), took=took, per_s=seen.admitted / took)
            await asyncio.sleep(self._plan.settle)
        if seen.connected < self._expected:
            raise RuntimeError(
                f"{seen.connected} of {self._expected} came in: {seen.refused} {seen.errors}"
            )

    async def quiet(self) -> None:
        """All ICEs are there and do nothing."""
        async with self._measured("quiet") as figures:
            await asyncio.sleep(self._plan.quiet)
            figures.update(_seen(await self._ices.look()))

    async def churn(self) -> None:
        """A few come and go; they do so from here on."""
        # Autovacuum would write most pages after the ramp, at some moment.
        self._server.sql("VACUUM ANALYZE", "CHECKPOINT", database=DATABASE)
        pages = pages_of(self._server, DATABASE)
        async with self._measured("churn") as figures:
            self._ices.tell("churn", per_s=self._plan.churn * self._expected / 60)
            await asyncio.sleep(self._plan.quiet + self._plan.settle)
            figures.update(_seen(await self._ices.look()), relation_pages=pages)

    async def idle(self, seconds: float) -> None:
        """While they do, an admin looks at pages and deregisters a hundred."""
        async with self._measured("idle") as figures:
            ending = time.monotonic() + seconds
            async with aiohttp.ClientSession(headers=self._headers) as session:
                looking = asyncio.create_task(self._look(session, ending))
                answered, closed = await self._deregister(session, ending)
                pages_took = await looking
            self._ices.tell("churn", per_s=0)
            seen = await self._ices.look()
            figures.update(_seen(seen), page_ms=percentiles(pages_took))
            figures.update(
                drop_answered_ms=percentiles(answered), drop_closed_ms=percentiles(closed)
            )
        late = await self._ices.until(self._expected, _LATE)
        self._missing("idle", late)
        unexpected = {code: count for code, count in seen.closed.items() if code != "4101"}
        if unexpected:
            self.outcome.faults.append(f"idle: sessions were closed: {unexpected}")

    async def _look(self, session: aiohttp.ClientSession, ending: float) -> list[float]:
        """Page through the ICEs, at the nodes in turn; milliseconds of each page."""
        took: list[float] = []
        cursor = ""
        while time.monotonic() < ending:
            node = self._nodes[len(took) % len(self._nodes)]
            began = time.perf_counter()
            query = {"limit": "50", **({"cursor": cursor} if cursor else {})}
            async with session.get(f"{node.url}{API}/ices", params=query) as answer:
                body = await answer.json()
                if answer.status != 200:
                    raise RuntimeError(f"a page of ICEs was answered {answer.status}: {body}")
                cursor = body["next"] or ""
            took.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(_PAGE_EVERY)
        return took

    async def _deregister(
        self, session: aiohttp.ClientSession, ending: float
    ) -> tuple[list[float], list[float]]:
        """Deregister a hundred, at the nodes in turn; milliseconds until the answer, and until each ICE knew."""
        answered, closed = [], []
        count = min(DEREGISTRATIONS, self._expected // 10)
        numbers = random.Random(1).sample(range(self._ices.size), count)
        pause = max(0.0, ending - time.monotonic() - 1.0) / count
        for turn, number in enumerate(numbers):
            await asyncio.sleep(pause)
            node = self._nodes[turn % len(self._nodes)]
            url = f"{node.url}{API}/ices/{name_of(number)}/deregister"
            began = time.monotonic()
            async with session.post(url) as answer:
                body = await answer.json()
            if answer.status != 200 or body["unconfirmed"]:
                self.outcome.faults.append(
                    f"deregistering {name_of(number)}: {answer.status} {body}"
                )
                continue
            answered.append(1000 * (time.monotonic() - began))
            self._expected -= 1
            if body["dropped"]:  # else it was away in its turn
                async with asyncio.timeout(_LATE):
                    while number not in self._ices.closed:  # noqa: ASYNC110 - told by another process
                        await asyncio.sleep(0.005)
                code, at = self._ices.closed[number]
                closed.append(1000 * (at - began))
                if code != DEREGISTERED:
                    self.outcome.faults.append(f"{name_of(number)} was closed with {code}")
        return answered, closed

    async def restart(self) -> None:
        """Stop and start every node, each as soon as the one before it serves again, as an orchestrator does."""
        began, took = time.monotonic(), []
        cpu = self._ices.cpu
        await self._ices.look()
        for node in self._nodes:
            stopped = time.monotonic()
            node.signal(signal.SIGTERM)
            status = await node.ended()
            if status:
                self.outcome.faults.append(f"{node.name} ended with {status}")
            await node.start()
            took.append(time.monotonic() - stopped)
        reckoned = self._expected / len(self._nodes) / SPREAD
        seen = await self._ices.until(self._expected, reckoned + 60 + _LATE)
        self._note(
            "restart",
            **_seen(seen),
            took=time.monotonic() - began,
            node_took=percentiles(took),
            all_back=seen.last_admitted - began,
            away=percentiles(seen.absences),
            generators_cpu_per_s=round((self._ices.cpu - cpu) / (time.monotonic() - began), 3),
        )
        self._missing("restart", seen)

    async def storm(self) -> None:
        """Every connection breaks at the same time, of sessions that have lasted long enough to reset the backoff."""
        await asyncio.sleep(self._plan.steady)
        await self._ices.look()
        async with self._measured("storm") as figures:
            began = time.monotonic()
            self._ices.tell("break")
            seen = await self._ices.until(self._expected, 60 + self._expected / 200)
            took = seen.last_admitted - began
            figures.update(_seen(seen), all_back=took, per_s=seen.admitted / took)
            figures.update(away=percentiles(seen.absences))
        self._missing("storm", seen)

    def _missing(self, phase: str, seen: Seen) -> None:
        missing = self._expected - seen.connected
        self.outcome.phases[phase]["missing"] = missing
        if missing:
            self.outcome.faults.append(
                f"{phase}: {missing} did not come back: {seen.refused} {seen.errors}"
            )


def _seen(seen: Seen) -> dict[str, Any]:
    return {
        "connected": seen.connected,
        "admitted": seen.admitted,
        "went": seen.went,
        "refused": dict(seen.refused),
        "closed": dict(seen.closed),
        "errors": dict(seen.errors),
        "admission_ms": percentiles([1000 * value for value in seen.latencies]),
    }


def _short(figures: dict[str, Any]) -> str:
    def of(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        if isinstance(value, list):
            return f"[{', '.join(map(of, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{name} {of(one)}' for name, one in value.items())}}}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return "; ".join(f"{name} {of(value)}" for name, value in figures.items())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def play(plan: Plan) -> Outcome:
    """The whole run. Raises RuntimeError where it cannot go on."""
    began, load = time.monotonic(), os.getloadavg()[0]
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.to_thread(lambda: stack.enter_context(postgres(*_SETTINGS)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ice-scale-")))
        server.sql(f"CREATE DATABASE {DATABASE}")
        ports = [_free_port() for _ in range(plan.nodes)]
        given = ports[:-1] if plan.bystander else ports
        ices = await stack.enter_async_context(crowd(folder, plan.ices, plan.nodes, given))
        tokens = [folder / f"tokens-{number}" for number in range(plan.nodes)]
        key_file = folder / "keys.json"
        url = server.url(DATABASE)
        token = await prepare(url, key_file, ices.thumbprints, tokens)
        await ices.take(tokens)
        server.sql("VACUUM ANALYZE", database=DATABASE)
        nodes = [
            Node(folder, f"gw-{number + 1}", url, PUBLIC, SERVER__PORT=str(port))
            for number, port in enumerate(ports)
        ]
        await stack.enter_async_context(running(nodes))
        story = Story(plan, server, nodes, ices, token)
        prepared = time.monotonic() - began
        story.outcome.facts.update(load=load, prepared_s=prepared, entries_database=_size(server))
        print(f"{ices.size:,} ICEs prepared in {prepared:.0f} s", flush=True)
        await story.empty()
        await story.ramp()
        await story.quiet()
        await story.churn()
        # What is still to come is reckoned with by what the first admissions took.
        ramp = story.outcome.phases["ramp"]["took"]
        after = 6 * plan.nodes + ices.size / plan.nodes / SPREAD + 1.5 * ramp + _LATE + plan.steady
        left = plan.limit - (time.monotonic() - began) - after
        busy = max(10.0, min(plan.idle - 2 * plan.quiet, left))
        story.outcome.facts["idle_s"] = 2 * plan.quiet + plan.settle + busy
        await story.idle(busy)
        await story.restart()
        await story.storm()
        story.outcome.facts["whole_s"] = time.monotonic() - began
        return story.outcome


def _size(server: Postgres) -> int:
    return int(server.sql(f"SELECT pg_database_size('{DATABASE}')").strip())
