"""Operations between a gateway and reference clients, any of which may die at any moment.

The dispatcher, the scheduler, the sessions and the store are real, and so are the clients' operations and
journals. In between there are lines whose frames Hypothesis delivers or loses; the gateway dies before or after
a commit, a client at a frame that it sends. Operations are for ICEs, for pools, and of schedules; ICEs are
paused, labelled, given to others, and say what they accept. The truth is what the handlers did: how often each
was begun and what it returned. The table has to agree with it at every moment, and each commit that sends
something with a simple model (`dispatch_model`). Once everybody is back every operation has to come to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import tempfile
import time
import traceback
from collections import Counter, deque
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET
from prometheus_client import CollectorRegistry

from client import protocol
from client.environment import Waits
from client.journal import Journal
from client.operations import OperationFailed, OperationRunner
from client.protocol import OperationKind
from gateway.core.audit_event import Actor, Via
from gateway.core.consent import FIRST_WAIT
from gateway.core.ice import IceType, Status
from gateway.core.operation import ACTIVE, State
from gateway.core.problems import Problem
from gateway.core.revocation import Confirmation
from gateway.core.roles import Role
from gateway.node.dispatcher import Dispatcher
from gateway.node.expiry import OperationExpiry
from gateway.node.hub import Hub
from gateway.node.log_follower import LogFollower
from gateway.node.operation_logs import OperationLogWriter
from gateway.node.operation_waiters import OperationWaiters
from gateway.node.presence import Presence
from gateway.node.progress import ProgressWriter
from gateway.node.scheduler import Scheduler
from gateway.node.session import Session
from gateway.services.bulk_actions import BulkActions
from gateway.services.operation_requests import OperationRequest, OperationService
from gateway.services.pausing import PauseOrder
from gateway.services.pools import PoolService, WantedPool
from gateway.services.provisioning import Provisioning
from gateway.services.schedules import ScheduleService, WantedSchedule
from gateway.store import ices
from gateway.store.engine import StoreUnavailable
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyStore
from gateway.store.postgres.engine import open_postgres
from gateway.store.schedules import Schedules
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.waits import waits
from gateway.web.operation_metrics import OperationMetrics
from tests.contract.dispatch_model import Receiver, read_tables
from tests.contract.domain import NOW, ROOT, add_registered, add_user, an_event
from tests.support.schedules import faults_of

ALICE = Actor("alice", Via.API, "192.0.2.8")
OWNERS = {"lab-1": "alice", "lab-2": "bob", "ci-1": None}
LABELS = {
    "lab-1": {"os": "linux", "speed": "fast"},
    "lab-2": {"os": "linux"},
    "ci-1": {"speed": "fast"},
}
POOLS = {
    "linux": WantedPool("linux", {"os": "linux"}, ice_type=IceType.NORMAL),
    "fast": WantedPool("fast", {"speed": "fast"}),
}
"""Both have lab-1."""
HANDLED = ("execute", "schedule", "remote-execute")
"""A client refuses other kinds until it has learned them."""
WORDS = st.sampled_from([None, None, [], ["execute"], ["remote-execute", "schedule"], ["new-kind"]])
"""What an ICE accepts of others."""
NAMES = st.sampled_from(list(OWNERS))
KEPT_BYTES = 1_000_000
MANY = 15
"""So many operations, and up to three more, make a story."""
FATES = {
    "gateway before a commit": ("death", False),
    "gateway after a commit": ("death", True),
    "store before a commit": ("failure", False),
    "store after a commit": ("failure", True),
}
DISASTERS = [
    *FATES,
    "gateway",
    "client",
    "client at a frame",
    "line",
    "deregister",
    "reregister",
    "another user",
]


class Mortal:
    """An engine in whose process `fate` waits before or after a commit: death, a failing store, or work before it.

    What a dead process does comes to nothing. What a transaction has sent is for `check` to look at.
    """

    shared = False

    def __init__(self, engine, check):
        self._engine = engine
        self._check = check
        self.busy = 0
        self.dead = False
        self.fate = None
        """What happens, or is done, how many writes from now, and whether the commit is done by then."""

    async def fetch(self, sql, *params):
        rows = await self._counted(self._engine.fetch(sql, *params))
        await self._live()
        return rows

    async def write(self, unit):
        await self._live()
        what, left, committed = self.fate or (None, 1, False)
        if what is not None:
            self.fate = (what, left - 1, committed) if left else None
        if left == 0 and not committed:
            await self._meet(what)

        async def checked(transaction):
            done = await unit(transaction)
            await self._check(transaction)
            return done

        done = await self._counted(self._engine.write(checked))
        if left == 0 and committed:
            await self._meet(what)
        await self._live()
        return done

    async def _meet(self, what):
        if callable(what):
            await self._counted(what())
            return
        self.dead = self.dead or what == "death"
        await self._live()
        raise StoreUnavailable("the disk is full")

    async def _live(self):
        if self.dead:
            await asyncio.Future()

    async def _counted(self, work):
        self.busy += 1
        try:
            return await work
        finally:
            self.busy -= 1


class Line:
    """A connection: frames on their way in both directions. It is the session's wire, too."""

    def __init__(self, world, *, up=True):
        self.world = world
        self.to_ice = deque()
        self.to_gateway = deque()
        self.open = up
        self.session = None

    def send(self, frame):
        if self.open and not self.world.gateway.engine.dead:
            self.world.note_sent(json.loads(frame), self.session)
            self.to_ice.append(frame)

    def close(self, code, reason=None):
        if self.open:
            self.open = False
            self.session.closed(code)


