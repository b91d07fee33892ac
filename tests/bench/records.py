"""Measures what listing operations, audit events and users costs: every filter, without a writer beside it.

    python -m tests.bench.records [--engine postgresql] [--operations 100000] [--events 1000000] [--users 20000]
        [--rounds 100] [--only TEXT]

A page is to take at most 50 ms in 99 of 100 cases.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from datetime import timedelta

from client.protocol import OperationKind
from gateway.core.accounts import User
from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.ice import Action, Ice, IceType
from gateway.core.operation import Operation, State
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.store import accounts, events, ices, operations
from gateway.store.accounts import Accounts
from gateway.store.engine import Engine
from gateway.store.events import EventFilter, Events
from gateway.store.operations import OperationFilter, Operations
from tests.bench.listing import Shape, measure_shape, opened

ICES = 1_000
"""ICEs that the operations are of; a busy one has a tenth of all."""
ADMINS = 10
"""Admins who request and act; the last of them did so once, at the beginning."""
BATCH = 5_000
PAGE = 50
LIMIT = 101
"""Events that a page of the API reads."""
NEWEST = 2**62


class Records:
    """Users, ICEs, their operations and the audit log of an open database."""

    def __init__(self, engine: Engine, operation_count: int, event_count: int, users: int) -> None:
        self.engine = engine
        self.operation_count = operation_count
        self.event_count = event_count
        self.users = users
        self.now = utc_now()

    async def fill(self) -> None:
        """Add them all, oldest first."""
        await self._add(self.users, self._add_user)
        await self._add(ICES, self._add_ice)
        await self._add(self.operation_count, self._add_operation)
        await self._add(self.event_count - self.users, self._add_event)

    async def _add(self, count: int, add) -> None:
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))

            async def batch(transaction, numbers=numbers):
                for number in numbers:
                    await add(transaction, number)

            await self.engine.write(batch)

    async def _add_user(self, transaction, number: int) -> None:
        at = self.now - timedelta(seconds=self.event_count - number)
        user = User(f"user-{number:05}", Role.MEMBER, None, at)
        event = Event.of(at, self.actor(0), AuditAction.ADD_USER, user=user.name)
        await accounts.add_user(transaction, user, event)

    async def _add_ice(self, transaction, number: int) -> None:
        user = f"user-{number % self.users:05}"
        at = self.now - timedelta(seconds=self.event_count - self.users)
        ice = Ice.provision(
            ice_name(number), IceType.NORMAL, user, f"{number:064x}", key_id="k", now=at,
            expires=self.now + timedelta(days=1),
        ).register(f"key-{number}", now=at)  # fmt: skip
        event = Event(at, self.actor(0), Action.PROVISION, ice.ice_name, 1, {})
        await ices.insert_many(transaction, [(ice, event, {})])

    async def _add_operation(self, transaction, number: int) -> None:
        """One of the newest of each ICE may run; the very first one alone was lost."""
        created = self.now - timedelta(seconds=self.operation_count - number)
        newest = number >= self.operation_count - ICES
        state = State.QUEUED if newest else (State.SUCCEEDED, State.FAILED)[number % 20 == 0]
        state = state if number else State.LOST
        done = None if newest else created
        requester = ADMINS - 1 if number == 0 else number % (ADMINS - 1)
        kind = (OperationKind.EXECUTE, OperationKind.SCRAPE)[number % 3 == 0]
        operation = Operation(
            id=f"operation-{number}", ice_name=ice_name(_ice_of(number)), kind=kind, params=b"{}",
            state=state, requested_by=f"admin-{requester}", created=created, run_at=None,
            deadline=created + timedelta(days=1), sent=done, finished=done, progress=None,
            result=None, error=None, idempotency_key=None,
        )  # fmt: skip
        await operations.insert(transaction, operation)

    async def _add_event(self, transaction, number: int) -> None:
        at = self.now - timedelta(seconds=self.event_count - self.users - number)
        actor = self.actor(ADMINS - 1 if number == 0 else number % (ADMINS - 1))
        action = Action.REPROVISION if number % 10 else Action.DEREGISTER
        event = Event(at, actor, action, ice_name(_ice_of(number)), number, {})
        events.append(transaction, [event])

    def actor(self, number: int) -> Actor:
        """One of the admins."""
        return Actor(f"admin-{number}", Via.PAGE, "192.0.2.1")


def ice_name(number: int) -> str:
    """The name of an ICE."""
    return f"agent-{number:04}"


def _ice_of(number: int) -> int:
    """The ICE of an operation or event: one in ten is of the first, none of the last but the oldest."""
    if number == 0:
        return ICES - 1
    return 0 if number % 10 == 0 else number % (ICES - 1)


def shapes(records: Records) -> dict[str, Shape]:
    """What is measured, by name."""
    work, log, people = (
        Operations(records.engine.fetch),
        Events(records.engine.fetch),
        Accounts(records.engine),
    )
    ago = records.now - timedelta(hours=1)
    started = records.now - timedelta(seconds=records.event_count)
    middle = started + (records.now - started) / 2

    def listed(before: int | None = None, **where) -> Shape:
        return lambda: work.page(OperationFilter(**where), PAGE, before, brief=True)

    def newest(**where) -> Shape:
        return lambda: log.before(NEWEST, PAGE + 1, EventFilter(**where))

    def following(**where) -> Shape:
        return lambda: log.after(0, LIMIT, EventFilter(**where))

    half = records.operation_count // 2
    of_operations = {
        "none": {},
        "busy ICE": {"ice_name": ice_name(0)},
        "idle ICE": {"ice_name": ice_name(ICES - 1)},
        "unknown ICE": {"ice_name": "nowhere"},
        **{f"state {state}": {"state": state} for state in State},
        **{f"kind {kind}": {"kind": kind} for kind in OperationKind},
        "busy requester": {"requested_by": "admin-0"},
        "idle requester": {"requested_by": f"admin-{ADMINS - 1}"},
        "unknown requester": {"requested_by": "nobody"},
        "last hour": {"since": ago},
        "future": {"since": records.now + timedelta(days=1)},
        "owner": {"owner": "user-00001"},
        "owner without an ICE": {"owner": f"user-{records.users - 1:05}"},
        "failed, busy ICE": {"ice_name": ice_name(0), "state": State.FAILED},
        "lost, busy requester": {"requested_by": "admin-0", "state": State.LOST},
    }
    of_events = {
        "none": {},
        "busy ICE": {"ice_name": ice_name(0)},
        "idle ICE": {"ice_name": ice_name(ICES - 1)},
        "busy actor": {"actor": "admin-0"},
        "idle actor": {"actor": f"admin-{ADMINS - 1}"},
        "unknown actor": {"actor": "nobody"},
        "frequent action": {"action": Action.REPROVISION},
        "rare action": {"action": AuditAction.ADD_USER},
        "action never taken": {"action": AuditAction.DISABLE_USER},
        "busy ICE, action never taken": {
            "ice_name": ice_name(0),
            "action": AuditAction.DISABLE_USER,
        },
        "busy actor, action never taken": {
            "actor": "admin-0",
            "action": AuditAction.DISABLE_USER,
        },
        "last hour": {"since": ago},
        "oldest hour": {"until": started + timedelta(hours=1)},
        "an hour in the middle": {"since": middle, "until": middle + timedelta(hours=1)},
        "first half": {"until": middle},
        "future": {"since": records.now + timedelta(days=1)},
    }
    found: dict[str, Shape] = {
        f"operations {name}": listed(**where) for name, where in of_operations.items()
    }
    found["operations, half through"] = listed(half)
    found |= {f"newest events {name}": newest(**where) for name, where in of_events.items()}
    found |= {
        f"oldest events {name}": following(**where)
        for name, where in of_events.items()
        if not {"since", "until"} & set(where)  # which the API has not
    }
    found["oldest events, half through"] = lambda: log.after(
        records.event_count // 2, LIMIT, EventFilter()
    )
    for text in ("", "user-19", "9", "nobody"):
        found[f"users q={text}"] = lambda text=text: people.page(text, PAGE, 0)
        found[f"users q={text}, API"] = lambda text=text: people.after(text, "", LIMIT)
        found[f"users known {text}"] = lambda text=text: people.enabled_names(text, 20)
    found["users, last page"] = lambda: people.page("", PAGE, records.users - PAGE)
    found["users, API, last page"] = lambda: people.after(
        "", f"user-{records.users - 50:05}", LIMIT
    )
    return found


async def run(given: argparse.Namespace) -> None:
    """Fill a database and measure."""
    async with opened(given.engine) as engine:
        records = Records(engine, given.operations, given.events, given.users)
        begun = time.perf_counter()
        await records.fill()
        if given.engine != "sqlite":
            await engine.write(lambda transaction: transaction.run("ANALYZE"))  # as autovacuum does
        print(
            f"{given.engine}: {given.operations:,} operations, {given.events:,} events,"
            f" {given.users:,} users; filled in {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
        print(f"{'':<44} {'median':>8} {'p99':>8}  ms; {given.rounds} rounds")
        for name, shape in shapes(records).items():
            if given.only in name:
                await measure_shape(name, shape, given.rounds)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", default="")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
