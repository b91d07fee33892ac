"""What the suite speaks of: ICEs, users and events at one moment, and an engine that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import sqlite3
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.core.accounts import User
from gateway.core.audit_event import Actor, Event, Via
from gateway.core.ice import Action, Ice, IceType
from gateway.core.login_rules import LoginRules
from gateway.core.roles import Role
from gateway.services.accounts import AccountService
from gateway.services.leavers import Leavers
from gateway.services.passwords import Passwords
from gateway.store import accounts, events, ices, sessions
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import StoreUnavailable
from gateway.store.events import Events
from gateway.store.key_file import KeyStore
from gateway.store.nodes import Nodes
from gateway.store.sessions import Connection, ConnectionEvent, Opened
from gateway.store.sqlite.engine import SqliteEngine

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
ROOT = Actor("root", Via.API, "192.0.2.1")
ISSUER = "https://id.example.org/realms/lab"
PATIENCE = 10.0
"""Seconds after which an expectation has failed; nothing is expected to take long."""
RULE_BROKEN = (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError)
"""How the engines say that a row breaks a rule of the schema."""


def minutes(count: float) -> datetime:
    """So long after `NOW`."""
    return NOW + timedelta(minutes=count)


# --- expectations --------------------------------------------------------------------------------


async def soon(awaitable, what: str):
    """Wait for what is expected to happen."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await awaitable
    except TimeoutError:
        pytest.fail(f"{what} was expected, and did not happen within {PATIENCE:.0f} s")


@dataclasses.dataclass
class Caught:
    text: str = ""


@contextlib.contextmanager
def refusing(error, whom: str):
    """Expect `whom` to end in `error`; yields what it said."""
    caught = Caught()
    try:
        yield caught
    except error as raised:
        caught.text = str(raised)
    else:
        pytest.fail(f"{whom} was expected to end in {error}, and was accepted")


# --- making and changing -------------------------------------------------------------------------


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def an_event(action: str = "note", ice: Ice | None = None, **detail) -> Event:
    name, generation = (ice.ice_name, ice.generation) if ice else (None, None)
    return Event(NOW, ROOT, action, name, generation, detail)


def an_ice(name: str = "lab-1", user: str | None = "alice") -> Ice:
    """A provisioned ICE; one without a user is ci-cd."""
    kind = IceType.CI_CD if user is None else IceType.NORMAL
    return Ice.provision(name, kind, user, digest(name), key_id="k1", now=NOW, expires=minutes(60))


def registered(ice: Ice) -> Ice:
    return ice.register(f"key of {ice.ice_name}", now=minutes(1))


def deregistered(ice: Ice) -> Ice:
    return ice.deregister(digest(f"nobody's {ice.ice_name}"), now=minutes(2))


def reregistered(ice: Ice) -> Ice:
    return ice.renew(
        Action.REREGISTER, digest(f"next {ice.ice_name}"), key_id="k2", now=minutes(3), expires=None
    )


async def add_user(engine, name: str, role: Role = Role.MEMBER, password_hash=None) -> bool:
    user = User(name, role, password_hash, NOW)
    event = an_event("add-user", user=name)
    return await engine.write(lambda transaction: accounts.add_user(transaction, user, event))


def login_rules(**changes) -> LoginRules:
    """The rules of an issuer that local users need not use."""
    hours = {"idle": 1, "lifetime": 12, "sso_lifetime": 8, "tokens_after": 24}
    rules = {name: timedelta(hours=given) for name, given in hours.items()}
    return LoginRules(**rules | {"issuer": ISSUER} | changes)


def account_service(engine, keys, rules: LoginRules | None = None) -> AccountService:
    """The service at `NOW`; `keys` is the file of the token keys."""
    leavers = Leavers(
        engine=engine,
        keys=KeyStore(keys),
        clock=lambda: NOW,
        registration_ttl=60,
        confirmer=Acknowledgements(Nodes(engine.fetch), lambda: NOW),
    )
    return AccountService(
        engine=engine,
        clock=lambda: NOW,
        passwords=Passwords(),
        leavers=leavers,
        rules=rules or login_rules(issuer=""),
    )


