"""Sends operations to the ICEs that are here: one at a time each, in order, and each at most once.

An ICE that is here and has work has a *lane*: a task that looks at the table, does the next thing, and
waits. What it knows stands in the table; a lane can die at any point and the next goes on from there.
Work is heard of through the event log, as everything is. Source: contract sections 6 and 9.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from client import protocol
from gateway.core.audit_event import Entry
from gateway.core.codes import AuditAction, OperationError
from gateway.core.ice import RULES
from gateway.core.operation import (
    ACTIVE,
    FINISH_GRACE,
    Move,
    Operation,
    State,
    allows,
    cancel_reason,
    reason,
    was_stopped,
)
from gateway.core.times import Clock, to_text
from gateway.node.expiry import TOO_LATE
from gateway.node.hub import Hub
from gateway.node.lane import Lane
from gateway.node.progress import ProgressWriter
from gateway.node.session import FinishReport, Session
from gateway.node.waiters import Waiters
from gateway.store import operations
from gateway.store.engine import Engine, StoreUnavailable, T, Transaction, Unit
from gateway.store.operations import Operations

GRACE: Final = 5.0
"""Seconds that an ICE has to end what was cancelled before it is sent the next."""
MAX_IN_HAND: Final = 8
"""Finishes of one session that may wait for the store."""
READS: Final = 2
"""Reads at once for all ICEs: one runs while the loop handles the other's answer. The engine takes turns,
so this is also how many of them a read for a person waits for."""
_RETRY: Final = 0.5
_SOON: Final = 0.02
_LONGEST: Final = 30.0
_ENDING: Final = frozenset(action.value for action, rule in RULES.items() if rule.closes)
_ABOUT_WORK: Final = _ENDING | {AuditAction.REQUEST_OPERATION, AuditAction.CANCEL_OPERATION}

_log = structlog.get_logger()


class Dispatcher:
    """The lanes of this node; its collaborators come in through the constructor."""

    def __init__(
        self,
        *,
        engine: Engine,
        hub: Hub[Session],
        waiters: Waiters,
        progress: ProgressWriter,
        clock: Clock,
        kept_bytes: int,
    ) -> None:
        self._engine = engine
        self._rows = Operations(engine.fetch)
        self._reads = asyncio.Semaphore(READS)
        self._hub = hub
        self._waiters = waiters
        self._clock = clock
        self._kept_bytes = kept_bytes
        self._progress = progress
        self._busy: set[str] = set()
        """The ICEs that may have unfinished operations; of no other the table is asked."""
        self._lanes: dict[str, Lane] = {}
        self._in_hand: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- what the log tells --------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read anew who has work: at the start, and when the log was lost for a while."""
        for ice_name in await self._rows.busy():
            self._mark(ice_name)
            self._waiters.wake(ice_name)

    def apply(self, entry: Entry) -> None:
        """Look at what an event is about, if it is about work."""
        ice_name, action = entry.event.ice_name, entry.event.action
        if ice_name is None or action not in _ABOUT_WORK:
            return
        if action == AuditAction.REQUEST_OPERATION:
            self._mark(ice_name)  # nobody waits for it who has not read it
        else:
            self._waiters.wake(ice_name)
            self._look(ice_name)

    def _mark(self, ice_name: str) -> None:
        self._busy.add(ice_name)
        self._look(ice_name)

    def _look(self, ice_name: str) -> None:
        lane = self._lanes.get(ice_name)
        if lane is not None:
            lane.wake.set()
            return
        session = self._hub.get(ice_name)
        if session is not None and ice_name in self._busy and not self._closed:
            lane = self._lanes[ice_name] = Lane(session)
            lane.task = asyncio.create_task(self._run(lane), name=f"lane of {ice_name}")

    def ended(self, operation: Operation) -> None:
        """An operation was ended by whoever looks after the deadlines."""
        self._notify(operation)
        self._look(operation.ice_name)

    # --- what sessions tell --------------------------------------------------------------------------

    def opened(self, session: Session) -> None:
        """A session began."""
        self._look(session.ice_name)

    def greeted(self, session: Session) -> None:
        """A session said hello; what it works on in vain it is told to stop."""
        self._look(session.ice_name)
        if session.running:
            self._begin(self._compare(session))

    def closed(self, session: Session) -> None:
        """A session ended."""
        self._look(session.ice_name)

    def answered(self, session: Session, operation_id: str, refused: bytes | None) -> None:
        """The ICE has accepted what it was sent, or `refused` it, which is JSON."""
        lane = self._lane_of(session)
        if lane is None or lane.unanswered != operation_id:
            return  # an answer that nobody waits for
        lane.unanswered = None
        if refused is None:
            self._begin(self._accept_soon(session, operation_id))
        else:
            self._begin(self._answer(session, operation_id, Move.FAIL, refused))

    def progressed(self, session: Session, progress: protocol.Progress) -> None:
        """How far the ICE is with what it was sent; other news is ignored."""
        lane = self._lane_of(session)
        if lane is not None and lane.sent == progress.id:
            self._progress.note(session.ice_name, progress)

    def finished(self, session: Session, request: protocol.RequestId, finish: FinishReport) -> None:
        """What an operation came to; answered once that is durable."""
        if self._in_hand[session.id] >= MAX_IN_HAND:
            session.close(1008, "too-many-requests")
            return
        self._in_hand[session.id] += 1
        self._begin(self._finish(session, request, finish))

    def _lane_of(self, session: Session) -> Lane | None:
        lane = self._lanes.get(session.ice_name)
        return lane if lane is not None and lane.session is session else None

    # --- a lane ----------------------------------------------------------------------------------------

    async def _run(self, lane: Lane) -> None:
        """Do one thing after the other for as long as there is work and its session lives."""
        name = lane.session.ice_name
        try:
            while self._hub.get(name) is lane.session and not self._closed:
                lane.wake.clear()
                try:
                    pause = await self._step(lane)
                except StoreUnavailable:
                    pause = _RETRY
                except Exception:  # noqa: BLE001 - the work of one ICE is no reason for the gateway to die
                    _log.exception("a lane has stumbled", ice=name)
                    pause = _LONGEST
                if pause is None and not lane.wake.is_set():
                    self._busy.discard(name)
                    return
                with contextlib.suppress(TimeoutError):
                    # Not longer: the clock may be set meanwhile.
                    async with asyncio.timeout(min(pause or 0, _LONGEST)):
                        await lane.wake.wait()
        finally:
            del self._lanes[name]
            if not self._closed and self._hub.get(name) is not lane.session:
                self._look(name)  # a newer session has come meanwhile

    async def _step(self, lane: Lane) -> float | None:
        """Look, do the next thing, and say for how many seconds to wait; None where nothing is left."""
        session = lane.session
        async with self._reads:
            work = await self._rows.first(session.ice_name)
        if lane.sent is not None and not (work and work.id == lane.sent and work.state in ACTIVE):
            # It has ended, and not by this session's word.
            await self._stop(lane, lane.sent)
        if work is None:
            return None
        now = self._clock()
        if work.deadline <= now:
            await self._move(work, work.overdue_move(), error=TOO_LATE)
            return 0
        left = (work.deadline - now).total_seconds()
        if work.state is not State.QUEUED:
            return min(left, await self._reconcile(lane, work))
        if not work.is_due(now):
            return min(left, ((work.run_at or now) - now).total_seconds())
        if lane.ending is not None and _now() < lane.ending_until:
            return min(left, lane.ending_until - _now())
        return await self._send(lane, work)

    async def _send(self, lane: Lane, work: Operation) -> float:
        """Mark as sent, durably, then send: what dies in between is lost, but never sent twice."""
        session, now = lane.session, self._clock()
        ice_type = session.ice.ice_type
        if not allows(ice_type, work.kind):
            error = reason(
                OperationError.KIND_NOT_ALLOWED, f"a {ice_type} ICE is not sent {work.kind}"
            )
            await self._move(work, Move.CANCEL, error=error)
            return 0

        async def unit(transaction: Transaction) -> Operation | None:
            new = work.moved(Move.SEND, now)
            sent = new is not None and await operations.send(transaction, new, session.generation)
            return new if sent else None

        lane.sending = work.id
        new = await self._engine.write(unit)
        if new is None:
            lane.sending = None
            return _RETRY  # it was cancelled, or the session is about to be dropped
        self._notify(new)
        if self._hub.get(session.ice_name) is not session or self._closed:
            await self._move(new, Move.RECALL)
        else:
            session.run(new.id, new.kind, new.params, to_text(new.deadline))
            lane.take(work.id)
        lane.sending = None
        return 0

    async def _reconcile(self, lane: Lane, work: Operation) -> float:
        """The ICE works on it, or did: how long to wait until something has to be done."""
        session = lane.session
        if lane.sending == work.id:
            # Whether it was marked could not be said at the time. It was, and it was not sent.
            lane.sending = None
            await self._move(work, Move.RECALL)
            return 0
        if work.id in session.running:
            lane.take(work.id)
            if work.state is State.SENT:
                await self._move(work, Move.ACCEPT)
        if lane.sent == work.id:
            return _LONGEST
        since = session.greeted or session.opened
        left = since + FINISH_GRACE.total_seconds() - _now()
        if left <= 0:
            await self._move(work, Move.LOSE, error=reason(OperationError.LOST))
            return 0
        return left

    async def _stop(self, lane: Lane, operation_id: str) -> None:
        async with self._reads:
            standing = await self._rows.standing(lane.session.ice_name, [operation_id])
        if lane.sent != operation_id:
            return  # its finish has been taken in meanwhile
        lane.sent = None
        why = cancel_reason(*standing.get(operation_id, (None, None)))
        if why is not None:
            lane.session.cancel(operation_id, why)
            lane.ending, lane.ending_until = operation_id, _now() + GRACE

    async def _move(self, work: Operation, move: Move, error: bytes | None = None) -> None:
        """Make one move, unless somebody else was quicker."""
        new = work.moved(move, self._clock(), error=error)
        if new is not None and await self._engine.write(
            lambda transaction: operations.replace(transaction, work, new)
        ):
            self._notify(new)

    def _notify(self, new: Operation) -> None:
        """Tell whoever waits for it."""
        self._waiters.wake(new.ice_name, new.id, finished=new.is_finished)
        if new.is_finished:
            self._progress.forget(new.id)

    # --- what an ICE says --------------------------------------------------------------------------------

    async def _accept_soon(self, session: Session, operation_id: str) -> None:
        """Write that it runs, unless it has finished by then: its finish would wait for this commit."""
        await asyncio.sleep(_SOON)
        lane = self._lane_of(session)
        if lane is not None and lane.sent == operation_id:
            await self._answer(session, operation_id, Move.ACCEPT, None)

    async def _answer(
        self, session: Session, operation_id: str, move: Move, refused: bytes | None
    ) -> None:
        async def unit(transaction: Transaction) -> Operation | None:
            old = await Operations(transaction.fetch).find(operation_id)
            new = None if old is None else old.moved(move, self._clock(), error=refused)
            if old is None or new is None or not await operations.replace(transaction, old, new):
                return None
            if new.is_finished:
                await operations.trim(transaction, new, self._kept_bytes)
            return new

        new = await self._patiently(session, unit)
        if new is not None:
            self._notify(new)
            if new.is_finished:
                self._release(session, operation_id)

    async def _finish(
        self, session: Session, request: protocol.RequestId, finish: FinishReport
    ) -> None:
        move = Move.SUCCEED if finish.outcome == "succeeded" else Move.FAIL

        async def unit(transaction: Transaction) -> Operation | str | None:
            old = await Operations(transaction.fetch).find(finish.id)
            if old is None or old.ice_name != session.ice_name or old.sent is None:
                return "unknown-operation"
            if move is Move.FAIL and was_stopped(old, finish.error):
                return "already-finished"
            new = old.moved(move, self._clock(), result=finish.result, error=finish.error)
            if new is None:
                # An ICE repeats a finish whose answer it has not seen: the first one counts.
                repeated = old.state in (State.SUCCEEDED, State.FAILED)
                return None if repeated else "already-finished"
            await self._progress.write(transaction, finish.id)
            if not await operations.replace(transaction, old, new):
                return "already-finished"  # another node has just ended it
            await operations.trim(transaction, new, self._kept_bytes)
            return new

        try:
            outcome = await self._patiently(session, unit)
        except StoreUnavailable:
            return  # its session has ended: it says so again
        finally:
            self._in_hand[session.id] -= 1
            if not self._in_hand[session.id]:
                del self._in_hand[session.id]
        self._release(session, finish.id)
        if isinstance(outcome, Operation):
            self._notify(outcome)
        if finish.refusal is not None:
            session.answer(request, *finish.refusal)
        else:
            session.answer(request, outcome if isinstance(outcome, str) else None)

    async def _patiently(self, session: Session, unit: Unit[T]) -> T:
        """Write as soon as the store is there, for as long as the session lives."""
        while True:
            try:
                return await self._engine.write(unit)
            except StoreUnavailable:
                if self._closed or self._hub.get(session.ice_name) is not session:
                    raise
            await asyncio.sleep(_RETRY)

    def _release(self, session: Session, operation_id: str) -> None:
        """The ICE does not work on it any more: it can be sent the next."""
        lane = self._lane_of(session)
        if lane is not None:
            if lane.sent == operation_id:
                lane.sent = None
            if lane.ending == operation_id:
                lane.ending = None
            lane.wake.set()

    async def _compare(self, session: Session) -> None:
        """Let the ICE stop what it says it works on, and what nobody waits for."""
        async with self._reads:
            if self._hub.get(session.ice_name) is not session:
                return
            standing = await self._rows.standing(session.ice_name, session.running)
        for operation_id in sorted(session.running):
            why = cancel_reason(*standing.get(operation_id, (None, None)))
            if why is not None:
                session.cancel(operation_id, why)

    # --- its own tasks --------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StoreUnavailable):
            _log.error("what an ICE said was not taken in", error=repr(error))

    async def close(self) -> None:
        """Finish what was begun; nothing is sent any more."""
        self._closed = True
        for lane in self._lanes.values():
            lane.wake.set()
        pending = {*self._tasks, *(lane.task for lane in self._lanes.values())}
        if pending:
            await asyncio.wait(pending)


def _now() -> float:
    return asyncio.get_running_loop().time()
