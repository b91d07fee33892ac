"""Three schedules while `kill -9` goes round among the gateways: each occurrence is accounted for once.

The processes are real, their clocks go sixty times as fast. On PostgreSQL there are two nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.app import Tuning, run_gateway
from gateway.core.audit_event import Actor, Via
from gateway.core.pool import Pool
from gateway.core.problems import Problem
from gateway.core.schedule import Schedule
from gateway.node.node import NodeLimits
from gateway.runtime.logs import configure
from gateway.services.operation_requests import OperationService
from gateway.services.schedules import ScheduleService, WantedSchedule
from gateway.store import pools
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.open import open_store
from gateway.store.operations import OperationFilter, Operations
from gateway.store.schedules import Schedules
from tests.support.clock import FastClock
from tests.support.harness import harness, settings_for
from tests.support.postgres import postgres
from tests.support.schedules import faults_of
from tests.torture.operations import Process

PACE = 60.0
"""Seconds of the gateways' clocks in one second."""
_PATIENCE = 30.0
_ROOT = Actor("root", Via.API, "192.0.2.1")
_SCHEDULES = (
    {"cron": "* * * * *", "ice_name": "lab-1"},
    {"cron": "*/2 * * * *", "pool": "builders", "grace": 60},
    {"cron": "1,2,3,5,8,13,21,34,55 * * * *", "pool": "builders", "timezone": "Europe/Berlin"},
)


def serve(folder: Path, options: dict[str, Any], began: float, notes: Any) -> None:
    """A gateway; notes that it runs."""
    configure("json", "critical")
    tuning = Tuning(node=NodeLimits(schedule_look=0.02))

    async def run() -> None:
        settings = settings_for(folder, **options)
        async with run_gateway(settings, clock=FastClock(began, PACE), tuning=tuning):
            notes.send("runs")
            await asyncio.Event().wait()

    asyncio.run(run())


@dataclass
class Done:
    """What became of the occurrences, how often a gateway was killed, and what is amiss."""

    outcomes: Counter[str]
    kills: int
    faults: list[str]


async def torture(seconds: float, seed: int, url: str | None = None) -> Done:
    """Let the gateways die at random for so many seconds; what became of the occurrences.

    With the `url` of a PostgreSQL there are two of them, else one on a file.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ice-schedules-") as name:
        folder = Path(name)
        options: dict[str, Any] = {}
        if url is not None:
            keys = str(folder / "keys.json")
            options = {"database__url": url, "tokens__key_file": keys, "node__lease": "2s"}
        async with harness(folder, **options) as running:
            await (await running.provision("lab-1")).connect()
            await running.settled()
        names = ["node-a"] if url is None else ["node-a", "node-b"]
        async with (
            _processes(folder, options, names) as (clock, processes),
            open_store(settings_for(folder, **options).database_url) as engine,
        ):
            made = await _make(engine, clock)
            kills = await _kill(engine, processes, chance, seconds, clock)
            await _settled(engine, clock)
            return await _judged(engine, made, kills)


@contextlib.asynccontextmanager
async def _processes(
    folder: Path, options: dict[str, Any], names: list[str]
) -> AsyncIterator[tuple[FastClock, list[Process]]]:
    began = time.time()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    found = [
        Process(context, serve, folder, options | {"node__name": name}, began) for name in names
    ]
    try:
        await asyncio.gather(*(each.start("runs") for each in found))
        yield FastClock(began, PACE), found
    finally:
        for each in found:
            await each.kill()


async def _make(engine: Engine, clock: Callable[[], datetime]) -> list[Schedule]:
    pool = Pool("builders", "", None, {"os": "linux"}, "root", clock())
    await engine.write(lambda transaction: pools.add(transaction, pool))
    requests = OperationService(engine=engine, clock=clock, kept_bytes=10**9)
    service = ScheduleService(engine=engine, clock=clock, requests=requests)
    made = []
    for how in _SCHEDULES:
        wanted = WantedSchedule(**{"name": how["cron"], "timezone": "UTC"} | how)  # type: ignore[arg-type]
        prepared = service.prepare(_ROOT, wanted)
        assert not isinstance(prepared, Problem), prepared
        stored = await service.create(_ROOT, prepared)
        assert not isinstance(stored, Problem), stored
        made.append(stored)
    return made


async def _kill(
    engine: Engine,
    processes: list[Process],
    chance: random.Random,
    seconds: float,
    clock: Callable[[], datetime],
) -> int:
    """Kill and start at random, and end what is requested; returns how often."""
    kills, until = 0, time.monotonic() + seconds
    requests = OperationService(engine=engine, clock=clock, kept_bytes=10**9)
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0, 0.5))
        victim = chance.choice(processes)
        await victim.kill()
        kills += 1
        if chance.random() < 0.2:  # long enough for several to be missed
            await asyncio.sleep(chance.uniform(0, 3))
        await victim.start("runs")
        if chance.random() < 0.7:
            with contextlib.suppress(StoreUnavailable):
                found, _ = await Operations(engine.fetch).page(OperationFilter(), 200, brief=True)
                for one in found:
                    if not one.operation.is_finished:
                        await requests.cancel(_ROOT, one.operation.id)
    return kills


async def _settled(engine: Engine, clock: Callable[[], datetime]) -> None:
    """All that was due by now is decided on."""
    now, until = clock(), time.monotonic() + _PATIENCE
    rows = Schedules(engine.fetch)
    while (earliest := await rows.earliest()) is not None and earliest <= now:
        if time.monotonic() > until:
            raise TimeoutError("what is due is not decided on")
        await asyncio.sleep(0.05)


async def _judged(engine: Engine, made: list[Schedule], kills: int) -> Done:
    outcomes: Counter[str] = Counter()
    faults = []

    async def unit(transaction: Any) -> list[Any]:
        # From one snapshot: the gateways still run.
        in_it, operations = Schedules(transaction.fetch), Operations(transaction.fetch)
        found = []
        for one in made:
            page, _ = await operations.page(OperationFilter(schedule=one.id), 5000, brief=True)
            history = await in_it.occurrences(one.id, 2000)
            found.append((await in_it.find(one.id), history, page))
        return found

    for schedule, history, page in await engine.write(unit):
        told = [each.occurrence for each in reversed(history)]
        for each in told:
            outcomes["ran" if each.skipped is None else each.skipped.value] += each.count
        found = faults_of(schedule, told, [each.operation for each in page])
        faults += [f"{schedule.cron}: {fault}" for fault in found]
    return Done(outcomes, kills, faults)


def report(done: Done, seed: int) -> str:
    """In a line or more."""
    outcomes = ", ".join(f"{name}: {count}" for name, count in sorted(done.outcomes.items()))
    return "\n".join(
        [f"seed {seed}, killed {done.kills} times; occurrences: {outcomes}", *done.faults]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--engine", choices=["sqlite", "postgresql"], default="sqlite")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = None
        if given.engine == "postgresql":
            url = stack.enter_context(postgres()).database()
        outcome = asyncio.run(torture(given.seconds, given.seed, url))
    print(report(outcome, given.seed))
    sys.exit(bool(outcome.faults))
