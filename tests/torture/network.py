"""Three real nodes on one PostgreSQL over a network that is bad on purpose, in rounds.

    python -m tests.torture.network [--rounds 200] [--seed N] [--kind K] [--line L] [--mutate NAME]

In each round some lines fail: between nodes and the database, their ICEs, their callers or all of these; in both
directions or in one. Meanwhile an admin takes out an ICE, another ICE goes from node to node while its older sessions
stay half-open, and operations are requested of two reference clients. What callers and ICEs saw is checked against the
model in `sightings`. Once the lines are good again, everybody has to be back within a bound. In the end log, table and
operations are compared with what was acknowledged.

It needs root and Linux, see `tests.support.network`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.runtime.logs import configure
from gateway.store import ices
from gateway.store.events import Events
from gateway.store.open import open_store
from tests.support.ice import Nomad
from tests.support.network import Condition, Network, missing
from tests.support.node import Node
from tests.torture import nodes, operations
from tests.torture.callers import EVERY, Taken, admitted
from tests.torture.field import (
    CALLERS,
    DATABASE,
    ICES,
    LABS,
    LEASE,
    MUTATIONS,
    NODES,
    Field,
    be_a_node,
    field_of,
)
from tests.torture.observer import Observer
from tests.torture.sightings import Cut, Sightings, Visit
from tests.torture.verdict import Found, acknowledged, rule_faults

RETURN = 30.0
"""Seconds within which everybody is back: twice 10 s for a connection to the database, and what a busy machine adds."""
_REFUSED = ("deregistered", "token-replaced")
_END = 60.0
"""Seconds for all operations to come to their end."""


# --- what fails ----------------------------------------------------------------------------------

_CUT = Condition(cut=True)
KINDS = {
    "nothing": (),
    "cut": (_CUT, _CUT),
    "deaf": (_CUT, None),
    "mute": (None, _CUT),
    "lossy": (Condition(loss=0.3),) * 2,
    "late": (Condition(delay=2.5),) * 2,
    "trickling": (Condition(rate=1.0),) * 2,
    "forgotten": (),
}
"""How a line is in the direction to a node, and from it; `forgotten` is done to the connections that there are."""
_LINES = {
    "database": (DATABASE,),
    "ices": (ICES,),
    "callers": (CALLERS,),
    "all": (DATABASE, ICES, CALLERS),
}


@dataclass(frozen=True)
class Choice:
    """What may fail, and for how many seconds: by chance where that is None."""

    kinds: tuple[str, ...] = tuple(KINDS)
    lines: tuple[str, ...] = tuple(_LINES)
    seconds: float | None = None


@dataclass(frozen=True)
class Fault:
    """What fails in a round, by names of `KINDS` and `_LINES`."""

    kind: str
    line: str
    nodes: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} for {self.seconds:.1f} s, {self.line} of {', '.join(self.nodes)}"

    @classmethod
    def by_chance(cls, choice: Choice, chance: random.Random, holder: str) -> Fault:
        """One that is likely to be at the holder, and may outlast the lease."""
        kind, line = chance.choice(choice.kinds), chance.choice(choice.lines)
        count = chance.choices((1, 2, 3), (6, 2, 1))[0]
        others = [name for name in nodes.NAMES if name != holder]
        failing = [holder, *others] if chance.random() < 0.7 else [*others, holder]
        long = kind == "late" or chance.random() < 0.25
        seconds = chance.uniform(2.5, 6.0) if long else chance.uniform(0.3, 2.0)
        return cls(kind, line, tuple(failing[:count]), choice.seconds or seconds)

    def begin(self, network: Network) -> None:
        """Make the lines bad."""
        for node in self.nodes:
            for there in _LINES[self.line]:
                if self.kind == "forgotten":
                    network.forget(there, NODES[node])
                for way, condition in zip((0, 1), KINDS[self.kind], strict=False):
                    if condition is not None:
                        pair = (there, NODES[node])
                        network.set(*(pair if way == 0 else pair[::-1]), condition)

    def cuts(self, began: float, ended: float) -> list[Cut]:
        """The nodes that it kept from the database."""
        keeps = self.kind in ("cut", "deaf", "mute") and DATABASE in _LINES[self.line]
        return [Cut(node, began, ended) for node in self.nodes] if keeps else []


# --- a round -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What all rounds came to."""

    kinds: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    visits: Counter[str] = field(default_factory=Counter)
    unconfirmed: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    returns: list[float] = field(default_factory=list)
    """Seconds from the end of each fault until everybody was back."""
    packets: Counter[str] = field(default_factory=Counter)
    told: int = 0
    violations: list[str] = field(default_factory=list)

    def note(self, what: str, seconds: float) -> None:
        """Note after how many seconds everybody was back in this round."""
        self.returns.append(seconds)
        print(f"{what}: all were back after {seconds:.1f} s", flush=True)


