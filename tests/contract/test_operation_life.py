"""Operations between a gateway and the reference client, either of which may die at any moment.

The dispatcher, the sessions and the store are real, and so are the client's operations and its journal.
In between there is a line whose frames Hypothesis delivers or loses; the gateway dies before or after a
commit, the client at a frame that it sends. The truth is what the handlers did: how often each was begun
and what it returned. The table has to agree with it at every moment, and once everybody is back every
operation has to come to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter, deque
from datetime import timedelta
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
from prometheus_client import CollectorRegistry

from client import protocol
from client.environment import Waits
from client.journal import Journal
from client.operations import OperationFailed, OperationRunner
from client.protocol import OperationKind
from gateway.core.ice import Status
from gateway.core.operation import ACTIVE, State
from gateway.core.problems import Problem
from gateway.core.revocation import Confirmation
from gateway.node.dispatcher import Dispatcher
from gateway.node.expiry import OperationExpiry
from gateway.node.hub import Hub
from gateway.node.log_follower import LogFollower
from gateway.node.operation_logs import OperationLogWriter
from gateway.node.operation_waiters import OperationWaiters
from gateway.node.progress import ProgressWriter
from gateway.node.session import Session
from gateway.services.operation_requests import OperationRequest, OperationService
from gateway.services.provisioning import Provisioning
from gateway.store import ices
from gateway.store.engine import StoreUnavailable
from gateway.store.ice_listing import Ices
from gateway.store.key_file import KeyStore
from gateway.store.operations import OperationFilter
from gateway.store.operations import Operations as Rows
from gateway.store.sqlite.engine import open_sqlite
from gateway.web.operation_metrics import OperationMetrics
from tests.contract.domain import NOW, ROOT, add_registered, add_user, an_event

NAME = "lab-1"
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
]


class Mortal:
    """An engine in whose process `fate` waits before or after a commit: death, or a failing store.

    What a dead process does comes to nothing.
    """

    def __init__(self, engine):
        self._engine = engine
        self.busy = 0
        self.dead = False
        self.fate = None
        """What happens, how many writes from now, and whether the commit is done by then."""

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
        done = await self._counted(self._engine.write(unit))
        if left == 0 and committed:
            await self._meet(what)
        await self._live()
        return done

    async def _meet(self, what):
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
            self.world.note_sent(json.loads(frame))
            self.to_ice.append(frame)

    def close(self, code, reason=None):
        if self.open:
            self.open = False
            self.session.closed(code)


class Gateway:
    """One process of the gateway, without its sockets."""

    def __init__(self, world, engine):
        self.world = world
        self.engine = Mortal(engine)
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
        self.provisioning = Provisioning(
            engine=self.engine,
            keys=world.keys,
            clock=world.clock,
            registration_ttl=0,
            confirmer=self,
        )
        self.tail = LogFollower(engine, self.apply, self.dispatch.refresh)
        self.sessions = itertools.count()

    def may_act(self):
        return True

    async def confirm(self, logged):
        """This gateway has no other nodes."""
        return Confirmation([], [])

    def apply(self, entry):
        self.hub.apply(entry)
        self.dispatch.apply(entry)

    def admit(self, ice, line):
        number = next(self.sessions)
        line.session = session = Session(
            ice,
            session_id=f"session-{number}",
            seq=self.tail.position,
            address="192.0.2.7",
            since=NOW,
            observer=self,
        )
        session.transport = line
        self.hub.promote(self.hub.expect(ice.ice_name, ice.generation), session)
        session.transport.send(session.welcome(25.0))
        self.dispatch.wake(session.ice_name)

    # What a session observes goes where the endpoint sends it.
    def greeted(self, session, _instance):
        self.dispatch.greeted(session)

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

    async def end(self):
        """Nothing of it moves any more."""
        self.engine.dead = True
        tasks = [*self.dispatch._tasks, *(lane.task for lane in self.dispatch._lanes.values())]
        for task in tasks:
            task.cancel()
        await self.dispatch.close()
        return tasks


class Client:
    """One process of the client, without its sockets: when it has sent `doom` more, it dies."""

    def __init__(self, world):
        self.world = world
        self.dead = False
        self.doom = None
        self.line = Line(world, up=False)
        self.work = {}
        handlers = dict.fromkeys(("execute", "schedule"), self.execute)  # none for others
        self.operations = OperationRunner(handlers, self.send, lambda _: None, Waits())
        self.journal = Journal(world.folder / "operations.db", world.clock().timestamp)
        self.operations.open(self.journal)

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
            hello = protocol.Hello(running=self.operations.running)
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
    """Everything that may happen, in any order."""

    def __init__(self):
        super().__init__()
        self.passed = timedelta()
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
        self.hung = []
        self.begun = Counter()
        """How often a handler was begun."""
        self.returned = {}
        """What a handler came to, of which the journal knows."""
        self.sent = set()
        """What was written to an ICE."""
        self.acknowledged = {}
        """What the gateway has told the ICE about its finish: None, or the code of a refusal."""
        self.requested = 0
        self.accepted = []
        """What the caller was told is accepted."""
        self.ended = {}
        """The final state that an operation was last seen in."""

    def next_name(self, _):
        return f"{next(self.numbers):024x}"

    def clock(self):
        return NOW + self.passed

    def run(self, work):
        return self.loop.run_until_complete(work)

    # --- everybody's life ----------------------------------------------------------------------

    @initialize()
    def begin(self):
        self.run(self._begin())

    async def _begin(self):
        engine = await self._open()
        self.keys.for_sealing(may_create=True)
        await add_user(engine, "alice")
        await add_registered(engine, NAME)
        self.client = Client(self)
        await self.gateway.tail.start()
        await self._connect()

    async def _open(self):
        self.engine = await self.stack.enter_async_context(
            open_sqlite(self.folder / "ice.db", serving=True, tell=lambda *_: None)
        )
        self.gateway = Gateway(self, self.engine)
        return self.engine

    @precondition(lambda self: not self.connected)
    @rule(arrived=st.booleans())
    def they_come_back(self, arrived):
        self.run(self._come_back(arrived))

    async def _come_back(self, arrived):
        """Whoever is dead is started; what it had written before may have arrived, and may not."""
        if arrived and self.alive:
            await self._gateway_hears(100)
        if arrived and not self.client.dead:
            await self._ice_hears(100)
        if not self.alive:
            await self._restart()
        if self.client.dead:
            await self._restart_client()
        if not self.connected:
            await self._connect()

    async def _restart(self):
        self._hang_up()
        await self._bury(await self.gateway.end())
        await self.stack.aclose()
        await self._open()
        await self.gateway.tail.start()
        await self.settle()

    async def _bury(self, tasks):
        tasks += self.hung
        self.hung = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _restart_client(self):
        self._hang_up()
        # What it was about when it died was never told to its journal.
        self.client.journal.close()
        await self._bury(self.client.end())
        self.client = Client(self)

    def _hang_up(self):
        line = self.client.line
        if line.open:
            line.close(1006)

    async def settle(self):
        """Until nobody has anything to do."""
        while True:
            quiet = 0
            while quiet < 20:
                engine = self.gateway.engine
                if engine.busy:
                    time.sleep(0.0001)  # noqa: ASYNC251 - the thread of the database works meanwhile
                quiet = 0 if engine.busy else quiet + 1
                await asyncio.sleep(0)
            before = self.gateway.tail.position
            if self.alive:
                await self.gateway.tail.poll()
            if self.gateway.tail.position == before:
                return

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
    def connected(self):
        return self.alive and not self.client.dead and self.client.line.open

    # --- what is done --------------------------------------------------------------------------

    @precondition(lambda self: self.alive and self.requested < MANY)
    @rule(
        kinds=st.lists(st.sampled_from(["execute", "execute", "schedule", "debug"]), max_size=3),
        deadline=st.sampled_from([None, None, 20]),
    )
    def request(self, kinds, deadline):
        for kind in ["execute", *kinds]:
            if self.alive:
                self.run(self._request(OperationKind(kind), deadline))

    async def _request(self, kind, deadline):
        self.requested += 1
        later = 60 if kind is OperationKind.SCHEDULE else 0
        at = self.clock()
        wanted = OperationRequest(
            kind,
            b"{}",
            at + timedelta(seconds=later) if later else None,
            None if deadline is None else at + timedelta(seconds=later + deadline),
        )
        listed = await Ices(self.engine).find(NAME)
        done = await self.attempt(self.gateway.desk.request(ROOT, listed.ice, wanted))
        if done is not None and not isinstance(done, Problem):
            self.accepted.append(done.id)

    @precondition(lambda self: self.alive and self.accepted)
    @rule(data=st.data())
    def cancel(self, data):
        operation = data.draw(st.sampled_from(self.accepted))
        self.run(self.attempt(self.gateway.desk.cancel(ROOT, operation)))

    async def _connect(self):
        ice = (await Ices(self.engine).find(NAME)).ice
        if ice.status is Status.DEREGISTERED:
            done = await self.attempt(self.gateway.provisioning.reregister(ROOT, ice))
            ice = (await Ices(self.engine).find(NAME)).ice
            if done is None:
                return  # the gateway has died of it
        if ice.status is Status.PROVISIONED:
            new = ice.register("key of lab-1", now=self.clock())
            await self.engine.write(
                lambda transaction: ices.replace(
                    transaction, [(ice, new, an_event("register", new))]
                )
            )
            ice = new
        self._hang_up()
        await self.gateway.tail.poll()
        self.client.line = Line(self)
        self.gateway.admit(ice, self.client.line)
        await self.settle()

    # What was written before a death arrives all the same, as long as the line is open.

    @precondition(lambda self: not self.client.dead and self.client.line.open)
    @rule(count=st.integers(1, 5))
    def ice_hears(self, count):
        self.run(self._ice_hears(count))

    async def _ice_hears(self, count):
        line = self.client.line
        while count and line.to_ice and line.open and not self.client.dead:
            frame = line.to_ice.popleft()
            self.note_answer(frame)
            await self.attempt(self.client.take(frame))
            count -= 1

    @precondition(lambda self: self.alive and self.client.line.open)
    @rule(count=st.integers(1, 5))
    def gateway_hears(self, count):
        self.run(self._gateway_hears(count))

    async def _gateway_hears(self, count):
        line = self.client.line
        while count and line.to_gateway and self.alive and line.open:
            line.session.received(line.to_gateway.popleft().decode())
            await self.settle()
            count -= 1

    @precondition(lambda self: self.connected)
    @rule()
    def all_hear(self):
        self.run(self._all_hear())

    async def _all_hear(self):
        line = self.client.line
        while self.connected and (line.to_ice or line.to_gateway):
            await self._ice_hears(100)
            await self._gateway_hears(100)

    @precondition(lambda self: not self.client.dead and self.client.work)
    @rule(outcome=st.sampled_from(["succeeded", "succeeded", "failed"]))
    def handler_ends(self, outcome):
        self.run(self._handler_ends(outcome))

    async def _handler_ends(self, outcome):
        if not self.client.work:
            return
        operation, future = self.client.work.popitem()
        if future.done():
            return  # it was cancelled
        future.set_result(outcome)
        await self.settle()
        finish = self.client.journal.finish_of(operation)
        if finish is not None:
            self.returned[operation] = outcome

    @rule(seconds=st.sampled_from([1, 6, 25, 70]))
    def time_passes(self, seconds):
        self.run(self._time_passes(timedelta(seconds=seconds)))

    async def _time_passes(self, span):
        self.passed += span
        if self.alive:
            await self.attempt(self.gateway.clerk.end_overdue())
        await self.settle()

    @precondition(lambda self: self.connected)
    @rule(kind=st.sampled_from(DISASTERS), when=st.sampled_from([0, 0, 0, 1, 2]))
    def disaster(self, kind, when):
        self.run(self._disaster(kind, when))

    async def _disaster(self, kind, when):
        if kind in FATES:
            what, committed = FATES[kind]
            self.gateway.engine.fate = what, when, committed
        elif kind == "client at a frame":
            self.client.doom = when
        elif kind == "gateway":
            self.gateway.engine.dead = True
        elif kind == "client":
            self.client.dead = True
        elif kind == "line":
            self._hang_up()
            await self.settle()
        else:
            ice = (await Ices(self.engine).find(NAME)).ice
            if not await self.attempt(getattr(self.gateway.provisioning, kind)(ROOT, ice)):
                return
            left = [row.id for row in await self.table() if not row.is_finished]
            assert not left, f"{kind} has left {left} unfinished"

    # --- what has to hold ------------------------------------------------------------------------

    def note_sent(self, message):
        if message.get("method") == "operation.run":
            operation = message["id"]
            assert operation not in self.sent, f"{operation} was sent twice"
            self.sent.add(operation)

    def note_answer(self, frame):
        message = json.loads(frame)
        if "method" not in message:
            refusal = message["error"]["data"]["code"] if "error" in message else None
            assert refusal != "unknown-operation", f"the gateway does not know {message['id']}"
            self.acknowledged[message["id"]] = refusal

    async def table(self):
        where = OperationFilter(ice_name=NAME)
        page, _ = await Rows(self.engine.fetch).page(where, 1000)
        return [item.operation for item in page]

    @invariant()
    def the_table_is_true(self):
        if hasattr(self, "client"):
            self.run(self._is_true())

    async def _is_true(self):
        rows = await self.table()
        known = {row.id for row in rows}
        assert known.issuperset(self.accepted), f"accepted and gone: {set(self.accepted) - known}"
        assert sum(row.state in ACTIVE for row in rows) <= 1, "one at a time"
        for row in rows:
            self.is_true(row)

    def is_true(self, row):
        assert self.begun[row.id] <= 1, f"{row.id} ran {self.begun[row.id]} times"
        before = self.ended.get(row.id)
        if before is not None and row.state is not before:
            late = before is State.LOST and row.state in (State.SUCCEEDED, State.FAILED)
            assert late, f"{row.id} had {before} and has now {row.state}"
        if row.is_finished:
            self.ended[row.id] = row.state
        if row.state in (State.QUEUED, State.EXPIRED):
            assert row.id not in self.sent, f"{row.id} is {row.state}, and was sent"
        if row.state is State.SUCCEEDED:
            assert self.returned.get(row.id) == "succeeded", f"{row.id} has not succeeded"
            assert json.loads(row.result) == {"did": row.id}
        if row.state is State.FAILED:
            code = json.loads(row.error)["code"]
            if code == "refused":
                assert not self.begun[row.id], f"{row.id} was begun, and is said to be refused"
            elif code == "failed":
                assert self.returned.get(row.id) == "failed", f"{row.id} has not failed"
            else:
                # Nobody cancels what is not ended by that, but the ICE what was given up for lost.
                assert code == "interrupted" or before in (State.LOST, State.FAILED), code
                assert row.id not in self.returned, f"{row.id} has {self.returned[row.id]}"
        if row.id in self.returned and self.acknowledged.get(row.id, "") is None:
            assert row.state == self.returned[row.id], f"{row.id} was acknowledged, is {row.state}"

    def teardown(self):
        try:
            if hasattr(self, "client"):
                self.run(self.everybody_comes_back())
        finally:
            self.run(self.close())
            self.loop.close()
            self.named.stop()

    async def everybody_comes_back(self):
        """Both live and the line holds; deadlines pass first, then all handlers return."""
        self.gateway.engine.fate = self.client.doom = None
        for seconds in (70, 40, 0):
            await self._come_back(arrived=True)
            await self._all_hear()
            await self._time_passes(timedelta(seconds=seconds))
            await self._is_true()
        for _ in range(2 * MANY):  # no handler is begun before the one before it has ended
            await self._come_back(arrived=True)
            await self._handler_ends("succeeded")
            await self._all_hear()
        await self._time_passes(timedelta(days=3))
        await self._is_true()
        for row in await self.table():
            assert row.is_finished, f"{row.id} has come to no end: {row.state}"
            if row.id in self.returned and row.state is not State.CANCELLED:
                assert row.state == self.returned[row.id], (
                    f"{row.id} {self.returned[row.id]}, and that is lost: {row.state}"
                )
            if row.state is State.LOST:
                stopped = (
                    json.loads(row.error)["code"] == "deadline" and row.id not in self.returned
                )
                assert stopped or not self.begun[row.id], f"the ICE knows what became of {row.id}"
        assert not self.client.journal.unanswered(), "a result was not delivered"

    async def close(self):
        if hasattr(self, "client"):
            await self._bury([*(await self.gateway.end()), *self.client.end()])
            self.client.journal.close()
        await self.stack.aclose()
        await asyncio.to_thread(shutil.rmtree, self.folder)


@pytest.mark.parametrize("examples", [10, pytest.param(60, marks=pytest.mark.long)])
def test_every_operation_comes_to_a_true_end(examples):
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
