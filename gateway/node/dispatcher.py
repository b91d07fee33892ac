"""Sends operations to connected ICEs: to each ICE one at a time, in order, and each at most once.

A connected ICE with unfinished operations has a *lane*: a task that reads the table, does the next step and
waits. The state is in the table, so a new lane can continue where an earlier one died. The event log
announces new operations. Source: docs/protocol.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Final

import structlog

from client import protocol
from gateway.core.audit_event import AuditAction, LogEntry
from gateway.core.ice import RULES
from gateway.core.operation import (
    ACTIVE,
    FINISH_GRACE,
    Move,
    Operation,
    OperationError,
    State,
    allows,
    cancel_reason,
    reason,
)
from gateway.core.times import Clock, to_text
from gateway.node.expiry import DEADLINE_ERROR
from gateway.node.hub import Hub
from gateway.node.lane import Lane, worker_of
from gateway.node.operation_logs import OperationLogWriter
from gateway.node.operation_meters import OperationMeters
from gateway.node.operation_reports import OperationReports
from gateway.node.operation_waiters import OperationWaiters
from gateway.node.pool_claimers import PoolClaimers
from gateway.node.presence import ConnectionChange, News
from gateway.node.progress import ProgressWriter
from gateway.node.session import FinishReport, Session
from gateway.runtime.eventloop import wait_at_most
from gateway.store import operations, work_queue
from gateway.store.engine import Engine, StoreUnavailable, Transaction
from gateway.store.operations import Operations
from gateway.store.work_queue import Next, Worker

CANCEL_GRACE: Final = 5.0
"""Seconds that an ICE has to finish a cancelled operation before it gets the next one."""
MAX_READS: Final = 2
"""Concurrent reads for all ICEs: one runs while the loop handles the result of the other.

The engine serves reads in order, so an admin's read waits for at most this many."""
_RETRY: Final = 0.5
_ACCEPT_DELAY: Final = 0.02
_MAX_WAIT: Final = 30.0
_ENDING: Final = frozenset(action.value for action, rule in RULES.items() if rule.closes)
"""Actions that end what an ICE has to do."""
_OPENING: Final = frozenset(
    {
        AuditAction.PAUSE,
        AuditAction.RESUME,
        AuditAction.LABEL,
        AuditAction.CREATE_POOL,
        AuditAction.CHANGE_POOL,
    }
)
"""Actions after which an ICE may get operations that it could not get before, or the reverse."""

_log = structlog.get_logger()