class Gateway:
    """One process of the gateway, without its sockets."""

    def __init__(self, world, engine, *, checked=True):
        self.world = world
        self.engine = Mortal(engine, world.look_at) if checked else engine
        self.hub = Hub()
        waiters = OperationWaiters()
        self.dispatch = Dispatcher(
            engine=self.engine,
            node="gw",
            hub=self.hub,
            waiters=waiters,
            progress=ProgressWriter(self.engine, waiters, world.clock),
            logs=OperationLogWriter(self.engine, waiters, KEPT_BYTES, lambda _: None),
            meters=OperationMetrics(CollectorRegistry()),
            clock=world.clock,
            kept_bytes=KEPT_BYTES,
        )
        self.clerk = OperationExpiry(self.engine, world.clock, 0, self.dispatch.expired)
        self.desk = OperationService(engine=self.engine, clock=world.clock, kept_bytes=KEPT_BYTES)
        acting = {
            "engine": self.engine,
            "keys": world.keys,
            "clock": world.clock,
            "registration_ttl": 0,
            "confirmer": self,
        }
        self.provisioning = Provisioning(**acting)
        self.bulk = BulkActions(**acting)
        self.pools = PoolService(engine=self.engine, clock=world.clock)
        self.schedules = ScheduleService(engine=self.engine, clock=world.clock, requests=self.desk)
        self.scheduler = Scheduler(clock=world.clock, monotonic=world.loop.time, held=lambda: False)
        self.presence = Presence(self.engine, "gw", world.clock)
        self.presence.subscribe(self.dispatch.heard)
        self.tail = LogFollower(engine, self.apply, self.compare)

    async def start(self):
        await self.tail.start()
        await self.presence.start()
        self.scheduling = asyncio.create_task(self.scheduler.run(self.schedules))

    def may_act(self):
        return True

    async def confirm(self, logged):
        """This gateway has no other nodes."""
        return Confirmation([], [])

    def apply(self, entry):
        self.hub.apply(entry)
        self.dispatch.apply(entry)
        self.scheduler.apply(entry)

    async def compare(self):
        await self.dispatch.refresh()
        self.scheduler.refresh()

    def admit(self, ice, line):
        line.session = session = Session(
            ice,
            session_id=f"session-{next(self.world.numbers)}.",
            seq=self.tail.position,
            address="192.0.2.7",
            since=self.world.clock(),
            observer=self,
        )
        session.transport = line
        self.hub.promote(self.hub.expect(ice.ice_name, ice.generation), session)
        session.transport.send(session.welcome(25.0))
        self.presence.opened(session)
        self.dispatch.wake(session.ice_name)

    # What a session observes goes where the endpoint sends it.
    def greeted(self, session, instance):
        self.presence.greeted(session, instance)
        self.dispatch.greeted(session)

    def accepts_changed(self, session):
        self.presence.greeted(session)
        self.dispatch.accepts_changed(session)

    def answered(self, session, operation, refused):
        self.dispatch.answered(session, operation, refused)

    def progressed(self, session, progress):
        self.dispatch.reports.progressed(session, progress)

    def logged(self, session, log):
        self.dispatch.reports.logged(session, log)

    def finished(self, session, request, finish):
        self.dispatch.finished(session, request, finish)

    def ended(self, session, code):
        self.hub.remove(session)
        self.dispatch.wake(session.ice_name)
        self.presence.closed(session, code, superseded=session.ice_name in self.hub)

    async def end(self):
        """Nothing of it moves any more."""
        self.engine.dead = True
        lanes = [lane.task for lane in self.dispatch._lanes.values()]
        tasks = [*self.dispatch._tasks, *lanes, self.scheduling]
        for task in tasks:
            task.cancel()
        await self.dispatch.close()
        return tasks


