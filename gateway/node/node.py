"""One running gateway without its HTTP: its parts, how it acts on events, and its background tasks.

`app` builds one at the start and gives it the database, the keys and the metrics.

Tested in tests/gateway/node/test_session.py and tests/cluster/test_cluster.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from client.protocol import RefusalCode
from gateway.core.audit_event import AuditAction, LogEntry
from gateway.core.ice import IceType
from gateway.core.operation import FINISH_GRACE
from gateway.core.problems import Problem, refusal
from gateway.core.times import Clock
from gateway.node.admission import Admission, OpenSession
from gateway.node.dispatcher import CANCEL_GRACE, Dispatcher
from gateway.node.enrolment import EnrolmentScreen
from gateway.node.expiry import OperationExpiry
from gateway.node.health import Health, HealthCheck
from gateway.node.heartbeat import Heartbeat
from gateway.node.hub import Hub
from gateway.node.lease import Lease
from gateway.node.log_follower import LogFollower
from gateway.node.membership import (
    CONFIRMED_ACTIONS,
    SWEEP_INTERVAL,
    Membership,
    NodeIdentity,
)
from gateway.node.operation_logs import OperationLogWriter
from gateway.node.operation_meters import OperationMeters
from gateway.node.operation_waiters import OperationWaiters
from gateway.node.presence import Presence
from gateway.node.progress import ProgressWriter
from gateway.node.restore_hold import RestoreHold
from gateway.node.revocations import Revocations
from gateway.node.scheduler import LOOK, Scheduler
from gateway.node.screening import ATTEMPTS, Screening
from gateway.node.session import Session
from gateway.node.signature_helper import SignatureHelper
from gateway.node.verdict import Admitted, Handshake, Refused
from gateway.node.webhook_sender import DEFAULT_PACE, SendingPace, WebhookSender
from gateway.runtime.clocks import SharedClock
from gateway.runtime.eventloop import cancel_and_wait, supervise
from gateway.runtime.fd_limits import shortage
from gateway.runtime.settings import Settings
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import Engine
from gateway.store.ice_listing import IceListing
from gateway.store.ice_loader import IceLoader
from gateway.store.key_file import KeyStore
from gateway.store.nodes import Nodes, forget_all

_KEY_ACTIONS: Final = frozenset(
    {AuditAction.ROTATE_KEYS, AuditAction.PROMOTE_KEY, AuditAction.RETIRE_KEY}
)
"""Actions after which the key file is read again."""
_NODE_ACTIONS: Final = frozenset({AuditAction.DRAIN_NODE, AuditAction.RESUME_NODE})
"""Actions after which a node reads at once whether it is drained."""
_PAUSED: Final = "an admin has drained this node; to resume it, run `ice-gateway nodes resume {}`"


class NodeState(enum.Enum):
    """What a node does with handshakes."""

    SERVING = "serving"
    PAUSED = "paused"
    """An admin has drained it: it admits no ICE until an admin resumes it."""
    DRAINING = "draining"
    """The gateway is stopping."""


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """Limits of a node that no setting has."""

    returns_per_second: float = 200.0
    """ICEs that reconnect per second after the node has closed its sessions."""
    attempts: int = ATTEMPTS
    finish_grace: timedelta = FINISH_GRACE
    cancel_grace: float = CANCEL_GRACE
    schedule_look: float = LOOK
    sending: SendingPace = DEFAULT_PACE
    sweep_interval: float = SWEEP_INTERVAL


DEFAULT_LIMITS: Final = NodeLimits()


class Meters(OperationMeters, Protocol):
    """Where a node counts what happens."""

    def admitted(self, ice_type: IceType) -> None:
        """A session was opened."""

    def ended(self, ice_type: IceType, code: int) -> None:
        """A session ended with this close code."""

    def looked_up(self, found: bool) -> None:  # noqa: FBT001 - a callback's argument
        """A token of a retired key was looked up by its hash; `found` says whether a registered ICE has it."""

    def dropped(self, seconds: float) -> None:
        """A session was dropped this many seconds after the action."""

    def applied(self, lag: float) -> None:
        """An event was applied this many seconds after it happened."""

    def duplicates(self, found: int) -> None:
        """So many events `duplicate` were logged."""

    def delivered(self, outcome: str) -> None:
        """A message to a webhook was `taken`, `failed`, or `set-aside`."""

    def log_ignored(self, why: str) -> None:
        """A text that an ICE logged is not kept."""


class Node:
    """Builds the parts of a running gateway and connects them; it observes its sessions."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        keys: KeyStore,
        identity: NodeIdentity,
        meters: Meters,
        clock: Clock,
        monotonic: Callable[[], float],
        limits: NodeLimits = DEFAULT_LIMITS,
    ) -> None:
        self.name = identity.name
        self.instance = identity.instance
        self.state = NodeState.SERVING
        self.hub: Hub[Session] = Hub()
        self.waiters = OperationWaiters()
        self.presence = Presence(engine, self.name, clock, meters.duplicates)
        self.log = LogFollower(engine, self._apply, self._compare, self._on_change)
        self.restore_hold = RestoreHold(engine)
        self.heartbeat = Heartbeat(self.hub, settings.ice_heartbeat)
        self.revocations = Revocations(
            self.hub,
            self.log,
            node=self.name,
            clock=clock,
            observe=meters.dropped,
            acknowledgements=Acknowledgements(
                Nodes(engine.fetch), clock, identity.instance, self.name
            )
            if engine.shared
            else None,
        )
        self._progress = ProgressWriter(engine, self.waiters, clock)
        self._operation_logs = OperationLogWriter(
            engine, self.waiters, settings.operations_log_kept, meters.log_ignored
        )
        self.dispatcher = Dispatcher(
            engine=engine,
            node=self.name,
            hub=self.hub,
            waiters=self.waiters,
            progress=self._progress,
            logs=self._operation_logs,
            meters=meters,
            clock=clock,
            kept_bytes=settings.operations_kept_bytes,
            finish_grace=limits.finish_grace,
            cancel_grace=limits.cancel_grace,
        )
        self.presence.subscribe(self.dispatcher.heard)
        # What sessions report of operations (`session.Observer`) goes straight to the dispatcher.
        self.answered = self.dispatcher.answered
        self.progressed = self.dispatcher.reports.progressed
        self.logged = self.dispatcher.reports.logged
        self.finished = self.dispatcher.finished
        self._expiry = OperationExpiry(
            engine, clock, settings.operations_keep, self.dispatcher.expired
        )
        self.scheduler = Scheduler(
            clock=clock,
            monotonic=monotonic,
            held=lambda: self.restore_hold.reason is not None,
            look=limits.schedule_look,
        )
        self.lease = Lease(settings.node_lease) if engine.shared else Lease.forever()
        self.webhook_sender = WebhookSender(
            clock=clock,
            monotonic=monotonic,
            lease=self.lease,
            held=lambda: self.restore_hold.reason is not None,
            delivered=meters.delivered,
            away_after=settings.notices_away_after,
            pace=limits.sending,
        )
        lease_time = SharedClock(monotonic)
        self._signatures = SignatureHelper()
        self.admission = Admission(
            screening=Screening(
                keys=keys,
                shared=engine.shared,
                clock=clock,
                lease_time=lease_time,
                public_urls=settings.server_public_url,
                signatures=self._signatures,
                monotonic=monotonic,
                attempts=limits.attempts,
            ),
            engine=engine,
            hub=self.hub,
            loader=IceLoader(engine, monotonic),
            follower=self.log,
            restore_hold=self.restore_hold,
            lease=self.lease,
            clock=clock,
            monotonic=monotonic,
            looked_up=meters.looked_up,
        )
        self.enrolments = EnrolmentScreen(self.admission, keys)
        self.membership = (
            Membership(
                engine=engine,
                identity=identity,
                lease=self.lease,
                follower=self.log,
                hub=self.hub,
                keys=keys,
                clock=clock,
                lease_time=lease_time,
                close_sessions=self.close_sessions,
                pause=self.pause,
                publish=self.presence.publish,
                sweep_interval=limits.sweep_interval,
            )
            if engine.shared
            else None
        )
        self.health = Health(engine, self._checks(engine, keys))
        self._engine = engine
        self._keys = keys
        self._ices = IceListing(engine)
        self._meters = meters
        self._clock = clock
        self._returns_per_second = limits.returns_per_second
        self._subscribers: list[Callable[[], None]] = []
        self._closing: set[asyncio.Future[None]] = set()

    def _checks(self, engine: Engine, keys: KeyStore) -> dict[str, HealthCheck]:
        def paused() -> str | None:
            return _PAUSED.format(self.name) if self.state is NodeState.PAUSED else None

        checks = {
            "store": HealthCheck(lambda: engine.fault or self.log.fault),
            "restore": HealthCheck(lambda: self.restore_hold.reason),
            "keys": HealthCheck(keys.fault, required=False),
            "handles": HealthCheck(shortage),
            "pause": HealthCheck(paused, intended=True),
        }
        membership = self.membership
        if membership is not None:
            checks["lease"] = HealthCheck(lambda: membership.fault)
        return checks

    def subscribe(self, publish: Callable[[], None]) -> None:
        """Call `publish` after each event of the log."""
        self._subscribers.append(publish)

    # --- start and stop ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self, failed: asyncio.Future[None]) -> AsyncIterator[None]:
        """Join the other nodes and run the background tasks; `failed` gets the error of a task that died.

        Raises:
            StoreRefused: this gateway cannot serve this database.
            StoreUnavailable: the database could not be used now.
        """
        await self.log.start()
        async with contextlib.AsyncExitStack() as stack:
            if self.membership is not None:
                # Before `join`: it may have joined even if it is cancelled.
                stack.push_async_callback(self.membership.leave)
                await self.membership.join()
                # The first node makes the key file, so that an operator can copy it to the other nodes.
                self._keys.for_sealing(may_create=True)
            else:
                await self._engine.write(forget_all)
            stack.push_async_callback(self._signatures.close)
            await self.presence.start()
            await self.restore_hold.start()
            for name, work in self._work():
                stack.push_async_callback(cancel_and_wait, supervise(work, name, failed))
            # The last sessions and logs are recorded before the store closes.
            stack.push_async_callback(self.presence.flush)
            stack.push_async_callback(self._operation_logs.flush)
            yield

    def _work(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        work = [
            ("log follower", self.log.run()),
            ("presence", self.presence.run()),
            ("heartbeat", self.heartbeat.run()),
            ("health", self.health.run()),
            ("progress", self._progress.run()),
            ("logs of operations", self._operation_logs.run()),
            ("expiry", self._expiry.run()),
        ]
        if self.membership is not None:
            work.append(("membership", self.membership.run()))
        return work

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - a callback's argument
        """Admit no ICE and close every session, or resume."""
        if self.state is NodeState.DRAINING:
            return
        self.state = NodeState.PAUSED if paused else NodeState.SERVING
        if paused:
            self.close_sessions()

    async def drain(self, at_most: float) -> None:
        """Admit no more ICEs, close every session, and wait up to `at_most` seconds for their sockets."""
        self.state = NodeState.DRAINING
        self.waiters.close()
        self.close_sessions()
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=at_most)
        await self.dispatcher.close()

    def close_sessions(self) -> None:
        """Close every session with 1012; each gets its own time to reconnect, to spread the load."""
        sessions = list(self.hub)
        random.shuffle(sessions)
        spread = max(1.0, len(sessions) / self._returns_per_second)
        for number, session in enumerate(sessions):
            session.restart(round(1 + spread * number / len(sessions), 4))

    # --- the log -------------------------------------------------------------------------------------

    def _apply(self, entry: LogEntry) -> None:
        """Act on an event: drop sessions first, since the later steps rely on that."""
        dropped = self.revocations.apply(entry)
        action = entry.event.action
        if self.membership is not None:
            if action in CONFIRMED_ACTIONS:
                self.membership.report_drops(entry.seq, dropped)
            if action in _NODE_ACTIONS:
                self.membership.renew_soon()
        if action in _KEY_ACTIONS:
            self._keys.reload()
        self.restore_hold.apply(entry)
        self.dispatcher.apply(entry)
        self.scheduler.apply(entry)
        self.webhook_sender.apply(entry)
        for publish in self._subscribers:
            publish()
        lag = (self._clock() - entry.event.at).total_seconds()
        self._meters.applied(max(0.0, lag))

    async def _compare(self) -> None:
        """Compare every session with the table, after the log was interrupted."""
        held = list(self.hub)
        self.hub.reconcile(held, await self._ices.standing([session.ice_name for session in held]))
        await self.dispatcher.refresh()
        self.scheduler.refresh()
        self.webhook_sender.refresh()

    def _on_change(self) -> None:
        """Another process may have committed something."""
        if self.membership is not None:
            self.membership.wake()
            self.waiters.wake_all()

    # --- admission -----------------------------------------------------------------------------------

    def drain_refusal(self) -> Problem | None:
        """The refusal for every handshake while this node is drained or stops; None while it serves."""
        if self.state is NodeState.SERVING:
            return None
        wait = random.randint(1, 5)  # noqa: S311 - spreads load
        return refusal(RefusalCode.DRAINING, retry_after=wait)

    def session(self, admitted: Admitted, session_id: str, address: str) -> Session:
        """Make the session of an admitted ICE; the caller sets its transport."""
        return Session(
            admitted.ice,
            session_id=session_id,
            seq=admitted.seq,
            address=address,
            since=self._clock(),
            observer=self,
            reading=admitted.reading,
        )

    async def admit(
        self, handshake: Handshake, open_session: OpenSession[Session]
    ) -> Session | Refused | None:
        """See `Admission.admit`; also starts the session's heartbeat and reports the outcome."""
        outcome = await self.admission.admit(handshake, open_session)
        if isinstance(outcome, Session):
            self.heartbeat.schedule(outcome)
            self.presence.opened(outcome)
            self.dispatcher.wake(outcome.ice_name)
            self._meters.admitted(outcome.ice_type)
        elif outcome is not None and outcome.ice_name is not None:
            self.presence.refused(outcome.ice_name, outcome.problem.code, handshake.address)
        return outcome

    # --- called by sessions (`session.Observer`) -----------------------------------------------------

    def may_act(self) -> bool:
        """See `session.Observer`."""
        if self.lease.valid:
            return True
        self.close_sessions()
        return False

    def greeted(self, session: Session, instance: str | None) -> None:
        """See `session.Observer`."""
        self.presence.greeted(session, instance)
        self.dispatcher.greeted(session)

    def accepts_changed(self, session: Session) -> None:
        """See `session.Observer`."""
        self.presence.greeted(session)
        self.dispatcher.accepts_changed(session)

    def ended(self, session: Session, code: int) -> None:
        """See `session.Observer`."""
        self.hub.remove(session)
        self.dispatcher.wake(session.ice_name)
        self.presence.closed(session, code, superseded=session.ice_name in self.hub)
        self._meters.ended(session.ice_type, code)
        lost = session.transport.lost
        if not lost.done():
            self._closing.add(lost)
            lost.add_done_callback(self._closing.discard)