async def play(
    made: Field, number: int, choice: Choice, chance: random.Random, outcome: Outcome
) -> None:
    """One round."""
    holder, acting = chance.sample(list(made.nodes), 2)
    fault = Fault.by_chance(choice, chance, holder.name)
    action = chance.choice(("deregister", "reregister"))
    what = f"round {number}: {fault}, {action} at {acting.name}, session at {holder.name}"
    outcome.kinds[fault.kind] += 1
    outcome.lines[fault.line] += fault.kind != "nothing"
    tokens = {
        name: (await made.done(201, "POST", "/ices", {"ice_name": name, "ice_type": "ci-cd"}))[
            "token"
        ]
        for name in (f"out-{number}", f"roams-{number}")
    }
    out, roams = (Nomad(holder.url, token) for token in tokens.values())
    observer = Observer(Sightings(LEASE))
    async with asyncio.timeout(RETURN):
        for name, ice in zip(tokens, (out, roams), strict=True):
            welcomed = None
            while welcomed is None:
                welcomed = (await observer.visit(name, ice, holder)).welcomed

    fault.begin(made.network)
    began = time.monotonic()
    scene = Scene(made, observer)
    # What is drawn must not depend on who is quicker.
    chances = [random.Random(chance.random()) for _ in range(3)]
    acts = [
        asyncio.create_task(act, name=act.__name__)
        for act in (
            scene.take_out(f"out-{number}", out, acting, action, chances[0]),
            scene.roam(f"roams-{number}", roams, chances[1]),
            scene.operate(number, chances[2]),
        )
    ]
    try:
        await asyncio.sleep(fault.seconds)
        ended = time.monotonic()
        made.network.heal()
        observer.seen.cuts += fault.cuts(began, ended)
        scene.healed.set()
        try:
            await _back(made, acts, out)
        except TimeoutError:
            waiting = [act.get_name() for act in acts if not act.done()]
            outcome.violations.append(f"{what}: not all were back in {RETURN:.0f} s: {waiting}")
        else:
            outcome.note(what, time.monotonic() - ended)
        await _outlast(observer.seen)
    finally:
        made.network.heal()
        for act in acts:
            act.cancel()
        await asyncio.gather(*acts, return_exceptions=True)
        await observer.stop()
    outcome.violations += [f"{what}: {one}" for one in observer.seen.violations()]
    outcome.visits.update(_fate(visit) for visit in observer.seen.visits)
    for taken in observer.seen.taken:
        outcome.unconfirmed.update(taken.unconfirmed)


async def _back(made: Field, acts: list[asyncio.Task[Any]], out: Nomad) -> None:
    """Wait until all nodes have acted on all events, all is done, and whoever should be is connected."""
    async with asyncio.timeout(RETURN):
        await asyncio.wait(acts)
        taken, *_ = [act.result() for act in acts]
        await made.all_known(RETURN)
        for name in LABS:
            await _until(functools.partial(made.connected, name))
        if taken.token is not None:
            anew = Nomad(out.url, taken.token, out.key)
            for node in made.nodes:
                await _until(functools.partial(admitted, anew.at(node)))


async def _until(holds: Callable[[], Awaitable[Any]]) -> None:
    while not await holds():  # noqa: ASYNC110 - there is no event for what is not ours
        await asyncio.sleep(EVERY)


async def _outlast(seen: Sightings) -> None:
    """Wait until nothing may go on any more by an unexpired lease."""
    welcomes = [visit.welcomed for visit in seen.visits if visit.welcomed is not None]
    last = max([*welcomes, *(taken.at for taken in seen.taken)])
    await asyncio.sleep(last + LEASE + 3 * EVERY - time.monotonic())


@dataclass
class Scene:
    """The cluster in one round, and who sees it; `healed` is set once the lines are good again."""

    made: Field
    observer: Observer
    healed: asyncio.Event = field(default_factory=asyncio.Event)

    async def take_out(
        self, name: str, ice: Nomad, acting: Node, action: str, chance: random.Random
    ) -> Taken:
        """Take an ICE out, which then comes with the old token from when on that must admit it nowhere."""
        await asyncio.sleep(chance.uniform(0.0, 0.4))
        seen = self.observer.seen
        seen.asked.append((name, action, time.monotonic()))
        taken = await self.made.take_out(acting, name, action, LEASE)
        seen.taken.append(taken)
        seen.alive = {lag.split("|")[0] for lag in await self.made.lags()}
        seen.alive_at = time.monotonic()

        async def come(node: Node) -> None:
            await asyncio.sleep(taken.out_at(node.name) - time.monotonic())
            refused = None
            while refused not in _REFUSED:
                await asyncio.sleep(EVERY)
                refused = (await self.observer.visit(name, ice, node)).refused

        await asyncio.gather(*(come(node) for node in self.made.nodes))
        return taken

    async def roam(self, name: str, ice: Nomad, chance: random.Random) -> None:
        """Go from node to node, and at last stay: the gateway has to know of the newest session alone."""
        nodes = list(self.made.nodes)
        for _ in range(2):
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await self.observer.visit(name, ice, chance.choice(nodes))
        await self.healed.wait()
        visit = await self.observer.visit(name, ice, chance.choice(nodes))
        while visit.session is None or await self.made.connected(name) != visit.session:
            await asyncio.sleep(EVERY)
            if visit.welcomed is None or visit.ended < time.monotonic():
                visit = await self.observer.visit(name, ice, chance.choice(nodes))

    async def operate(self, number: int, chance: random.Random) -> None:
        """Request some operations."""
        for _ in range(4):
            await self.made.request(number, chance)
            await asyncio.sleep(chance.uniform(0.0, 0.3))