class Client:
    """One process of the client, without its sockets: when it has sent `doom` more, it dies."""

    def __init__(self, world, name, handled=HANDLED, accepts=None):
        self.world = world
        self.name = name
        self.accepts = accepts
        self.dead = False
        self.doom = None
        self.line = Line(world, up=False)
        self.work = {}
        self.handlers = dict.fromkeys(handled, self.execute)
        self.operations = OperationRunner(self.handlers, self.send, lambda _: None, Waits())
        self.journal = Journal(world.folder / f"{name}.db", world.clock().timestamp)
        self.operations.open(self.journal)

    @property
    def connected(self):
        return self.world.alive and not self.dead and self.line.open

    async def execute(self, operation, report):
        self.world.begun[operation.id] += 1
        self.work[operation.id] = future = asyncio.get_running_loop().create_future()
        outcome = await future
        await report(1.0)
        if outcome == "failed":
            raise OperationFailed("failed", operation.id)
        return {"did": operation.id}

    async def send(self, frame):
        if self.line.open and not self.dead:
            self.line.to_gateway.append(frame)
        if self.doom is not None:
            self.dead = self.dead or self.doom == 0
            self.doom -= 1
        if self.dead:
            await asyncio.Future()
        return self.line.open

    async def take(self, frame):
        """As the agent does."""
        message = protocol.decode(frame.decode())
        if message.method == "ice.welcome":
            hello = protocol.Hello(running=self.operations.running, accepts=self.accepts)
            await self.send(protocol.notification("ice.hello", hello))
            await self.operations.repeat()
        elif message.method == "operation.run":
            await self.operations.run(message, message.id)
        elif message.method == "operation.cancel":
            told = protocol.params_of(message, protocol.Cancel)
            self.operations.cancel(told.id, told.reason)
        else:
            await self.operations.answered(message)

    def end(self):
        self.dead = True
        tasks = [*self.operations._watchers, *self.operations._tasks.values()]
        for task in tasks:
            task.cancel()
        return tasks


