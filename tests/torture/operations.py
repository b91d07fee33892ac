"""Operations while `kill -9` goes round: the gateway, the reference clients and their lines, at random.

All are real: processes, sockets, files. A third of the operations are for pools, and three schedules request more: the
clocks go twenty times as fast. Each operation that was accepted has to come to an end, and that has to agree with
files in which the clients' handlers note, for themselves, what they begin and end. Each occurrence of a schedule has to
be one operation or a skipped entry of its history.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import secrets
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp

from client.agent import IceClient
from client.environment import Environment
from client.journal import Journal
from client.operations import OperationFailed
from gateway.app import Tuning, run_gateway
from gateway.core import operation
from gateway.core.operation import Move, State
from gateway.node.node import NodeLimits
from gateway.node.operation_reports import OperationReports
from gateway.runtime.logs import configure
from gateway.store import operations, schedules
from gateway.store.open import open_store
from tests.support.clock import FastClock
from tests.support.harness import API, harness, settings_for
from tests.support.schedules import faults_of as schedule_faults

POOLS = {"all": ("lab-1", "lab-2"), "one": ("lab-2",)}
"""Their ICEs."""
NAMES = POOLS["all"]
_LEARNED = "lab-2"
"""The ICE that debugs; the other refuses that."""
_PACE = 20.0
"""Seconds of all clocks in one second."""
_SCHEDULES = (
    {"cron": "* * * * *", "pool": "all"},
    {"cron": "*/2 * * * *", "pool": "one", "grace": 60},
    {"cron": "* * * * *", "ice_name": "lab-1"},
)
FINAL = {"succeeded", "failed", "cancelled", "expired", "lost"}
_PATIENCE = 60.0
"""Seconds for everything to come to its end once nothing is killed any more."""
_HELLO = timedelta(seconds=2)
"""How long a finish may take after a hello: 30 s would make a long story."""


# --- the processes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Where a story takes place; `began` is when its clocks began, in seconds since 1970."""

    folder: Path
    port: int
    began: float
    mutation: str | None

    @property
    def url(self) -> str:
        """The gateway's."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def clock(self) -> FastClock:
        """The clock of all processes."""
        return FastClock(self.began, _PACE)

    def mutate(self) -> None:
        """Break something on purpose, if this is the story of that."""
        if self.mutation in MUTATIONS:
            MUTATIONS[self.mutation]()

    def truth(self, name: str) -> Path:
        """What the handlers of an ICE have noted."""
        return self.folder / f"{name}.truth"


def serve(stage: Stage, notes: Any) -> None:
    """A gateway; notes that it listens."""
    configure("json", "error")
    grace = timedelta() if stage.mutation == _AGAIN else _HELLO
    tuning = Tuning(node=NodeLimits(finish_grace=grace, schedule_look=0.1))
    stage.mutate()

    async def run() -> None:
        settings = settings_for(stage.folder, server__port=stage.port)
        async with run_gateway(settings, clock=stage.clock, tuning=tuning):
            notes.send("listens")
            await asyncio.Event().wait()

    asyncio.run(run())


def work(stage: Stage, name: str, token: str, notes: Any) -> None:
    """An ICE whose handler notes in its file what it begins and ends; notes each admission."""
    stage.mutate()

    def note(line: str) -> None:
        os.write(truth, f"{line}\n".encode())

    async def execute(given: Any, report: Any) -> Any:
        note(f"begin {given.id}")
        await asyncio.sleep(given.params["seconds"] / 2)
        await report(0.5)
        await asyncio.sleep(given.params["seconds"] / 2)
        note(f"end {given.id}")
        if given.params["fails"]:
            raise OperationFailed("broken", given.id)
        return {"did": given.id}

    async def run() -> None:
        async def soon(seconds: float) -> None:
            await asyncio.sleep(min(seconds, 0.05))

        kinds = ["execute", "schedule", *(["debug"] if name == _LEARNED else [])]
        client = IceClient(
            stage.url,
            state_dir=stage.folder / name,
            token=token,
            handlers=dict.fromkeys(kinds, execute),
            observe=lambda event: notes.send(event.kind),
            environment=Environment(now=stage.clock.unix, sleep=soon),
        )
        async with client:
            await client.wait()

    truth = os.open(stage.truth(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(run())


# --- faults that this has to find ----------------------------------------------------------------


def _send_what_is_lost_again() -> None:
    operation.MOVES = {**operation.MOVES, Move.LOSE: (operation.ACTIVE, State.QUEUED)}


def _forget_what_was_accepted() -> None:
    Journal.interrupted = lambda self: []  # type: ignore[method-assign]


def _answer_before_the_commit() -> None:
    finish = OperationReports.finished

    async def early(self: Any, session: Any, request: Any, told: Any) -> None:
        session.answer(request, None)
        await asyncio.sleep(0.2)
        await finish(self, session, request, told)

    OperationReports.finished = early  # type: ignore[method-assign]


def _record_no_skipped_occurrence() -> None:
    record = schedules.record

    async def only_those_that_run(transaction: Any, schedule_id: str, occurrences: Any) -> None:
        ran = [one for one in occurrences if one.skipped is None]
        await record(transaction, schedule_id, ran)

    schedules.record = only_those_that_run  # type: ignore[assignment]


_AGAIN = "send-what-is-lost-again"
MUTATIONS: dict[str, Callable[[], None]] = {
    _AGAIN: _send_what_is_lost_again,
    "forget-what-was-accepted": _forget_what_was_accepted,
    "answer-before-the-commit": _answer_before_the_commit,
    "record-no-skipped-occurrence": _record_no_skipped_occurrence,
}


# --- the story -----------------------------------------------------------------------------------


@dataclass
class Done:
    """What became of all operations and occurrences, and whatever does not agree."""

    states: Counter[str]
    occurrences: Counter[str]
    kills: Counter[str]
    faults: list[str]


class Process:
    """A gateway or a client, started again each time."""

    def __init__(self, context: Any, target: Any, *arguments: Any) -> None:
        self._context = context
        self._target = target
        self._arguments = arguments
        self._running: tuple[Any, Any] | None = None

    async def start(self, until: str) -> None:
        notes, theirs = self._context.Pipe()
        process = self._context.Process(
            target=self._target, args=(*self._arguments, theirs), daemon=True
        )
        process.start()
        theirs.close()
        self._running = process, notes
        await asyncio.to_thread(_await, notes, until)

    def tell(self, what: Any) -> None:
        """Send it something through its pipe."""
        assert self._running is not None
        self._running[1].send(what)

    async def ended(self, within: float) -> bool:
        """Wait for its end, at most so many seconds; whether it has ended."""
        assert self._running is not None
        process, _ = self._running
        await asyncio.to_thread(process.join, within)
        return process.exitcode is not None

    async def kill(self) -> None:
        if self._running is not None:
            process, notes = self._running
            process.kill()
            await asyncio.to_thread(process.join)
            process.close()
            notes.close()
            self._running = None


def _await(notes: Any, word: str) -> None:
    until = time.monotonic() + _PATIENCE
    while notes.poll(max(0.0, until - time.monotonic())):
        if notes.recv() == word:
            return
    raise TimeoutError(f"{word!r} was not heard in time")


class Caller:
    """Asks until it has an answer, as a script does: with the same idempotency key."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._api = url + API
        self.keys: dict[str, str] = {}

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        while True:
            try:
                async with self._session.request(method, self._api + path, json=body) as answer:
                    told = await answer.json(content_type=None)  # none of a 204
                    if answer.status < 500:
                        return answer.status, told
            except (aiohttp.ClientError, ConnectionError, json.JSONDecodeError):
                pass
            await asyncio.sleep(0.01)

    async def request(self, number: int, chance: random.Random) -> str:
        """One of an ICE, or the third of a pool; some are cancelled."""
        key = f"operation {number}"
        pool = chance.choice(list(POOLS)) if number % 3 == 0 else None
        kinds = ["execute", "execute", "debug"] if pool is not None else ["execute"]
        body = {
            "kind": chance.choice(kinds),
            "params": {"seconds": chance.uniform(0, 0.15), "fails": chance.random() < 0.2},
            "idempotency_key": key,
        }
        target = f"/pools/{pool}" if pool is not None else f"/ices/{chance.choice(NAMES)}"
        status, told = await self.call("POST", f"{target}/operations", body)
        if status not in (200, 202):
            raise AssertionError(f"operation {number} was refused: {status} {told}")
        self.keys[told["id"]] = key
        if chance.random() < 0.05:
            await self.call("POST", f"/operations/{told['id']}/cancel")
        return str(told["id"])

    async def prepare(self) -> list[str]:
        """Make the pools and schedules; returns the ids of these."""
        for name, ices in POOLS.items():
            for ice_name in ices:
                await self._done("PATCH", f"/ices/{ice_name}", {"labels": {name: "yes"}})
            await self._done("PUT", f"/pools/{name}", {"labels": {name: "yes"}})
        made = []
        for number, how in enumerate(_SCHEDULES):
            params = {"seconds": 0.1, "fails": False}
            usual = {"name": f"schedule {number}", "timezone": "UTC", "params": params}
            made.append((await self._done("POST", "/schedules", usual | how))["id"])
        return made

    async def _done(self, method: str, path: str, body: Any) -> Any:
        status, told = await self.call(method, path, body)
        if status >= 400:
            raise AssertionError(f"{method} {path} was refused: {status} {told}")
        return told

    async def stop(self, schedules: list[str]) -> None:
        """Let the schedules come no more."""
        for schedule in schedules:
            await self._done("PATCH", f"/schedules/{schedule}", {"enabled": False})

    async def listed(self) -> dict[str, Any]:
        found, query = {}, "?limit=200"
        while True:
            _, page = await self.call("GET", f"/operations{query}")
            found |= {item["id"]: item for item in page["items"]}
            if page["next"] is None:
                return found
            query = f"?limit=200&cursor={page['next']}"