async def add(engine, ice: Ice):
    """Insert a provisioned ICE; returns the entry of the log, None where it was refused."""
    event = an_event(Action.PROVISION, ice)
    return await engine.write(lambda transaction: ices.insert(transaction, ice, event))


async def change(engine, *pairs: tuple[Ice, Ice]):
    """Compare and swap; returns what was logged."""
    changes = [(old, new, an_event("change", new)) for old, new in pairs]
    return await engine.write(lambda transaction: ices.replace(transaction, changes))


async def add_registered(engine, name: str = "lab-1", user: str | None = "alice") -> Ice:
    ice = an_ice(name, user)
    await add(engine, ice)
    await change(engine, (ice, registered(ice)))
    return registered(ice)


async def append(engine, *given: Event):
    async def unit(transaction):
        return events.append(transaction, given)

    return await engine.write(unit)


def told(logged) -> list[tuple[int, Event]]:
    """Number and event, of what was appended or of what was read."""
    return [(one.seq, one.event) for one in logged]


async def log(engine):
    """The whole log."""
    return await Events(engine.fetch).after(0, 1_000_000)


def a_connection(session: str, node: str = "node-a", **hello) -> Connection:
    return Connection(session, node, NOW, "192.0.2.7", **hello)


def opened(ice: Ice, connection: Connection) -> Opened:
    return Opened(ice.ice_name, ice.generation, connection)


def a_connection_event(
    kind: str, code: str | None = None, at: datetime = NOW, **others
) -> ConnectionEvent:
    return ConnectionEvent(
        **{"ice_name": "lab-1", "address": "192.0.2.7", "first": at, "at": at}
        | {"kind": kind, "code": code}
        | others
    )


async def record(engine, opened=(), greeted=(), closed=(), connection_events=(), **more):
    changes = (opened, greeted, closed, connection_events)
    await engine.write(lambda transaction: sessions.record(transaction, *changes, **more))


async def unguarded(engine):
    """Let anything be done to the log, as whoever owns the database can."""
    on = "" if isinstance(engine, SqliteEngine) else "ON ice_events"

    async def unit(transaction):
        for name in ("no_update", "no_delete", "in_order"):
            await transaction.run(f"DROP TRIGGER IF EXISTS ice_events_{name} {on}")

    await engine.write(unit)


# --- units that stop -----------------------------------------------------------------------------


class Halt:
    """Where a unit stops half-way until it is let on: in a thread on SQLite, on the loop on PostgreSQL."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._on_loop = asyncio.Event()
        self._in_thread = threading.Event()

    async def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        if threading.current_thread() is threading.main_thread():
            await self._on_loop.wait()
        else:
            assert self._in_thread.wait(PATIENCE), "somebody was expected to let the unit on"

    def go(self) -> None:
        self._on_loop.set()
        self._in_thread.set()


# --- an engine that can fail ---------------------------------------------------------------------


class Gate:
    """Where a call is held, with its answer in hand (or its failure, where it `fails`)."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.reached = asyncio.Event()
        self.open = asyncio.Event()


class Between:
    """Stands between a part and its engine: it can be away, or hold the next call of a method."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self._gates: dict[str, Gate] = {}
        self.changed = engine.changed
        self.shared = engine.shared
        self.away = False
        self.fault = None
        self.condemned: list[str] = []
        self.calls: Counter[str] = Counter()

    def hold(self, method: str, *, fails: bool = False) -> Gate:
        self._gates[method] = Gate(fails=fails)
        return self._gates[method]

    def condemn(self, reason: str) -> None:
        self.condemned.append(reason)

    def gather(self, *args) -> str:
        return self._engine.gather(*args)

    def __getattr__(self, method: str):
        return functools.partial(self._call, method)

    async def _call(self, method: str, *args):
        self.calls[method] += 1
        gate = self._gates.pop(method, None)
        if self.away:
            raise StoreUnavailable("the store is away")
        if gate is None:
            return await getattr(self._engine, method)(*args)
        answer = None if gate.fails else await getattr(self._engine, method)(*args)
        gate.reached.set()
        await gate.open.wait()
        if gate.fails:
            raise StoreUnavailable("the store went away")
        return answer
