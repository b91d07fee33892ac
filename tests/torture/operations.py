"""Operations while `kill -9` goes round: the gateway, the reference client and the line, at random.

All are real: processes, sockets, files. Each operation that was accepted has to come to an end, and that
has to agree with a file in which the client's handler notes, for itself, what it begins and ends.
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
from tests.support.harness import API, harness, settings_for

NAME = "lab-1"
FINAL = {"succeeded", "failed", "cancelled", "expired", "lost"}
_PATIENCE = 60.0
"""Seconds for everything to come to its end once nothing is killed any more."""
_HELLO = timedelta(seconds=2)
"""How long a finish may take after a hello: 30 s would make a long story."""


# --- the processes -------------------------------------------------------------------------------


def serve(folder: Path, port: int, mutation: str | None, notes: Any) -> None:
    """A gateway; notes that it listens."""
    configure("json", "error")
    grace = timedelta() if mutation == _AGAIN else _HELLO
    tuning = Tuning(node=NodeLimits(finish_grace=grace))
    if mutation in MUTATIONS:
        MUTATIONS[mutation]()

    async def run() -> None:
        async with run_gateway(settings_for(folder, server__port=port), tuning=tuning):
            notes.send("listens")
            await asyncio.Event().wait()

    asyncio.run(run())


def work(folder: Path, url: str, token: str, mutation: str | None, notes: Any) -> None:
    """An ICE whose handler notes in `truth` what it begins and ends; notes each admission."""
    if mutation in MUTATIONS:
        MUTATIONS[mutation]()

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

        client = IceClient(
            url,
            state_dir=folder / "state",
            token=token,
            handlers={"execute": execute},
            observe=lambda event: notes.send(event.kind),
            environment=Environment(sleep=soon),
        )
        async with client:
            await client.wait()

    truth = os.open(folder / "truth", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
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


_AGAIN = "send-what-is-lost-again"
MUTATIONS: dict[str, Callable[[], None]] = {
    _AGAIN: _send_what_is_lost_again,
    "forget-what-was-accepted": _forget_what_was_accepted,
    "answer-before-the-commit": _answer_before_the_commit,
}


# --- the story -----------------------------------------------------------------------------------


@dataclass
class Done:
    """What became of all operations, and whatever does not agree."""

    states: Counter[str]
    kills: Counter[str]
    faults: list[str]


class Process:
    """One of the two, started again each time."""

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
        key = f"operation {number}"
        body = {
            "kind": "execute",
            "params": {"seconds": chance.uniform(0, 0.15), "fails": chance.random() < 0.2},
            "idempotency_key": key,
        }
        status, told = await self.call("POST", f"/ices/{NAME}/operations", body)
        if status not in (200, 202):
            raise AssertionError(f"operation {number} was refused: {status} {told}")
        self.keys[told["id"]] = key
        if chance.random() < 0.05:
            await self.call("POST", f"/operations/{told['id']}/cancel")
        return str(told["id"])

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
        async with _started(Path(name), mutation) as (gateway, client, caller):
            kills: Counter[str] = Counter()
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(_kill((gateway, client), caller, chance, kills, enough))
                for number in range(count):
                    await caller.request(number, chance)
                    await asyncio.sleep(chance.uniform(0, 0.25))
                enough.set()
            found = await _ended(caller)
            truth = (Path(name) / "truth").read_text().split("\n")[:-1]
            states = Counter(item["state"] for item in found.values())
            return Done(states, kills, faults_of(found, caller.keys, truth))


@contextlib.asynccontextmanager
async def _started(
    folder: Path, mutation: str | None
) -> AsyncIterator[tuple[Process, Process, Caller]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with harness(folder) as running:
        token = (await running.provision(NAME)).token
        bearer = str(running.admin.token)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    gateway = Process(context, serve, folder, port, mutation)
    client = Process(context, work, folder, url, token, mutation)
    headers = {"Authorization": f"Bearer {bearer}"}
    try:
        await gateway.start("listens")
        await client.start("admitted")
        async with aiohttp.ClientSession(headers=headers) as session:
            yield gateway, client, Caller(session, url)
    finally:
        await gateway.kill()
        await client.kill()


async def _kill(
    both: tuple[Process, Process],
    caller: Caller,
    chance: random.Random,
    kills: Counter[str],
    enough: asyncio.Event,
) -> None:
    gateway, client = both
    while not enough.is_set():
        await asyncio.sleep(chance.uniform(0, 0.1))
        what = chance.choice(["gateway", "client", "line", "gateway and client"])
        kills[what] += 1
        if what == "line":
            await caller.call("POST", f"/ices/{NAME}/disconnect")
            continue
        if "client" in what:
            await client.kill()
        if "gateway" in what:
            await gateway.kill()
            await gateway.start("listens")
        if "client" in what:
            await client.start("admitted")


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


def faults_of(found: dict[str, Any], keys: dict[str, str], truth: list[str]) -> list[str]:
    """Whatever the table says and the truth does not."""
    begun = Counter(line[6:] for line in truth if line.startswith("begin "))
    ended = Counter(line[4:] for line in truth if line.startswith("end "))
    faults = [f"{name} ran {count} times" for name, count in begun.items() if count > 1]
    faults += [f"{name} was accepted and is gone" for name in keys.keys() - found.keys()]
    faults += [f"{name} was requested by nobody" for name in found.keys() - keys.keys()]
    for name, item in found.items():
        state, code = item["state"], (item["error"] or {}).get("code")
        if state == "succeeded":
            true = ended[name] == 1 and item["result"] == {"did": name}
        elif state == "failed":
            # Interrupted: accepted when the client died, begun or not, and not yet in its journal as done.
            true = code == "interrupted" or (code == "broken" and ended[name] == 1)
        elif state == "lost":
            true = not begun[name]  # or else the client knows what became of it, and has said so
        elif state == "expired":
            true = not begun[name]
        else:
            true = state == "cancelled"
        if not true:
            ran = f"begun {begun[name]} and ended {ended[name]} times"
            faults.append(f"{name} is {state} ({code}), and was {ran}")
    return faults


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
    print(f"states: {dict(done.states)}; killed: {dict(done.kills)}")
    print(f"{given.count} operations, seed {given.seed}, {time.monotonic() - began:.1f} s")
    return 1 if done.faults else 0


if __name__ == "__main__":
    sys.exit(main())