class Dispatcher:
    """The lanes of this node. The operations of an ICE or a pool may hold `kept_bytes` in the table."""

    def __init__(
        self,
        *,
        engine: Engine,
        node: str,
        hub: Hub[Session],
        waiters: OperationWaiters,
        progress: ProgressWriter,
        logs: OperationLogWriter,
        meters: OperationMeters,
        clock: Clock,
        kept_bytes: int,
        finish_grace: timedelta = FINISH_GRACE,
        cancel_grace: float = CANCEL_GRACE,
    ) -> None:
        self._engine = engine
        self._operations = Operations(engine.fetch)
        self._reads = asyncio.Semaphore(MAX_READS)
        self._hub = hub
        self._waiters, self._meters = waiters, meters
        self._clock = clock
        self._finish_grace = finish_grace.total_seconds()
        self._cancel_grace = cancel_grace
        self._busy: set[str] = set()
        """The ICEs that may have unfinished operations; the table is not read for others."""
        self._lanes: dict[str, Lane] = {}
        self._pools = PoolClaimers(
            engine,
            reads=self._reads,
            node=node,
            clock=clock,
            offer=self._offer,
            works=self._mark_busy,
        )
        self.reports = OperationReports(
            self,
            engine=engine,
            reads=self._reads,
            hub=hub,
            progress=progress,
            logs=logs,
            clock=clock,
            kept_bytes=kept_bytes,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        """See `operation_reports.Lanes`."""

    # --- called for events of the log ----------------------------------------------------------------

    async def refresh(self) -> None:
        """Read which ICEs have unfinished operations, after the start or an interruption of the log."""
        for ice_name in await self._operations.busy():
            self._mark_busy(ice_name)
            self._waiters.wake_ice(ice_name)
        await self._pools.refresh()

    def apply(self, entry: LogEntry) -> None:
        """Wake the lane, the claimers and the waiters that the event concerns."""
        ice_name, action, detail = entry.event.ice_name, entry.event.action, entry.event.detail
        if action == AuditAction.REQUEST_OPERATION:
            # No waiter needs it: they start after reading the row.
            if ice_name is not None:
                self._mark_busy(ice_name)
            elif (pool := detail.get("pool")) is not None:
                self._pools.requested(pool)
        elif action == AuditAction.CANCEL_OPERATION:
            self._waiters.wake(detail["operation"])
            if ice_name is not None:
                self.wake(ice_name)
        elif action in _ENDING and ice_name is not None:
            self._waiters.wake_ice(ice_name)
            self.wake(ice_name)
        elif action in _OPENING:
            if ice_name is not None:
                self.wake(ice_name)
            self._pools.changed()

    def _mark_busy(self, ice_name: str) -> None:
        self._busy.add(ice_name)
        self.wake(ice_name)

    def wake(self, ice_name: str) -> None:
        """Let the lane of an ICE take its next step, for example after a session began or ended."""
        lane = self._lanes.get(ice_name)
        if lane is not None:
            lane.wake.set()
            return
        if ice_name in self._busy:
            self._start_lane(ice_name)

    def _start_lane(self, ice_name: str) -> None:
        session = self._hub.get(ice_name)
        if session is not None and not self.closed:
            lane = self._lanes[ice_name] = Lane(session)
            lane.task = asyncio.create_task(self._run(lane), name=f"lane of {ice_name}")

    def _offer(self, ice_name: str) -> None:
        """Let the lane of an ICE look for an operation of its pools."""
        lane = self._lanes.get(ice_name)
        if lane is None:
            self._start_lane(ice_name)
        else:
            lane.wake.set()

    def heard(self, news: News) -> None:
        """A session was written to the table, where claimers look for it."""
        if isinstance(news, ConnectionChange) and news.connection is not None:
            self._pools.changed()
            self._pools.arrived(news.ice_name, news.connection.node)

    def expired(self, operation: Operation) -> None:
        """`OperationExpiry` has ended an operation."""
        self.notify(operation)
        if operation.ice_name is not None:
            self.wake(operation.ice_name)

    # --- called by sessions --------------------------------------------------------------------------

    def greeted(self, session: Session) -> None:
        """A session said hello; cancel the operations in it whose result is no longer wanted."""
        self.wake(session.ice_name)
        if session.running:
            self._spawn(self.reports.cancel_stale(session))

    def accepts_changed(self, session: Session) -> None:
        """The ICE said anew what others may send it."""
        self.wake(session.ice_name)
        self._pools.changed()

    def answered(self, session: Session, operation_id: str, refused: bytes | None) -> None:
        """The ICE accepted an operation, or refused it with the JSON in `refused`."""
        lane = self._lane_of(session)
        if lane is None or lane.unanswered != operation_id:
            return  # no request waits for this answer
        lane.unanswered = None
        if refused is None:
            self._spawn(self._accept_later(session, operation_id))
        else:
            self._spawn(self.reports.refused(session, operation_id, refused))

    def finished(self, session: Session, request: protocol.RequestId, finish: FinishReport) -> None:
        """The ICE finished an operation; it gets an answer once that is durable."""
        if self.reports.may_finish(session, finish.id):
            self._spawn(self.reports.finished(session, request, finish))

    def _lane_of(self, session: Session) -> Lane | None:
        lane = self._lanes.get(session.ice_name)
        return lane if lane is not None and lane.session is session else None

    def works_on(self, session: Session, operation_id: str) -> bool:
        """See `operation_reports.Lanes`."""
        lane = self._lane_of(session)
        return lane is not None and lane.sent == operation_id

    # --- a lane ----------------------------------------------------------------------------------------

    async def _run(self, lane: Lane) -> None:
        """Do one step after another while the ICE has operations and its session is open."""
        name = lane.session.ice_name
        try:
            while self._hub.get(name) is lane.session and not self.closed:
                lane.wake.clear()
                try:
                    pause = await self._step(lane)
                except StoreUnavailable:
                    pause = _RETRY
                except Exception:  # noqa: BLE001 - one ICE must not stop the gateway
                    _log.exception("operation step failed", ice=name)
                    pause = _MAX_WAIT
                if pause is None and not lane.wake.is_set():
                    self._busy.discard(name)
                    return
                # Bounded, since the clock may be set meanwhile.
                await wait_at_most(lane.wake, min(pause or 0, _MAX_WAIT))
        finally:
            del self._lanes[name]
            if not self.closed and self._hub.get(name) is not lane.session:
                self.wake(name)  # there is a newer session

    async def _step(self, lane: Lane) -> float | None:
        """Do the next step; returns the seconds until another, or None if no operation is left."""
        now = self._clock()
        async with self._reads:
            worker, undecided = await worker_of(lane.session, self._engine.fetch)
            found = await work_queue.find_next(self._engine.fetch, worker, now)
        work = found.operation
        if lane.sent is not None and not (work and work.id == lane.sent and work.state in ACTIVE):
            # It ended without a finish from this session: for example, it expired or was cancelled.
            await self._cancel_sent(lane, lane.sent)
        if work is None:
            return (
                await self._begin(lane, worker, found, undecided) if self._pools.any_waits else None
            )
        if work.deadline <= now:
            await self._move(work, work.overdue_move(), error=DEADLINE_ERROR)
            return 0
        left = (work.deadline - now).total_seconds()
        if work.state is State.QUEUED:
            pause = await self._begin(lane, worker, found, undecided)
        else:
            pause = await self._reconcile(lane, work)
        return left if pause is None else min(left, pause)

    async def _begin(
        self, lane: Lane, worker: Worker, found: Next, undecided: float | None
    ) -> float | None:
        """Send the next operation, its own or one of a pool; returns as `_step`."""
        work, now = found.operation, self._clock()
        if lane.cancelling is not None and lane.cancel_until > _loop_time():
            return lane.cancel_until - _loop_time()
        if found.paused:
            until = found.paused_until
            return None if until is None else (until - now).total_seconds()
        if work is not None and work.is_due(now) and worker.accepts(work):
            return await self._send(lane, work, worker)
        if await self._claim(lane, worker):
            return 0
        if work is None or work.is_due(now):
            return undecided
        return ((work.run_at or now) - now).total_seconds()

    async def _claim(self, lane: Lane, worker: Worker) -> bool:
        """Take the oldest operation of the ICE's pools that it may run, and send it; False if there is none."""
        now = self._clock()
        if not self._pools.any_waits:
            return False
        async with self._reads:
            if await work_queue.oldest(self._engine.fetch, worker, now) is None:
                return False

        async def unit(transaction: Transaction) -> Operation | None:
            new = await work_queue.claim(transaction, worker, now)
            lane.sending = None if new is None else new.id
            return new

        new = await self._engine.write(unit)
        if new is None:
            return False
        self._busy.add(worker.ice_name)
        await self._deliver(lane, new)
        return True

    async def _send(self, lane: Lane, work: Operation, worker: Worker) -> float:
        """Mark as sent durably, then send: a crash in between loses the operation but never repeats it."""
        now, ice_type = self._clock(), worker.ice_type
        if not allows(ice_type, work.kind):
            error = reason(
                OperationError.KIND_NOT_ALLOWED, f"a {ice_type} ICE does not accept {work.kind}"
            )
            await self._move(work, Move.CANCEL, error=error)
            return 0

        async def unit(transaction: Transaction) -> Operation | None:
            new = work.moved(Move.SEND, now)
            sent = new is not None and await work_queue.send(transaction, new, worker, now)
            return new if sent else None

        lane.sending = work.id
        new = await self._engine.write(unit)
        if new is None:
            lane.sending = None
            return _RETRY  # it was cancelled, or an event is about to drop the session
        await self._deliver(lane, new)
        # The finish, or an event, wakes the lane before.
        return _MAX_WAIT if lane.sent == new.id else 0

    async def _deliver(self, lane: Lane, new: Operation) -> None:
        """Send an operation that is marked as sent, or take it back if the session has ended."""
        session = lane.session
        self.notify(new)
        if self._hub.get(session.ice_name) is not session or self.closed:
            await self._move(new, Move.RECALL)
        else:
            session.run(new.id, new.kind, new.params, to_text(new.deadline))
            lane.start(new.id)
            self._meters.sent_operation(new)
        lane.sending = None

    async def _reconcile(self, lane: Lane, work: Operation) -> float:
        """Compare a sent operation with what the ICE knows; returns the seconds until the next step."""
        session = lane.session
        if lane.sending == work.id:
            # The commit in `_send` succeeded although it seemed to fail, so nothing was sent.
            lane.sending = None
            await self._move(work, Move.RECALL)
            return 0
        if work.id in session.running:
            lane.start(work.id)
            if work.state is State.SENT:
                await self._move(work, Move.ACCEPT)
        if lane.sent == work.id:
            return _MAX_WAIT
        since = session.greeted or session.opened
        left = since + self._finish_grace - _loop_time()
        if left <= 0:
            await self._move(work, Move.LOSE, error=reason(OperationError.LOST))
            return 0
        return left

    async def _cancel_sent(self, lane: Lane, operation_id: str) -> None:
        async with self._reads:
            standing = await self._operations.standing(lane.session.ice_name, [operation_id])
        if lane.sent != operation_id:
            return  # its finish arrived meanwhile
        lane.sent = None
        why = cancel_reason(*standing.get(operation_id, (None, None)))
        if why is not None:
            lane.session.cancel(operation_id, why)
            lane.cancelling, lane.cancel_until = operation_id, _loop_time() + self._cancel_grace

    async def _move(self, work: Operation, move: Move, error: bytes | None = None) -> None:
        """Make one move, unless the operation has changed since it was read."""
        new = work.moved(move, self._clock(), error=error)
        if new is not None and await self._engine.write(
            lambda transaction: operations.replace(transaction, work, new)
        ):
            self.notify(new)

    # --- called by `OperationReports` --------------------------------------------------------------------

    def notify(self, new: Operation) -> None:
        """Wake the waiters of an operation that has changed, and the claimer of one that waits again."""
        self._waiters.wake(new.id, finished=new.is_finished)
        if new.is_finished:
            self._meters.ended_operation(new)
            self.reports.forget(new.id)
        elif new.pool is not None and new.state is State.QUEUED:
            self._pools.requested(new.pool)

    async def _accept_later(self, session: Session, operation_id: str) -> None:
        """Record that it runs; a quick operation finishes before, and needs no such commit."""
        await asyncio.sleep(_ACCEPT_DELAY)
        if self.works_on(session, operation_id):
            await self.reports.accepted(session, operation_id)

    def release(self, session: Session, operation_id: str) -> None:
        """The ICE no longer works on this operation, so it can get the next one."""
        lane = self._lane_of(session)
        if lane is not None:
            if lane.sent == operation_id:
                lane.sent = None
            if lane.cancelling == operation_id:
                lane.cancelling = None
            lane.wake.set()

    # --- tasks ----------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StoreUnavailable):
            _log.error("message of an ICE not processed", error=repr(error))

    async def close(self) -> None:
        """Send nothing more, and wait until pending writes are done."""
        self.closed = True
        await self._pools.close()
        for lane in self._lanes.values():
            lane.wake.set()
        pending = {*self._tasks, *(lane.task for lane in self._lanes.values())}
        if pending:
            await asyncio.wait(pending)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
