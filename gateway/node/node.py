"""What one running gateway holds, what it does at each event of the log, and the work beside it.

Built once at the start; `app` gives it a database, its keys, and somewhere to count what happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from client.protocol import CloseCode, Progress, RefusalCode, RequestId, RetryAfter
from gateway.core.audit_event import Entry
from gateway.core.codes import AuditAction
from gateway.core.ice import IceType
from gateway.core.problems import Problem, refusal
from gateway.core.replay import Nonces
from gateway.core.times import Clock
from gateway.node.admission import Admission, Admitted, Handshake, OpenSession, Refused
from gateway.node.dispatcher import Dispatcher
from gateway.node.expiry import OperationExpiry
from gateway.node.health import Health, HealthCheck
from gateway.node.heartbeat import Heartbeat
from gateway.node.hub import Hub
from gateway.node.lease import Lease
from gateway.node.log_follower import LogFollower
from gateway.node.membership import AWAITED, Membership, NodeIdentity
from gateway.node.presence import Presence
from gateway.node.progress import ProgressWriter
from gateway.node.restore_hold import RestoreHold
from gateway.node.revocations import Revocations
from gateway.node.session import FinishReport, Session
from gateway.node.waiters import Waiters
from gateway.runtime.clocks import SharedClock
from gateway.runtime.eventloop import ended, supervise
from gateway.runtime.fd_limits import shortage
from gateway.runtime.settings import Settings
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import Engine
from gateway.store.entry_loader import EntryLoader
from gateway.store.ices import Ices
from gateway.store.key_file import KeyStore
from gateway.store.nodes import Nodes, forget_all

SPREAD: Final = 200
"""Sessions that come back within one second after a drain."""
_KEY_ACTIONS: Final = frozenset(
    {AuditAction.ROTATE_KEYS, AuditAction.PROMOTE_KEY, AuditAction.RETIRE_KEY}
)
"""After each of these the key file is read again."""
_NODE_ACTIONS: Final = frozenset({AuditAction.DRAIN_NODE, AuditAction.RESUME_NODE})
"""After each of these a node asks at once what it is to do."""
_PAUSED: Final = "an admin has drained this node: `ice-gateway nodes resume {}` lets it go on"


class State(enum.Enum):
    """What a node does with handshakes."""

    SERVING = "serving"
    PAUSED = "paused"
    """An admin has drained it: it admits nobody until an admin resumes it."""
    DRAINING = "draining"
    """The gateway is stopping."""


class Meters(Protocol):
    """Where a node counts what happens."""

    def admitted(self, ice_type: IceType) -> None:
        """A session was opened."""

    def ended(self, ice_type: IceType, code: int) -> None:
        """A session has ended with this close code."""

    def dropped(self, seconds: float) -> None:
        """A session was dropped so long after its action began."""

    def applied(self, lag: float) -> None:
        """An event was applied so many seconds after it happened."""


class Node:
    """One running gateway without its HTTP; it observes the sessions that it holds."""

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
    ) -> None:
        self.name = identity.name
        self.state = State.SERVING
        self.hub: Hub[Session] = Hub()
        self.waiters = Waiters()
        self.presence = Presence(engine, self.name, clock)
        self.log = LogFollower(engine, self._apply, self._compare, self._heard)
        self.restore_hold = RestoreHold(engine)
        self.heartbeat = Heartbeat(self.hub, settings.ice_heartbeat)
        self.revocations = Revocations(
            self.hub,
            self.log,
            node=self.name,
            clock=clock,
            observe=meters.dropped,
            others=Acknowledgements(Nodes(engine.fetch), clock, identity.instance, self.name)
            if engine.shared
            else None,
        )
        self._progress = ProgressWriter(engine, self.waiters, clock)
        self.dispatcher = Dispatcher(
            engine=engine,
            hub=self.hub,
            waiters=self.waiters,
            progress=self._progress,
            clock=clock,
            kept_bytes=settings.operations_kept_bytes,
        )
        self._expiry = OperationExpiry(
            engine, clock, settings.operations_keep, self.dispatcher.ended
        )
        self.lease = Lease(settings.node_lease) if engine.shared else Lease.forever()
        lease_time = SharedClock(monotonic)
        self.admission = Admission(
            keys=keys,
            engine=engine,
            hub=self.hub,
            entries=EntryLoader(engine, monotonic),
            follower=self.log,
            restore_hold=self.restore_hold,
            lease=self.lease,
            clock=clock,
            nonces=Nonces(_nonce_key(keys, engine)),
            lease_time=lease_time,
            public_urls=settings.server_public_url,
            monotonic=monotonic,
        )
        self.membership = (
            Membership(
                engine=engine,
                me=identity,
                lease=self.lease,
                follower=self.log,
                hub=self.hub,
                keys=keys,
                clock=clock,
                lease_time=lease_time,
                abandon=self.abandon,
                drain=self.pause,
                tell=self.presence.tell,
            )
            if engine.shared
            else None
        )
        self.health = Health(engine, self._checks(engine, keys))
        self._engine = engine
        self._keys = keys
        self._ices = Ices(engine)
        self._meters = meters
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        self._closing: set[asyncio.Future[None]] = set()

    def _checks(self, engine: Engine, keys: KeyStore) -> dict[str, HealthCheck]:
        def paused() -> str | None:
            return _PAUSED.format(self.name) if self.state is State.PAUSED else None

        checks = {
            "store": HealthCheck(lambda: engine.fault or self.log.fault),
            "restore": HealthCheck(lambda: self.restore_hold.reason),
            "keys": HealthCheck(keys.fault, needed=False),
            "handles": HealthCheck(shortage),
            "pause": HealthCheck(paused, meant=True),
        }
        membership = self.membership
        if membership is not None:
            checks["lease"] = HealthCheck(lambda: membership.fault)
        return checks

    def listen(self, publish: Callable[[], None]) -> None:
        """Call `publish` after each event."""
        self._listeners.append(publish)

    # --- its life ------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self, failed: asyncio.Future[None]) -> AsyncIterator[None]:
        """Join the others and do the work beside; `failed` gets the error of a part that died.

        Raises:
            StoreRefused, StoreUnavailable: it cannot serve this database, or not now.
        """
        await self.log.start()
        async with contextlib.AsyncExitStack() as stack:
            if self.membership is not None:
                # Whatever is cancelled may have joined.
                stack.push_async_callback(self.membership.leave)
                await self.membership.join()
                # The others copy it from here.
                self._keys.for_sealing(may_create=True)
            else:
                await self._engine.write(forget_all)
            await self.presence.start()
            await self.restore_hold.start()
            for name, work in self._work():
                stack.push_async_callback(ended, supervise(work, name, failed))
            # What the last sessions left to be written is written before the store closes.
            stack.push_async_callback(self.presence.flush)
            yield

    def _work(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        work = [
            ("tail", self.log.run()),
            ("presence", self.presence.run()),
            ("heartbeat", self.heartbeat.run()),
            ("vitals", self.health.run()),
            ("progress", self._progress.run()),
            ("clerk", self._expiry.run()),
        ]
        if self.membership is not None:
            work.append(("membership", self.membership.run()))
        return work

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - a callback's argument
        """Admit nobody and close every session, or go on, as an admin wants it."""
        if self.state is State.DRAINING:
            return
        self.state = State.PAUSED if paused else State.SERVING
        if paused:
            self.abandon()

    async def drain(self, at_most: float) -> None:
        """Admit nobody any more, close every session, and wait `at_most` seconds for their sockets."""
        self.state = State.DRAINING
        self.waiters.close()
        self.abandon()
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=at_most)
        await self.dispatcher.close()

    def abandon(self) -> None:
        """Close every session with 1012 and a time of its own to return."""
        sessions = list(self.hub)
        random.shuffle(sessions)
        spread = max(1.0, len(sessions) / SPREAD)
        for number, session in enumerate(sessions):
            retry_after = round(1 + spread * number / len(sessions), 4)
            reason = msgspec.json.encode(RetryAfter(retry_after)).decode()
            session.close(CloseCode.RESTART, reason)

    # --- the log -------------------------------------------------------------------------------------

    def _apply(self, entry: Entry) -> None:
        """Do what an event demands, in the order in which others may rely on it."""
        dropped = self.revocations.apply(entry)
        action = entry.event.action
        if self.membership is not None:
            if action in AWAITED:
                self.membership.dropped(entry.seq, dropped)
            if action in _NODE_ACTIONS:
                self.membership.ask()
        if action in _KEY_ACTIONS:
            self._keys.reload()
        self.restore_hold.apply(entry)
        self.dispatcher.apply(entry)
        for publish in self._listeners:
            publish()
        lag = (self._clock() - entry.event.at).total_seconds()
        self._meters.applied(max(0.0, lag))

    async def _compare(self) -> None:
        """Compare every session with the table, after the log was lost for a while."""
        held = list(self.hub)
        self.hub.reconcile(held, await self._ices.standing([session.ice_name for session in held]))
        await self.dispatcher.refresh()

    def _heard(self) -> None:
        """Another node has written something."""
        if self.membership is not None:
            self.membership.hear()
            self.waiters.wake_all()

    # --- admission -----------------------------------------------------------------------------------

    def turned_away(self) -> Problem | None:
        """Why nobody is admitted now, whatever they bring."""
        if self.state is State.SERVING:
            return None
        wait = random.randint(1, 5)  # noqa: S311 - spreads load
        return refusal(RefusalCode.DRAINING, retry_after=wait)

    def session(self, admitted: Admitted, session_id: str, address: str) -> Session:
        """A session for an ICE that is admitted; its transport is still to be set."""
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
        """See `Admission.admit`; the session counts as connected from here on."""
        outcome = await self.admission.admit(handshake, open_session)
        if isinstance(outcome, Session):
            self.heartbeat.schedule(outcome)
            self.presence.opened(outcome)
            self.dispatcher.opened(outcome)
            self._meters.admitted(outcome.ice.ice_type)
        elif outcome is not None and outcome.ice_name is not None:
            self.presence.refused(outcome.ice_name, outcome.problem.code, handshake.address)
        return outcome

    # --- what sessions tell (`session.Observer`) -----------------------------------------------------

    def may_act(self) -> bool:
        """See `session.Observer`."""
        if self.lease.valid:
            return True
        self.abandon()
        return False

    def greeted(self, session: Session) -> None:
        """See `session.Observer`."""
        self.presence.greeted(session)
        self.dispatcher.greeted(session)

    def answered(self, session: Session, operation_id: str, refused: bytes | None) -> None:
        """See `session.Observer`."""
        self.dispatcher.answered(session, operation_id, refused)

    def progressed(self, session: Session, progress: Progress) -> None:
        """See `session.Observer`."""
        self.dispatcher.progressed(session, progress)

    def finished(self, session: Session, request: RequestId, finish: FinishReport) -> None:
        """See `session.Observer`."""
        self.dispatcher.finished(session, request, finish)

    def ended(self, session: Session, code: int) -> None:
        """See `session.Observer`."""
        self.hub.remove(session)
        self.dispatcher.closed(session)
        self.presence.closed(session, code, superseded=session.ice_name in self.hub)
        self._meters.ended(session.ice.ice_type, code)
        lost = session.transport.lost
        if not lost.done():
            self._closing.add(lost)
            lost.add_done_callback(self._closing.discard)


def _nonce_key(keys: KeyStore, engine: Engine) -> Callable[[], bytes]:
    """The key of the nonces: nodes on a server share their token keys, others make one at each start."""
    own = secrets.token_bytes(32)
    if not engine.shared:
        return lambda: own
    return lambda: keys.derived(b"ice-gateway nonces") or own