class World(RuleBasedStateMachine):
    """Everything that may happen, in any order; on the server `postgres`, or else on a file."""

    def __init__(self, postgres=None):
        super().__init__()
        self.postgres = postgres
        self.url = None if postgres is None else postgres.database(tables=True)
        self.passed = timedelta()
        self.set_by = timedelta()
        """How far the clock was set."""
        self.furthest = timedelta()
        """Likewise, at most: at that time all that was requested is due."""
        self.loop = asyncio.new_event_loop()
        # Time passes when it is told to, and by waiting it does not.
        self.loop.time = lambda: self.passed.total_seconds()  # noqa: PLW0108 - `passed` is replaced
        # What is random would make another story of the same steps.
        self.numbers = itertools.count(1)
        self.named = mock.patch("secrets.token_hex", self.next_name)
        self.named.start()
        self.folder = Path(tempfile.mkdtemp(prefix="operations-"))
        self.keys = KeyStore(self.folder / "keys.json")
        self.stack = contextlib.AsyncExitStack()
        self.clients = {}
        self.hung = []
        self.faults = []
        """What was found where nobody would hear of an exception."""
        self.begun = Counter()
        """How often a handler was begun."""
        self.returned = {}
        """What a handler came to, of which the journal knows."""
        self.sent = {}
        """The sessions to which each operation was written."""
        self.refused = set()
        """Operations and the sessions in which their ICEs refused them."""
        self.given_up = set()
        """Operations that were lost; an ICE may tell more of them before the table is looked at again."""
        self.marked = {}
        """Operations that the table has as sent, and those that occurrences have become."""
        self.words = {}
        """What each session is known to have said, by its id."""
        self.acknowledged = {}
        """What the gateway has told the ICE about its finish: None, or the code of a refusal."""
        self.requested = 0
        self.accepted = []
        """What the caller was told is accepted."""
        self.ended = {}
        """The final state that an operation was last seen in."""
        self.schedules = {}
        """Each schedule as it was last seen."""
        self.stopped = {}
        """When each schedule was stopped, and from which occurrence on it went on."""

    def next_name(self, _):
        return f"{next(self.numbers):024x}"

    def clock(self):
        return NOW + self.set_by + self.passed

    def run(self, work):
        return self.loop.run_until_complete(work)

    # --- everybody's life ----------------------------------------------------------------------

    @initialize()
    def begin(self):
        self.run(self._begin())

    async def _begin(self):
        engine = await self._open()
        self.keys.for_sealing(may_create=True)
        for user in ("alice", "bob"):
            await add_user(engine, user)
        await add_user(engine, "root", Role.ADMIN)
        for name, owner in OWNERS.items():
            await add_registered(engine, name, owner)
        for wanted in POOLS.values():
            await self.gateway.pools.set(ROOT, wanted)
        for name, labels in LABELS.items():
            await self.gateway.bulk.label_one(ROOT, name, labels, None)
        await self.gateway.start()
        await self._schedule(
            ROOT, WantedSchedule("pool", "* * * * *", "UTC", pool="fast", timeout=90)
        )
        await self._schedule(ALICE, WantedSchedule("ice", "*/2 * * * *", "UTC", ice_name="lab-1"))
        for name in OWNERS:
            self.clients[name] = Client(self, name)
            await self._connect(name)

    async def _schedule(self, actor, new):
        service = self.gateway.schedules
        made = await service.create(actor, service.prepare(actor, new))
        self.schedules[made.id] = made
        self.stopped[made.id] = []

    async def _open(self):
        if self.url is None:
            store = open_sqlite(self.folder / "ice.db", serving=True, tell=lambda *_: None)
        else:
            store = open_postgres(self.url, node="gw", tell=lambda *_: None)
        self.engine = await self.stack.enter_async_context(store)
        self.gateway = Gateway(self, self.engine)
        return self.engine

    @precondition(lambda self: not self.all_connected)
    @rule(arrived=st.booleans())
    def they_come_back(self, arrived):
        self.run(self._come_back(arrived))

    async def _come_back(self, arrived):
        """Whoever is dead is started; what it had written before may have arrived, and may not."""
        for name, client in self.clients.items():
            if arrived and self.alive:
                await self._gateway_hears(client, 100)
            if arrived and not client.dead:
                await self._ice_hears(client, 100)
            if client.dead:
                await self._restart_client(name)
        if not self.alive:
            await self._restart()
        for name, client in self.clients.items():
            if not client.connected:
                await self._connect(name)

    async def _restart(self):
        for client in self.clients.values():
            self._hang_up(client)
        await self._bury(await self.gateway.end())
        await self.stack.aclose()
        await self._open()
        self.marked = {one.operation.id for one in (await self._tables()).operations}
        await self.gateway.start()
        await self.settle()

    async def _bury(self, tasks):
        tasks += self.hung
        self.hung = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _restart_client(self, name):
        old = self.clients[name]
        self._hang_up(old)
        # What it was about when it died was never told to its journal.
        old.journal.close()
        await self._bury(old.end())
        self.clients[name] = Client(self, name, old.handlers, old.accepts)

    def _hang_up(self, client):
        if client.line.open:
            client.line.close(1006)

    async def settle(self):
        """Until nobody has anything to do."""
        gateway = self.gateway
        while True:
            await self._quiet()
            before = gateway.tail.position
            if self.alive:
                await gateway.tail.poll()
            if self.alive and gateway.presence._batch:
                flushing = asyncio.create_task(gateway.presence.flush())
                await self._quiet()
                if not flushing.done():
                    self.hung.append(flushing)
            elif gateway.tail.position == before:
                break
        self.words = {session.id: session.accepts for session in gateway.hub}

    async def _quiet(self):
        rounds = 0
        while rounds < 20:
            engine = self.gateway.engine
            if engine.busy:
                time.sleep(0.0001)  # noqa: ASYNC251 - the thread of the database works meanwhile
            rounds = 0 if engine.busy else rounds + 1
            await asyncio.sleep(0)

    async def attempt(self, work):
        """What a caller asks for; the answer, or None where the gateway failed or died of it."""
        task = asyncio.create_task(work)
        await self.settle()
        if not task.done():
            self.hung.append(task)
            return None
        try:
            return task.result()
        except StoreUnavailable:
            return None

    @property
    def alive(self):
        return not self.gateway.engine.dead

    @property
    def all_connected(self):
        return all(client.connected for client in self.clients.values())

    async def _ice(self, name):
        return (await IceListing(self.engine).find(name)).ice

    # --- what is done --------------------------------------------------------------------------

    @precondition(lambda self: self.alive and self.requested < MANY)
    @rule(
        wanted_of=st.sampled_from([*OWNERS, *POOLS, *POOLS]),
        actor=st.sampled_from([ROOT, ROOT, ALICE]),
        kinds=st.lists(
            st.sampled_from(["execute", "remote-execute", "schedule", "debug"]), max_size=3
        ),
        deadline=st.sampled_from([None, None, 20]),
    )
    def request(self, wanted_of, actor, kinds, deadline):
        first = "remote-execute" if wanted_of == "ci-1" else "execute"
        for kind in [first, *kinds]:
            if self.alive:
                self.run(self._request(wanted_of, actor, OperationKind(kind), deadline))

    async def _request(self, target, actor, kind, deadline):
        self.requested += 1
        later = 60 if kind is OperationKind.SCHEDULE else 0
        at = self.clock()
        wanted = OperationRequest(
            kind,
            b"{}",
            at + timedelta(seconds=later) if later else None,
            None if deadline is None else at + timedelta(seconds=later + deadline),
        )
        desk = self.gateway.desk
        if target in POOLS:
            done = await self.attempt(desk.request_of_pool(actor, target, wanted))
        else:
            done = await self.attempt(desk.request(actor, await self._ice(target), wanted))
        self._note_accepted(done)

    @precondition(lambda self: self.requested < MANY)
    @rule(
        wanted_of=st.sampled_from(["lab-1", *POOLS]),
        what=st.sampled_from(["reregister", "pause", "label", "deregister", "cancel"]),
    )
    def another_is_quicker(self, wanted_of, what):
        """Between the request and the commit that sends it another node, or a command, commits something."""
        self.run(self._overtaken(wanted_of, partial(self._overtake, what)))

    async def _overtaken(self, wanted_of, overtake):
        await self._come_back(arrived=True)
        await self._all_hear()
        await self._handlers_end("succeeded")
        await self._all_hear()
        if self.alive:
            self.gateway.engine.fate = overtake, 1, False
            await self._request(wanted_of, ROOT, OperationKind.REMOTE_EXECUTE, None)

    async def _overtake(self, what):
        elsewhere = Gateway(self, self.engine, checked=False)
        if what == "cancel":
            for one in (await self._tables()).operations:
                await elsewhere.desk.cancel(ROOT, one.operation.id)
            return
        for name in OWNERS:
            ice = await self._ice(name)
            if what == "pause":
                await elsewhere.bulk.pause_one(ROOT, ice, PauseOrder(by_admin=True))
            elif what == "label":
                await elsewhere.bulk.label_one(ROOT, name, {"os": None, "speed": None}, None)
            else:
                await getattr(elsewhere.provisioning, what)(ROOT, ice)

    def _note_accepted(self, done):
        if done is not None and not isinstance(done, Problem):
            self.accepted.append(done.id)

    @precondition(lambda self: self.alive and self.accepted)
    @rule(data=st.data())
    def cancel(self, data):
        operation = data.draw(st.sampled_from(self.accepted))
        self.run(self.attempt(self.gateway.desk.cancel(ROOT, operation)))

    @precondition(lambda self: self.alive)
    @rule(name=NAMES, seconds=st.sampled_from([None, 10, 100]))
    def pause(self, name, seconds):
        until = None if seconds is None else self.clock() + timedelta(seconds=seconds)
        self.run(self._pause(name, PauseOrder(by_admin=True, until=until)))

    @precondition(lambda self: self.alive)
    @rule(name=NAMES)
    def resume(self, name):
        self.run(self._pause(name, PauseOrder(by_admin=True, resume=True)))

    async def _pause(self, name, order):
        ice = await self._ice(name)
        await self.attempt(self.gateway.bulk.pause_one(ROOT, ice, order))

    @precondition(lambda self: self.alive)
    @rule(
        name=NAMES,
        key=st.sampled_from(["os", "speed"]),
        value=st.sampled_from([None, "linux", "fast", "slow"]),
    )
    def label(self, name, key, value):
        self.run(self.attempt(self.gateway.bulk.label_one(ROOT, name, {key: value}, None)))

    @precondition(lambda self: self.alive)
    @rule(name=st.sampled_from(list(POOLS)), like=st.sampled_from(list(POOLS)))
    def pool_changes(self, name, like):
        self.run(self._set_pool(name, POOLS[like]))

    async def _set_pool(self, name, like):
        wanted = replace(like, name=name)
        await self.attempt(self.gateway.pools.set(ROOT, wanted))

    @rule(name=NAMES, accepts=WORDS)
    def ice_says(self, name, accepts):
        self.run(self._ice_says(self.clients[name], accepts))

    async def _ice_says(self, client, accepts):
        client.accepts = accepts
        if not client.dead:
            said = protocol.notification("ice.accepts", protocol.Accepts(accepts=accepts))
            await self.attempt(client.send(said))

    @rule(name=NAMES, kind=st.sampled_from(["debug", "execute", "schedule"]))
    def ice_learns_or_forgets(self, name, kind):
        """What an ICE has no handler for it refuses."""
        client = self.clients[name]
        if client.handlers.pop(kind, None) is None:
            client.handlers[kind] = client.execute

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), enabled=st.booleans())
    def schedule_changes(self, data, enabled):
        schedule = data.draw(st.sampled_from(sorted(self.schedules)))
        self.run(self._enable(schedule, enabled))

    async def _enable(self, schedule, enabled):
        await self.attempt(self.gateway.schedules.change(ROOT, schedule, {"enabled": enabled}))

    @precondition(lambda self: self.alive and self.requested < MANY)
    @rule(data=st.data())
    def run_now(self, data):
        schedule = data.draw(st.sampled_from(sorted(self.schedules)))
        self.requested += 1
        self._note_accepted(self.run(self.attempt(self.gateway.schedules.run(ROOT, schedule))))

    async def _connect(self, name):
        ice = await self._ice(name)
        if ice.status is Status.DEREGISTERED:
            done = await self.attempt(self.gateway.provisioning.reregister(ROOT, ice))
            ice = await self._ice(name)
            if done is None:
                return  # the gateway has died of it
        if ice.status is Status.PROVISIONED:
            new = ice.register(f"key of {name}", now=self.clock())
            await self.engine.write(
                lambda transaction: ices.replace(
                    transaction, [(ice, new, an_event("register", new))]
                )
            )
            ice = new
        client = self.clients[name]
        self._hang_up(client)
        await self.gateway.tail.poll()
        client.line = Line(self)
        self.gateway.admit(ice, client.line)
        await self.settle()

    # What was written before a death arrives all the same, as long as the line is open.

    @precondition(lambda self: self.clients)
    @rule(name=NAMES, count=st.integers(1, 5))
    def ice_hears(self, name, count):
        self.run(self._ice_hears(self.clients[name], count))

    async def _ice_hears(self, client, count):
        line = client.line
        while count and line.to_ice and line.open and not client.dead:
            frame = line.to_ice.popleft()
            self.note_answer(frame)
            await self.attempt(client.take(frame))
            count -= 1

    @rule(name=NAMES, count=st.integers(1, 5))
    def gateway_hears(self, name, count):
        self.run(self._gateway_hears(self.clients[name], count))

    async def _gateway_hears(self, client, count):
        line = client.line
        while count and line.to_gateway and self.alive and line.open:
            frame = line.to_gateway.popleft().decode()
            message = json.loads(frame)
            if "error" in message:
                self.refused.add((message["id"], line.session.id))
            line.session.received(frame)
            await self.settle()
            count -= 1

    @precondition(lambda self: self.alive)
    @rule()
    def all_hear(self):
        self.run(self._all_hear())

    async def _all_hear(self):
        """And a moment passes: how long a claimer rests between two looks at its pool."""
        self.passed += timedelta(seconds=0.03)
        await self.settle()
        for _ in range(100):
            if not any(
                client.connected and (client.line.to_ice or client.line.to_gateway)
                for client in self.clients.values()
            ):
                return
            for client in self.clients.values():
                await self._ice_hears(client, 100)
                await self._gateway_hears(client, 100)
        self.faults.append("they never come to rest")

    @rule(name=NAMES, outcome=st.sampled_from(["succeeded", "succeeded", "failed"]))
    def handler_ends(self, name, outcome):
        self.run(self._handler_ends(self.clients[name], outcome))

    async def _handlers_end(self, outcome):
        for client in self.clients.values():
            await self._handler_ends(client, outcome)

    async def _handler_ends(self, client, outcome):
        if client.dead or not client.work:
            return
        operation, future = client.work.popitem()
        if future.done():
            return  # it was cancelled
        future.set_result(outcome)
        await self.settle()
        finish = client.journal.finish_of(operation)
        if finish is not None:
            self.returned[operation] = outcome

    @rule(seconds=st.sampled_from([0.03, 1, 6, 25, 70]))
    def time_passes(self, seconds):
        self.run(self._time_passes(timedelta(seconds=seconds)))

    async def _time_passes(self, span):
        self.passed += span
        if self.alive:
            await self.attempt(self.gateway.clerk.end_overdue())
        await self.settle()

    @rule(seconds=st.sampled_from([-200, -40, -7, 7, 40, 200]))
    def clock_is_set(self, seconds):
        self.set_by += timedelta(seconds=seconds)
        self.furthest = max(self.furthest, self.set_by)

    @precondition(lambda self: self.all_connected)
    @rule(
        name=NAMES,
        kind=st.sampled_from(DISASTERS),
        when=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def disaster(self, name, kind, when):
        self.run(self._disaster(name, kind, when))

    async def _disaster(self, name, kind, when):
        client = self.clients[name]
        if kind in FATES:
            what, committed = FATES[kind]
            self.gateway.engine.fate = what, when, committed
        elif kind == "client at a frame":
            client.doom = when
        elif kind == "gateway":
            self.gateway.engine.dead = True
        elif kind == "client":
            client.dead = True
        elif kind == "line":
            self._hang_up(client)
            await self.settle()
        else:
            await self._renew(name, kind)

    async def _renew(self, name, kind):
        ice, how = await self._ice(name), {}
        if kind == "another user":
            if ice.provisionedto is None:
                return
            kind, how = "reregister", {"user": "bob" if ice.provisionedto == "alice" else "alice"}
        if not await self.attempt(getattr(self.gateway.provisioning, kind)(ROOT, ice, **how)):
            return
        left = [
            one.operation.id
            for one in (await self._tables()).operations
            # A schedule may have gone on since.
            if one.operation.ice_name == name
            and not one.operation.is_finished
            and one.operation.schedule is None
        ]
        assert not left, f"{kind} has left {left} unfinished"

    # --- what has to hold ------------------------------------------------------------------------

    def note_sent(self, message, session):
        if message.get("method") == "operation.run":
            operation = message["id"]
            before = self.sent.setdefault(operation, [])
            if not all((operation, one) in self.refused for one in before):
                self.faults.append(f"{operation} was sent twice")
            if session.id in before:
                self.faults.append(f"{operation} was sent to {session.id}, which has refused it")
            before.append(session.id)

    def note_answer(self, frame):
        message = json.loads(frame)
        if "method" not in message:
            refusal = message["error"]["data"]["code"] if "error" in message else None
            assert refusal != "unknown-operation", f"the gateway does not know {message['id']}"
            self.acknowledged[message["id"]] = refusal

    async def look_at(self, transaction):
        """Compare what a transaction has sent, and what occurrences it has decided on, with the model."""
        try:
            await self._look_at(transaction)
        except Exception as fault:
            self.faults.append("".join(traceback.format_exception(fault)))
            raise

    async def _look_at(self, transaction):
        rows = await transaction.fetch(
            "SELECT id, state FROM ice_operations"
            " WHERE state IN ('sent', 'lost') OR idempotency_key LIKE 'schedule:%'"
        )
        found = {operation for operation, _ in rows}
        self.given_up |= {operation for operation, state in rows if state == State.LOST}
        new, self.marked = found.difference(self.marked), found
        if not new:
            return
        tables, now = await read_tables(transaction.fetch), self.clock()
        for one in tables.operations:
            operation = one.operation
            if operation.id not in new:
                continue
            faults = []
            if operation.state is State.SENT:
                faults = self._faults_of_sending(tables, one, now)
            elif operation.state is State.QUEUED and operation.sent is None:
                faults = tables.faults_of_occurrence(one, now)
            self.faults += [f"{operation.id} in {operation.state}: {fault}" for fault in faults]

    def _faults_of_sending(self, tables, one, now):
        session = self.gateway.hub.get(one.operation.ice_name)
        if session is None:
            return []  # it is recalled
        ice = tables.ices[session.ice_name]
        words = [session.accepts, self.words.get(session.id, UNSET)]
        to = Receiver(
            session.id,
            session.generation,
            [ice.accepts if word is UNSET else word for word in words],
            decided=self.loop.time() - session.opened >= FIRST_WAIT,
        )
        return tables.faults_of_sending(one, to, now)

    async def _tables(self):
        return await read_tables(self.engine.fetch)

    @invariant()
    def the_table_is_true(self):
        if self.clients:
            self.run(self._is_true())

    async def _is_true(self):
        tables = await self._tables()
        rows = [one.operation for one in tables.operations]
        known = {row.id for row in rows}
        assert known.issuperset(self.accepted), f"accepted and gone: {set(self.accepted) - known}"
        active = Counter(row.ice_name for row in rows if row.state in ACTIVE)
        assert all(count == 1 for count in active.values()), f"one at a time: {active}"
        for row in rows:
            self.is_true(row)
        await self._says_why_they_wait(tables)
        self._is_looked_at(rows)
        for schedule in self.schedules:
            await self._is_accounted_for(schedule, rows)
        assert not self.faults, self.faults

    async def _says_why_they_wait(self, tables):
        queued = [one for one in tables.operations if one.operation.state is State.QUEUED]
        now = self.clock()
        told = await waits(self.engine.fetch, [one.operation for one in queued], now)
        expected = {one.operation.id: tables.waits(one, now) for one in queued}
        wait = {name: why for name, why in expected.items() if why is not None}
        assert told == wait, f"{told}, expected {wait}"

    def _is_looked_at(self, rows):
        """Whatever waits has a lane or a claimer."""
        dispatch = self.gateway.dispatch
        if not self.alive:
            return
        for row in rows:
            if row.state is State.QUEUED and row.pool is not None:
                assert row.pool in dispatch._pools._tasks, f"nobody looks at {row.pool}"
            elif not row.is_finished and row.ice_name in self.gateway.hub:
                assert row.ice_name in dispatch._lanes, f"nobody looks at {row.ice_name}"

    async def _is_accounted_for(self, name, rows):
        schedules = Schedules(self.engine.fetch)
        schedule, before = await schedules.find(name), self.schedules[name]
        self.schedules[name] = schedule
        stopped = self.stopped[name]
        if before.enabled and not schedule.enabled:
            stopped.append((before.next, None))
        elif schedule.enabled and not before.enabled:
            stopped[-1] = (stopped[-1][0], max(schedule.next, self.clock()))
        history = [one.occurrence for one in reversed(await schedules.occurrences(name, 2000))]
        made = [row for row in rows if row.schedule == name]
        self.faults += faults_of(schedule, history, made, stopped)

    def is_true(self, row):
        assert self.begun[row.id] <= 1, f"{row.id} ran {self.begun[row.id]} times"
        before = self.ended.get(row.id)
        if before is not None and row.state is not before:
            late = before is State.LOST and row.state in (State.SUCCEEDED, State.FAILED)
            assert late, f"{row.id} had {before} and has now {row.state}"
        if row.is_finished:
            self.ended[row.id] = row.state
        if row.state in (State.QUEUED, State.EXPIRED):
            kept = [one for one in self.sent.get(row.id, ()) if (row.id, one) not in self.refused]
            assert not kept, f"{row.id} is {row.state}, and was sent"
            assert not self.begun[row.id], f"{row.id} is {row.state}, and was begun"
        if row.state is State.SUCCEEDED:
            assert self.returned.get(row.id) == "succeeded", f"{row.id} has not succeeded"
            assert json.loads(row.result) == {"did": row.id}
        if row.state is State.FAILED:
            code = json.loads(row.error)["code"]
            if code == "refused":
                over = row.id in self.given_up  # too late for another ICE
                assert row.pool is None or over, f"{row.id} has failed, and others may take it"
                assert not self.begun[row.id], f"{row.id} was begun, and is said to be refused"
            elif code == "failed":
                assert self.returned.get(row.id) == "failed", f"{row.id} has not failed"
            else:
                # Nobody cancels what is not ended by that, but the ICE what was given up for lost.
                assert code == "interrupted" or row.id in self.given_up, code
                assert row.id not in self.returned, f"{row.id} has {self.returned[row.id]}"
        if row.id in self.returned and self.acknowledged.get(row.id, "") is None:
            assert row.state == self.returned[row.id], f"{row.id} was acknowledged, is {row.state}"

    def teardown(self):
        try:
            if self.clients:
                self.run(self.everybody_comes_back())
        finally:
            self.run(self.close())
            self.loop.close()
            self.named.stop()
            if self.url is not None:
                self.postgres.drop(self.url)

    async def everybody_comes_back(self):
        """All live and the lines hold; deadlines pass first, then nothing holds work up, and all handlers return."""
        self.gateway.engine.fate = None
        for client in self.clients.values():
            client.doom = None
        for seconds in (70, 40, 0):
            await self._come_back(arrived=True)
            await self._all_hear()
            await self._time_passes(timedelta(seconds=seconds))
            await self._is_true()
        await self._nothing_holds_work_up()
        for _ in range(6 * MANY):  # no handler is begun before the one before it has ended
            await self._come_back(arrived=True)
            await self._handlers_end("succeeded")
            await self._all_hear()
            await self._time_passes(timedelta(seconds=6))
            if all(one.operation.is_finished for one in (await self._tables()).operations):
                break
        await self._is_true()
        for one in (await self._tables()).operations:
            self._has_ended_well(one.operation)
        for client in self.clients.values():
            assert not client.journal.unanswered(), "a result was not delivered"

    async def _nothing_holds_work_up(self):
        """No schedule makes more, all is due, and every ICE takes everything in a new session."""
        self.set_by = self.furthest
        for schedule in self.schedules:
            await self._enable(schedule, False)
        for name, like in POOLS.items():
            await self._set_pool(name, like)
        for name, client in self.clients.items():
            await self.attempt(self.gateway.bulk.label_one(ROOT, name, LABELS[name], None))
            await self._pause(name, PauseOrder(by_admin=True, resume=True))
            await self._ice_says(client, None)
            client.handlers.update(dict.fromkeys(OperationKind, client.execute))
            self._hang_up(client)

    def _has_ended_well(self, row):
        assert row.is_finished, f"{row.id} has come to no end: {row.state}"
        if row.id in self.returned and row.state is not State.CANCELLED:
            assert row.state == self.returned[row.id], (
                f"{row.id} {self.returned[row.id]}, and that is lost: {row.state}"
            )
        if row.state is State.LOST:
            stopped = json.loads(row.error)["code"] == "deadline" and row.id not in self.returned
            assert stopped or not self.begun[row.id], f"the ICE knows what became of {row.id}"

    async def close(self):
        if self.clients:
            tasks = await self.gateway.end()
            for client in self.clients.values():
                tasks += client.end()
            await self._bury(tasks)
            for client in self.clients.values():
                client.journal.close()
        await self.stack.aclose()
        await asyncio.to_thread(shutil.rmtree, self.folder)


def tell_stories(count, postgres=None):
    run_state_machine_as_test(
        partial(World, postgres),
        settings=settings(
            max_examples=count,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("count", [5, pytest.param(60, marks=pytest.mark.long)])
def test_every_operation_comes_to_a_true_end(count):
    tell_stories(count)


@pytest.mark.long
def test_every_operation_comes_to_a_true_end_on_postgresql(postgres_server):
    tell_stories(10, postgres_server)
