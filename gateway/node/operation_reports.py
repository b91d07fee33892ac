"""Records what ICEs report of their operations: accepted, refused, progress, output, finished.

Tested in tests/gateway/node/test_dispatcher.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final, Protocol

from client import protocol
from client.protocol import CloseCode
from gateway.core.operation import Move, Operation, State, cancel_reason, was_stopped
from gateway.core.times import Clock
from gateway.node.hub import Hub
from gateway.node.operation_logs import OperationLogWriter
from gateway.node.progress import ProgressWriter
from gateway.node.session import FinishReport, Session
from gateway.store import operations
from gateway.store.engine import Engine, StoreUnavailable, T, Transaction, Unit
from gateway.store.operations import Operations

MAX_PENDING_FINISHES: Final = 8
"""Finish messages of one session that may wait for the store."""
_RETRY: Final = 0.5


class Lanes(Protocol):
    """What the dispatcher does with a report."""

    @property
    def closed(self) -> bool:
        """Whether the gateway is stopping."""

    def works_on(self, session: Session, operation_id: str) -> bool:
        """Whether the ICE works on this operation in this session."""

    def notify(self, new: Operation) -> None:
        """Wake the waiters of an operation that has changed."""

    def release(self, session: Session, operation_id: str) -> None:
        """The ICE no longer works on this operation, so it can get the next one."""


class OperationReports:
    """Writes reports of ICEs to the table. The operations of an ICE or a pool may hold `kept_bytes` there."""

    def __init__(
        self,
        lanes: Lanes,
        *,
        engine: Engine,
        reads: asyncio.Semaphore,
        hub: Hub[Session],
        progress: ProgressWriter,
        logs: OperationLogWriter,
        clock: Clock,
        kept_bytes: int,
    ) -> None:
        self._lanes = lanes
        self._engine = engine
        self._operations = Operations(engine.fetch)
        self._reads = reads
        self._hub = hub
        self._progress = progress
        self._logs = logs
        self._clock = clock
        self._kept_bytes = kept_bytes
        self._pending_finishes: Counter[str] = Counter()

    async def cancel_stale(self, session: Session) -> None:
        """Cancel the operations that the ICE named in its hello and whose result is no longer wanted."""
        async with self._reads:
            if self._hub.get(session.ice_name) is not session:
                return
            standing = await self._operations.standing(session.ice_name, session.running)
        for operation_id in sorted(session.running):
            why = cancel_reason(*standing.get(operation_id, (None, None)))
            if why is not None:
                session.cancel(operation_id, why)

    def progressed(self, session: Session, progress: protocol.Progress) -> None:
        """The ICE reported progress; it is ignored unless the ICE works on this operation."""
        if self._lanes.works_on(session, progress.id):
            self._progress.note(progress)

    def logged(self, session: Session, log: protocol.Log) -> None:
        """The ICE logged a text; it is ignored unless the ICE works on this operation."""
        if self._lanes.works_on(session, log.id):
            self._logs.note(log.id, log.text)

    def forget(self, operation_id: str) -> None:
        """An operation has ended, so that nothing of it waits to be written."""
        self._progress.forget(operation_id)
        self._logs.forget(operation_id)

    def may_finish(self, session: Session, operation_id: str) -> bool:
        """Whether another finish of the session may wait; the caller then calls `finished`."""
        if self._pending_finishes[session.id] >= MAX_PENDING_FINISHES:
            session.close(CloseCode.POLICY_VIOLATION, "too-many-requests")
            return False
        self._pending_finishes[session.id] += 1
        if self._lanes.works_on(session, operation_id):
            self._logs.close(operation_id)
        return True

    async def accepted(self, session: Session, operation_id: str) -> None:
        """The ICE accepted an operation."""
        await self._record_answer(session, operation_id, None)

    async def refused(self, session: Session, operation_id: str, error: bytes) -> None:
        """The ICE refused an operation before it began; one of a pool waits again for another ICE."""
        new = await self._record_answer(session, operation_id, error)
        if new is not None:
            self._lanes.release(session, operation_id)

    async def _record_answer(
        self, session: Session, operation_id: str, error: bytes | None
    ) -> Operation | None:
        now = self._clock()

        async def unit(transaction: Transaction) -> Operation | None:
            old = await Operations(transaction.fetch).find(operation_id)
            if old is None or old.ice_name != session.ice_name:
                return None
            new = (
                old.moved(Move.ACCEPT, now)
                if error is None
                else old.declined(session.id, now, error)
            )
            if new is None or not await operations.replace(transaction, old, new):
                return None
            if new.is_finished:
                await operations.trim(transaction, new, self._kept_bytes)
            return new

        new = await self._write_retrying(session, unit)
        if new is not None:
            self._lanes.notify(new)
        return new

    async def finished(
        self, session: Session, request: protocol.RequestId, finish: FinishReport
    ) -> None:
        """The ICE finished an operation; it gets an answer once that is durable."""
        move = Move.SUCCEED if finish.outcome == "succeeded" else Move.FAIL
        log = await self._logs.take(finish.id)

        async def unit(transaction: Transaction) -> Operation | protocol.RpcRefusal | None:
            old = await Operations(transaction.fetch).find(finish.id)
            if old is None or old.ice_name != session.ice_name or old.sent is None:
                return protocol.RpcRefusal.UNKNOWN_OPERATION
            if move is Move.FAIL and was_stopped(old, finish.error):
                return protocol.RpcRefusal.ALREADY_FINISHED
            new = old.moved(move, self._clock(), result=finish.result, error=finish.error)
            if new is None:
                # An ICE repeats a finish whose answer it did not get; the first one counts.
                repeated = old.state in (State.SUCCEEDED, State.FAILED)
                return None if repeated else protocol.RpcRefusal.ALREADY_FINISHED
            await self._progress.write(transaction, finish.id)
            await self._logs.write(transaction, finish.id, log)
            if not await operations.replace(transaction, old, new):
                return protocol.RpcRefusal.ALREADY_FINISHED  # another node has just ended it
            await operations.trim(transaction, new, self._kept_bytes)
            return new

        try:
            outcome = await self._write_retrying(session, unit)
        except StoreUnavailable:
            # The session has ended; the ICE repeats the finish in the next one, but not what it logged.
            self._logs.give_back(finish.id, log)
            return
        finally:
            self._logs.reopen(finish.id)
            self._pending_finishes[session.id] -= 1
            if not self._pending_finishes[session.id]:
                del self._pending_finishes[session.id]
        # The waiters read the result before the ICE's lane looks for more work.
        if isinstance(outcome, Operation):
            self._lanes.notify(outcome)
        self._lanes.release(session, finish.id)
        if finish.refusal is not None:
            session.answer(request, *finish.refusal)
        else:
            session.answer(request, outcome if isinstance(outcome, str) else None)

    async def _write_retrying(self, session: Session, unit: Unit[T]) -> T:
        """Retry a write until the store is available or the session has ended."""
        while True:
            try:
                return await self._engine.write(unit)
            except StoreUnavailable:
                if self._lanes.closed or self._hub.get(session.ice_name) is not session:
                    raise
            await asyncio.sleep(_RETRY)
