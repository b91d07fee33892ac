"""kill -9 at every statement of each action: table, log and what every caller was told agree exactly.

    python -m tests.torture.crash [--rounds 300] [--seed N] [--only ROUND] [--mutate NAME]

In each round a gateway dies at a statement of an action, while two admins and two ICEs act at once.
What it was told is kept here; the file is then read anew, and every third time a gateway is started on
it and admits whoever it should. A round is given by the seed and its number, so that it can be done
again; where callers race, the same seed may give another order.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from gateway.core.dpop import Jwk, thumbprint_of
from gateway.core.ice import Ice as Entry
from gateway.core.ice import Status
from gateway.core.roles import Role
from gateway.runtime.logs import configure
from tests.support.harness import API, harness
from tests.support.ice import Ice, Key, Refused
from tests.torture import story, victim
from tests.torture.story import Account, Known
from tests.torture.verdict import digest, disagreements, read
from tests.torture.victim import ACTIONS, COMMITTED, Aim

_PATIENCE = 20.0


@dataclass
class Prologue:
    """The database with which every round begins, and what everybody knows by then."""

    folder: Path
    api_tokens: dict[str, str]
    known: dict[str, Known]
    last: int


@dataclass
class Round:
    """How a round ended: where the gateway died, and what did not agree."""

    number: int
    aim: Aim
    places: list[str]
    faults: list[str]

    @property
    def died_at(self) -> str:
        """The statement, or that the action was refused before it came so far."""
        return self.places[-1] if self.places else "elsewhere"


async def prologue(folder: Path) -> Prologue:
    """Have a gateway make the users and ICEs."""
    known: dict[str, Known] = {}
    async with harness(folder) as running:
        tokens = {
            admin: str((await running.api(admin, Role.ADMIN)).token) for admin in story.ADMINS
        }
        names = story.PROVISIONED + story.REGISTERED + story.DEREGISTERED + story.BULK
        for name in names:
            ice = await running.provision(name, "ci-cd")
            known[name] = Known(ice.token, ice.key)
            if name not in story.PROVISIONED:
                await (await ice.connect()).leave()
        for name in story.DEREGISTERED:
            await running.act(name, "deregister")
    return Prologue(folder, tokens, known, read(folder / "ice.db").entries[-1].seq)


def _aims(learned: list[Round], chance: random.Random) -> Iterator[Aim]:
    """Every statement of every action, in another order for each seed; then somewhere inside of them."""
    every = [
        Aim(one.aim.action, place, one.places[: number + 1].count(place))
        for one in learned
        for number, place in enumerate(one.places[:-1])
    ]
    chance.shuffle(every)
    # In a short run the moments that count: between the row and its event, and at the commit.
    every.sort(key=lambda aim: aim.place not in ("INSERT INTO ice_events", "COMMIT"))
    yield from every
    while every:
        yield replace(chance.choice(every), delay=chance.uniform(0.00001, 0.004))


class Torture:
    """Rounds on copies of one prologue. Processes are forked from one that has everything imported."""

    def __init__(self, start: Prologue, folder: Path, seed: int, mutation: str | None) -> None:
        self._start = start
        self._folder = folder
        self._seed = seed
        self._mutation = mutation
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload([victim.__name__])

    async def round(self, number: int, aim: Aim, *, restart: bool) -> Round:
        """One gateway's life and death."""
        folder = self._folder / f"round-{number}"
        shutil.copytree(self._start.folder, folder)
        chance = random.Random(f"{self._seed} {number}")
        account, places = await self._until_it_dies(folder, aim, chance)
        faults = disagreements(folder, self._start.last, account, self._start.known)
        if restart:
            faults += await self._rise(folder, account)
        if not faults:
            shutil.rmtree(folder)
        return Round(number, aim, places, faults)

    async def _until_it_dies(
        self, folder: Path, aim: Aim, chance: random.Random
    ) -> tuple[Account, list[str]]:
        notes, process = self._spawn(folder, aim, self._mutation)
        try:
            url = await asyncio.to_thread(_next, notes)
            plan = story.plot(chance, aim.action)
            async with asyncio.timeout(_PATIENCE):
                account = await story.act_out(url, plan, self._start.api_tokens, self._start.known)
        finally:
            process.kill()  # the action may have been refused before it came so far
            await asyncio.to_thread(process.join)
            try:
                places = notes.recv()
            except EOFError:
                places = []
            process.close()
            notes.close()
        return account, places

    def _spawn(self, folder: Path, aim: Aim | None, mutation: str | None) -> tuple[Any, Any]:
        notes, theirs = self._fork.Pipe()
        process = self._fork.Process(
            target=victim.run, args=(folder, aim, mutation, theirs), daemon=True
        )
        process.start()
        theirs.close()
        return notes, process

    async def _rise(self, folder: Path, account: Account) -> list[str]:
        """Start a gateway on what was left: it shows the table, and admits who has a current token."""
        rows = read(folder / "ice.db").rows
        notes, process = self._spawn(folder, None, None)
        try:
            url = await asyncio.to_thread(_next, notes)
            async with asyncio.timeout(_PATIENCE):
                return await self._greet(url, rows, self._current(rows, account))
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
            process.close()
            notes.close()

    def _current(self, rows: dict[str, Entry], account: Account) -> dict[str, Known]:
        """Of each ICE what admits it: the token that somebody was shown, the key that was bound."""
        shown = [
            (told.call.names[0], told.body["token"])
            for told in account.told
            if told.status is not None and told.status < 300 and "token" in told.body
        ]
        shown += [(name, known.token) for name, known in self._start.known.items()]
        current = {}
        for name, token in shown:
            row, known = rows.get(name), self._start.known.get(name)
            if row is None or row.ice_token != digest(token):
                continue
            if row.status is Status.PROVISIONED:
                current[name] = Known(token, Key())
            elif known is not None and row.key_thumbprint == thumbprint_of(Jwk(**known.key.jwk)):
                current[name] = Known(token, known.key)
        return current

    async def _greet(
        self, url: str, rows: dict[str, Entry], current: dict[str, Known]
    ) -> list[str]:
        faults = []
        bearer = {"Authorization": f"Bearer {self._start.api_tokens[story.ADMINS[0]]}"}
        async with (
            aiohttp.ClientSession(headers=bearer) as session,
            session.get(f"{url}{API}/ices?limit=200") as answer,
        ):
            listed = (await answer.json())["items"]
        shown = {item["ice_name"]: (item["status"], item["generation"]) for item in listed}
        if shown != {name: (row.status, row.generation) for name, row in rows.items()}:
            faults.append(f"after a start it shows {shown}")
        expected = {name for name, row in rows.items() if row.status is not Status.DEREGISTERED}
        for name in sorted(current):
            ice = Ice(url, current[name].token, current[name].key)
            try:
                connection = await ice.connect()
                await connection.close()
            except Refused as refused:
                faults.append(f"{name} has a current token and was refused: {refused.code}")
        if not current.keys() <= expected:
            faults.append("a deregistered ICE has a current token")
        return faults


