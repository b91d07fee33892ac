"""Measures what listing ICEs costs: every filter, sort and count, beside a writer of admissions.

    python -m tests.bench.listing [--engine postgresql] [--ices 100000] [--connected 1.0] [--rounds 30] [--only TEXT]

A page of 50 is to take at most 50 ms in 99 of 100 cases, and so are the counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from gateway.core.accounts import User
from gateway.core.attention import Attention, Expectations
from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.ice import Ice, IceType, Status
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.core.version_key import version_key
from gateway.store import accounts, ices, sessions
from gateway.store.engine import Engine
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from gateway.store.ice_order import Mark, Order, SortKey
from gateway.store.open import open_store
from gateway.store.sessions import Connection, ConnectionEvent, Opened
from tests.support.postgres import postgres

ACTOR = Actor("root", Via.API, "192.0.2.1")
USERS = 1_000
NODES = ("node-a", "node-b", "node-c")
ADMISSIONS = 500
"""Admissions a second of the writer, in groups as `node.presence` writes them."""
GROUP = 50
PAGE = 50
GOAL = 0.05
BATCH = 1_000
EXPECTATIONS = Expectations(version_key("1.2"), timedelta(hours=12))
"""Two of seven ICEs are outdated, and most that are not connected are inactive."""

Shape = Callable[[], Awaitable[object]]


class Fleet:
    """ICEs of all kinds in an open database; a share of the registered ones is connected."""

    def __init__(self, engine: Engine, count: int, connected: float) -> None:
        self.engine = engine
        self.count = count
        self.connected = connected
        self.now = utc_now()
        self.readings = 0.0
        self.sessions: dict[int, str] = {}

    async def fill(self) -> None:
        """Add users and ICEs, connect them, and let the nodes confirm."""

        async def users(transaction):
            for number in range(USERS):
                disabled = self.now if number % 200 == 0 else None
                user = User(f"user-{number:04}", Role.MEMBER, None, self.now, disabled)
                event = Event.of(self.now, ACTOR, AuditAction.ADD_USER, user=user.name)
                await accounts.add_user(transaction, user, event)

        await self.engine.write(users)
        for start in range(0, self.count, BATCH):
            numbers = range(start, min(start + BATCH, self.count))
            new = [
                (ice, self._event(ice), self._labels(n)) for n in numbers for ice in [self.ice(n)]
            ]
            await self.engine.write(lambda t, new=new: ices.insert_many(t, new))
            await self.admit([n for n in numbers if self.is_registered(n)])
            gone = [n for n in numbers if n in self.sessions and not self.stays(n)]
            await self.close(gone, self.now - timedelta(hours=1 + start // BATCH))
        await self.engine.write(self._confirm)

    async def _confirm(self, transaction) -> None:
        for node in NODES:
            await sessions.confirm(transaction, node, utc_now())

    def ice(self, number: int) -> Ice:
        """One in fifty is provisioned, one in a hundred deregistered, and all others registered."""
        name, owner = f"agent-{number:06}", f"user-{number % USERS:04}"
        kind, user = (IceType.NORMAL, owner) if number % 4 else (IceType.CI_CD, None)
        at = self.now - timedelta(minutes=number % 50_000)
        hours = -1 if number % 5_000 == 0 else 24
        ice = Ice.provision(
            name, kind, user, f"{number:064x}", key_id="k", now=at,
            expires=self.now + timedelta(hours=hours),
        )  # fmt: skip
        if number % 50 == 0:
            return ice
        ice = ice.register(f"key-{number}", now=at)
        return ice.deregister(f"{number:063x}g", now=at) if number % 100 == 1 else ice

    def is_registered(self, number: int) -> bool:
        return number % 50 != 0 and number % 100 != 1

    def stays(self, number: int) -> bool:
        """Whether it is connected: spread over the names."""
        return number * 7_919 % 1_000 < 1_000 * self.connected

    def _labels(self, number: int) -> dict[str, str]:
        return {"site": f"site-{number % 97}", "os": ("linux", "windows", "macos")[number % 3]}

    def _event(self, ice: Ice) -> Event:
        return Event(self.now, ACTOR, "provision", ice.ice_name, ice.generation, {})

    async def admit(self, numbers: list[int]) -> None:
        """New sessions of these ICEs, which replace their older ones."""
        at = utc_now()
        opened, closed, happened = [], [], []
        for number in numbers:
            name = f"agent-{number:06}"
            self.readings += 1
            before = self.sessions.get(number)
            if before is not None:
                closed.append(before)
            session = f"{name}.{self.readings:.0f}"
            self.sessions[number] = session
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            version = None if number % 40 == 7 else f"1.{number % 7}.{number % 30}"
            connection = Connection(
                session, NODES[number % len(NODES)], at, address, version, "linux", f"host-{number}"
            )
            generation = 2 if number % 100 == 1 else 1
            opened.append(Opened(name, generation, connection, self.readings))
            happened.append(ConnectionEvent(name, "admitted", None, address, at, at))
            if number % 1_000 == 3:
                happened.append(ConnectionEvent(name, "refused", "replay", address, at, at))
        await self.engine.write(
            lambda t: sessions.record(t, opened, (), closed, happened, newest=opened)
        )

    async def close(self, numbers: list[int], at) -> None:
        """End the sessions of these ICEs; `lastseen` stays as it is."""
        closed = [self.sessions.pop(number) for number in numbers]
        events = [
            ConnectionEvent(f"agent-{number:06}", "closed", "1000", "10.0.0.1", at, at)
            for number in numbers
        ]
        await self.engine.write(lambda t: sessions.record(t, (), (), closed, events))

    async def admissions(self, took: list[float]) -> None:
        """Connect ICEs again at a steady rate, for ever."""
        loop = asyncio.get_running_loop()
        numbers = sorted(self.sessions, key=lambda number: number * 7_919 % self.count)
        due, place = loop.time(), 0
        while True:
            group = [numbers[(place + step) % len(numbers)] for step in range(GROUP)]
            place += GROUP
            begun = loop.time()
            await self.admit(group)
            took.append(loop.time() - begun)
            due = max(due + GROUP / ADMISSIONS, loop.time() - 1)
            await asyncio.sleep(max(0, due - loop.time()))


def shapes(fleet: Fleet) -> dict[str, Shape]:
    """What is measured, by name."""
    table, now = IceListing(fleet.engine, EXPECTATIONS), fleet.now

    def page(order: Order = Order(), offset: int = 0, **where) -> Shape:  # noqa: B008 - frozen
        return lambda: table.page(IceFilter(now=now, **where), PAGE, order=order, offset=offset)

    def following(order: Order, offset: int) -> Shape:
        async def run():
            nonlocal mark
            if mark is None:
                [last] = await table.page(IceFilter(), 1, order=order, offset=offset)
                mark = last.mark(order)
            return await table.page(IceFilter(), PAGE, order=order, after=mark)

        mark: Mark | None = None
        return run

    filters = {
        "none": {},
        "two words": {"words": ("agent-0501", "user-01")},
        "two words, none found": {"words": ("paris", "nobody")},
        "host": {"words": ("host-99123",)},
        "label": {"labels": (("site", "site-13"),)},
        "label, none found": {"labels": (("site", "elsewhere"),)},
        "user": {"provisionedto": "user-0123"},
        "type": {"ice_type": IceType.CI_CD},
        "version_below": {"version_below": version_key("1.1")},
        "version_below, none": {"version_below": version_key("0.1")},
        "lastseen_before, now": {"lastseen_before": now},
        "lastseen_before, none": {"lastseen_before": now - timedelta(days=90)},
        "lastseen_after, none": {"lastseen_after": now + timedelta(days=1)},
        "lastseen_after": {"lastseen_after": now - timedelta(minutes=30)},
        "connected": {"connected": True},
        "offline": {"connected": False},
        "inactive": {"inactive": True},
        "needs attention": {"needs_attention": True},
        **{f"status {one}": {"status": one} for one in Status},
        **{f"attention {one}": {"attention": one} for one in Attention},
    }
    found: dict[str, Shape] = {f"page {name}": page(**where) for name, where in filters.items()}
    half = fleet.count // 2
    for by in SortKey:
        for descending in (False, True):
            order = Order(by, descending)
            name = f"{'-' * descending}{by}"
            found[f"sort {name}"] = page(order)
            found[f"sort {name}, page 1000"] = page(order, half)
            if by in (SortKey.NAME, SortKey.LAST_SEEN, SortKey.VERSION, SortKey.PROVISIONED):
                found[f"sort {name}, after half"] = following(order, half)
    found["sort -lastseen, label"] = page(
        Order(SortKey.LAST_SEEN, descending=True), labels=(("site", "site-13"),)
    )
    found |= {
        f"count {name}": lambda where=where: table.count(IceFilter(now=now, **where))
        for name, where in filters.items()
    }
    found["counts"] = lambda: table.counts(IceFilter(), now)
    found["counts of a user"] = lambda: table.counts(IceFilter(provisionedto="user-0123"), now)
    found["counts of a label"] = lambda: table.counts(IceFilter(labels=(("os", "linux"),)), now)
    return found


async def measure(fleet: Fleet, rounds: int, only: str) -> None:
    """Print the figures of each shape."""
    took: list[float] = []
    writer = asyncio.create_task(fleet.admissions(took))
    print(f"{'':<44} {'median':>8} {'p99':>8}  ms; {rounds} rounds")
    try:
        for name, shape in shapes(fleet).items():
            if only not in name:
                continue
            await measure_shape(name, shape, rounds)
    finally:
        writer.cancel()
    if writer.done() and not writer.cancelled():
        writer.result()
    if len(took) > 1:
        print_figures(f"write of {GROUP} admissions", took, 1.0)


async def measure_shape(name: str, shape: Shape, rounds: int) -> None:
    """Print what this shape takes."""
    taken = []
    await shape()
    for _ in range(rounds):
        begun = time.perf_counter()
        await shape()
        taken.append(time.perf_counter() - begun)
        await asyncio.sleep(0.002)
    print_figures(name, taken, GOAL)


def print_figures(name: str, taken: list[float], goal: float) -> None:
    """Print median and p99, and whether that is over the goal; all are seconds."""
    worst = sorted(taken)[max(0, -(-len(taken) * 99 // 100) - 1)]
    figures = f"{1000 * statistics.median(taken):>8.1f} {1000 * worst:>8.1f}"
    print(f"{name:<44} {figures}{'  over' if worst > goal else ''}", flush=True)


@contextlib.asynccontextmanager
async def opened(engine: str) -> AsyncIterator[Engine]:
    """An empty database."""
    if engine == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            async with open_store(f"sqlite:///{Path(folder) / 'ice.db'}", node=NODES[0]) as store:
                yield store
        return
    with postgres("autovacuum=on", "shared_buffers=256MB", "max_wal_size=2GB") as server:
        async with open_store(server.database(), node=NODES[0]) as store:
            yield store


async def run(given: argparse.Namespace) -> None:
    """Fill a database and measure."""
    async with opened(given.engine) as engine:
        fleet = Fleet(engine, given.ices, given.connected)
        begun = time.perf_counter()
        await fleet.fill()
        if given.engine != "sqlite":
            await engine.write(lambda transaction: transaction.run("ANALYZE"))  # as autovacuum does
        seconds = time.perf_counter() - begun
        print(
            f"{given.engine}: {given.ices:,} ICEs, {len(fleet.sessions):,} connected;"
            f" filled in {seconds:.0f} s",
            flush=True,
        )
        await measure(fleet, given.rounds, given.only)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--ices", type=int, default=100_000)
    parser.add_argument("--connected", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