async def torture(count: int, seed: int, mutation: str | None = None) -> Done:
    """Have `count` operations done while processes die; what became of them."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ice-operations-") as name:
        with socket.create_server(("127.0.0.1", 0)) as free:
            stage = Stage(Path(name), free.getsockname()[1], time.time(), mutation)
        async with _started(stage) as (processes, caller):
            kills: Counter[str] = Counter()
            enough = asyncio.Event()
            made = await caller.prepare()
            async with asyncio.TaskGroup() as group:
                group.create_task(_kill(processes, caller, chance, kills, enough))
                for number in range(count):
                    await caller.request(number, chance)
                    if chance.random() < 0.02:
                        await caller.call("POST", f"/schedules/{chance.choice(made)}/run")
                    await asyncio.sleep(chance.uniform(0, 0.25))
                enough.set()
            await caller.stop(made)
            found = await _ended(caller)
            occurrences, faults = await _accounted(stage.folder, made)
            truth = {name: stage.truth(name).read_text().split("\n")[:-1] for name in NAMES}
            states = Counter(item["state"] for key, item in found.items() if key in caller.keys)
            faults += faults_of(found, caller.keys, truth)
            return Done(states, occurrences, kills, faults)


async def _accounted(folder: Path, made: list[str]) -> tuple[Counter[str], list[str]]:
    """What became of the occurrences of schedules that are stopped, and what is amiss."""
    outcomes: Counter[str] = Counter()
    faults = []
    async with open_store(settings_for(folder).database_url) as engine:
        rows, requested = schedules.Schedules(engine.fetch), operations.Operations(engine.fetch)
        for schedule_id in made:
            schedule = await rows.find(schedule_id)
            assert schedule is not None
            history = [one.occurrence for one in await rows.occurrences(schedule_id, 2000)][::-1]
            where = operations.OperationFilter(schedule=schedule_id)
            page, _ = await requested.page(where, 5000, brief=True)
            theirs = [each.operation for each in page]
            found = schedule_faults(schedule, history, theirs)
            faults += [f"{schedule.name}: {fault}" for fault in found]
            for one in history:
                outcomes["ran" if one.skipped is None else one.skipped.value] += one.count
    return outcomes, faults


@contextlib.asynccontextmanager
async def _started(stage: Stage) -> AsyncIterator[tuple[dict[str, Process], Caller]]:
    """The processes: the gateway, and the ICEs by their names."""
    async with harness(stage.folder) as running:
        tokens = {name: (await running.provision(name)).token for name in NAMES}
        bearer = str(running.admin.token)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = {"gateway": Process(context, serve, stage)}
    for name, token in tokens.items():
        processes[name] = Process(context, work, stage, name, token)
    headers = {"Authorization": f"Bearer {bearer}"}
    try:
        await processes["gateway"].start("listens")
        for name in NAMES:
            await processes[name].start("admitted")
        async with aiohttp.ClientSession(headers=headers) as session:
            yield processes, Caller(session, stage.url)
    finally:
        for process in processes.values():
            await process.kill()


async def _kill(
    processes: dict[str, Process],
    caller: Caller,
    chance: random.Random,
    kills: Counter[str],
    enough: asyncio.Event,
) -> None:
    gateway = processes["gateway"]
    while not enough.is_set():
        await asyncio.sleep(chance.uniform(0, 0.1))
        what = chance.choice(["gateway", "client", "line", "gateway and client", "pause"])
        name = chance.choice(NAMES)
        kills[what] += 1
        if what == "line":
            await caller.call("POST", f"/ices/{name}/disconnect")
            continue
        if what == "pause":
            await caller.call("POST", f"/ices/{name}/pause", {})
            await asyncio.sleep(chance.uniform(0, 0.3))
            await caller.call("POST", f"/ices/{name}/resume", {})
            continue
        if "client" in what:
            await processes[name].kill()
        if "gateway" in what:
            await gateway.kill()
            await gateway.start("listens")
        if "client" in what:
            await processes[name].start("admitted")


async def _ended(caller: Caller) -> dict[str, Any]:
    """All operations once they have finished, or as they are after a while."""
    until = time.monotonic() + _PATIENCE
    while True:
        found = await caller.listed()
        if all(item["state"] in FINAL for item in found.values()) or time.monotonic() > until:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # what was lost may be corrected by the ICE's own word
    return await caller.listed()


def faults_of(
    found: dict[str, Any], keys: dict[str, str], truth: dict[str, list[str]]
) -> list[str]:
    """Whatever the table says and the truth, the notes of each ICE, does not; `keys` were requested."""
    begun = Counter(line[6:] for notes in truth.values() for line in notes if line[:6] == "begin ")
    ended = Counter(line[4:] for notes in truth.values() for line in notes if line[:4] == "end ")
    faults = [f"{name} ran {count} times" for name, count in begun.items() if count > 1]
    faults += [f"{name} was accepted and is gone" for name in keys.keys() - found.keys()]
    faults += [
        f"{name} was requested by nobody"
        for name in found.keys() - keys.keys()
        if found[name].get("schedule") is None
    ]
    for name, item in found.items():
        if not _is_true(item, name, begun[name], ended[name]):
            code = (item["error"] or {}).get("code")
            ran = f"begun {begun[name]} and ended {ended[name]} times"
            faults.append(f"{name} is {item['state']} ({code}), and was {ran}")
    for ice_name, notes in truth.items():
        theirs = [found.get(line[6:], {}) for line in notes if line[:6] == "begin "]
        faults += [
            f"{item['id']} ran on {ice_name}, and is of {item['pool'] or item['ice_name']}"
            for item in theirs
            if item.get("ice_name", ice_name) != ice_name
            or ice_name not in POOLS.get(item.get("pool") or "", NAMES)
        ]
    return faults


def _is_true(item: dict[str, Any], name: str, begun: int, ended: int) -> bool:
    """Whether an operation that was begun and ended so often may have become this."""
    code = (item["error"] or {}).get("code")
    match item["state"]:
        case "succeeded":
            return ended == 1 and item["result"] == {"did": name}
        case "failed":
            # Interrupted: accepted when the client died, begun or not, and not yet in its journal as done.
            return code == "interrupted" or (code == "broken" and ended == 1)
        case "lost" | "expired":
            # Of what it has begun a client knows what became of it, and says so.
            return not begun
        case state:
            return bool(state == "cancelled")


def report(done: Done, seed: int, count: int) -> str:
    """A line for each fault, and how to do it again."""
    again = (
        f"  again, more or less: python -m tests.torture.operations --seed {seed} --count {count}"
    )
    return "\n".join([*done.faults, again]) if done.faults else ""


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--mutate", choices=MUTATIONS, help="break something on purpose")
    given = parser.parse_args()
    configure("text", "error")
    began = time.monotonic()
    done = asyncio.run(torture(given.count, given.seed, given.mutate))
    print(report(done, given.seed, given.count) or "every operation came to a true end")
    print(f"states: {dict(done.states)}; occurrences: {dict(done.occurrences)}")
    print(f"killed: {dict(done.kills)}")
    print(f"{given.count} operations, seed {given.seed}, {time.monotonic() - began:.1f} s")
    return 1 if done.faults else 0


if __name__ == "__main__":
    sys.exit(main())