def _next(notes: Any) -> Any:
    if not notes.poll(_PATIENCE):
        raise TimeoutError("the gateway did not start")
    return notes.recv()


async def torture(
    rounds: int,
    seed: int,
    *,
    only: int | None = None,
    aim: Aim | None = None,
    mutation: str | None = None,
) -> list[Round]:
    """Do so many rounds, or `only` one of them, or one with this `aim`; all that were done."""
    with tempfile.TemporaryDirectory(prefix="ice-torture-") as name:
        folder = Path(name)
        start = await prologue(_made(folder / "prologue"))
        work = Torture(start, folder, seed, mutation)
        if aim is not None:
            return [await work.round(0, aim, restart=False)]
        # In the first rounds it dies behind the last statement: then all of them are known.
        done = [
            await work.round(number, Aim(action, COMMITTED), restart=number % 3 == 0)
            for number, action in enumerate(ACTIONS)
        ]
        for number, following in enumerate(_aims(done, random.Random(seed)), len(done)):
            if number >= rounds:
                break
            if only in (None, number):
                done.append(await work.round(number, following, restart=number % 3 == 0))
    return done


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def report(done: list[Round], seed: int) -> str:
    """One line for each round that failed, with how to do it again."""
    return "\n".join(
        f"round {one.number} ({one.aim}, died at {one.died_at}): {fault}\n"
        f"  again: python -m tests.torture.crash --seed {seed} --rounds {one.number + 1} --only {one.number}"
        for one in done
        for fault in one.faults
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--only", type=int, metavar="ROUND", help="this alone, and the first few")
    parser.add_argument("--mutate", choices=victim.MUTATIONS, help="break the gateway on purpose")
    given = parser.parse_args()
    configure("text", "error")
    began = time.monotonic()
    done = asyncio.run(torture(given.rounds, given.seed, only=given.only, mutation=given.mutate))
    places = Counter(f"{one.aim.action}: {one.died_at}" for one in done)
    failed = [one for one in done if one.faults]
    print(report(failed, given.seed) or "table, log and what everybody was told agree")
    for place, count in sorted(places.items()):
        print(f"{count:5}  {place}")
    print(
        f"{len(done)} rounds, seed {given.seed}, {len(failed)} failed,"
        f" {time.monotonic() - began:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