def _fate(visit: Visit) -> str:
    if visit.welcomed is None:
        return f"refused {visit.refused}" if visit.refused else "unanswered"
    return "admitted"


# --- all rounds ----------------------------------------------------------------------------------


async def torture(
    rounds: int, seed: int, choice: Choice, minutes: float, mutation: str = "none"
) -> Outcome:
    """So many rounds on one cluster, as far as the time allows; of a mutation until it is found out."""
    until = time.monotonic() + minutes * 60
    outcome = Outcome()
    async with field_of(random.Random(seed), mutation) as made:
        for number in range(rounds):
            try:
                await play(made, number, choice, random.Random(f"{seed}/{number}"), outcome)
            except (TimeoutError, AssertionError) as error:
                outcome.violations.append(f"round {number} did not come to its end: {error!r}")
            found = outcome.violations and mutation != "none"
            if found or time.monotonic() > until:
                break
        outcome.violations += await _accounted(made, outcome)
        outcome.packets, outcome.told = made.network.fates, len(made.told)
    return outcome


async def _accounted(made: Field, outcome: Outcome) -> list[str]:
    """What became of all operations, and of all that was acknowledged."""
    until = time.monotonic() + _END
    while True:
        found = await made.listed()
        if all(item["state"] in operations.FINAL for item in found.values()):
            break
        if time.monotonic() > until:
            states = Counter(item["state"] for item in found.values())
            return [f"the operations do not come to their end: {states}"]
        await asyncio.sleep(EVERY)
    await asyncio.sleep(0.5)  # what was lost may be corrected by the ICE's own word
    found = await made.listed()
    outcome.operations.update(item["state"] for item in found.values())
    stopped = [f"the client {name} stopped" for name, task in made.clients.items() if task.done()]
    async with open_store(made.server.url("ice")) as engine:
        entries = await Events(engine.fetch).after(0, 1_000_000)
        names = {entry.event.ice_name for entry in entries} - {None}
        rows = await engine.write(lambda transaction: ices.find_many(transaction, sorted(names)))
    taken = {one.call.action for one in made.told}
    deeds = [entry for entry in entries if entry.event.action in taken]
    return [
        *stopped,
        *operations.faults_of(found, made.keys, made.truth),
        *rule_faults(Found(rows, entries, [])),
        *acknowledged(deeds, made.told),
    ]


def report(outcome: Outcome, seed: int) -> str:
    """The outcome in a few lines."""
    ordered = sorted(outcome.returns) or [0.0]
    lines = [
        f"{sum(outcome.kinds.values())} rounds of seed {seed}: {_counted(outcome.kinds)}",
        f"lines: {_counted(outcome.lines)}; packets: {_counted(outcome.packets)}",
        f"handshakes: {_counted(outcome.visits)}",
        f"operations: {_counted(outcome.operations)}",
        f"{outcome.told} attempts to take an ICE out; not confirmed: {_counted(outcome.unconfirmed)}",
        f"all were back after {ordered[len(ordered) // 2]:.1f} s (p50), {ordered[-1]:.1f} s (the longest)",
        f"{len(outcome.violations)} violations",
        *outcome.violations,
    ]
    return "\n".join(lines)


def _counted(what: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(what.items())) or "none"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--minutes", type=float, default=30.0, help="after which no round begins")
    parser.add_argument("--if-possible", action="store_true", help="else say so, and be content")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=tuple(KINDS))
    parser.add_argument("--line", choices=_LINES, nargs="+", default=tuple(_LINES))
    parser.add_argument("--seconds", type=float, help="of each fault, in place of 0.3 to 6")
    parser.add_argument("--mutate", choices=MUTATIONS, default="none")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    parser.add_argument("--namespace", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node is not None:
        be_a_node(options.node, options.namespace)
        return
    lacks = missing()
    if lacks is not None and options.if_possible:
        print(f"left out: {lacks}")
        return
    if lacks is not None:
        sys.exit(lacks)
    configure("text", "error")
    began = time.monotonic()
    choice = Choice(tuple(options.kind), tuple(options.line), options.seconds)
    how = options.seed, choice, options.minutes, options.mutate
    outcome = asyncio.run(torture(options.rounds, *how))
    print(report(outcome, options.seed))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(outcome.violations))


if __name__ == "__main__":
    main()
