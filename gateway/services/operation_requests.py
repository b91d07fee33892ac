"""Requests and cancels operations of an ICE, each in one transaction.

A request adds a row, whether or not the ICE is connected; `node.dispatcher` sends it when it can. A
refusal is a `Problem` of the catalogue. `core.roles` says who may request what.

Tested in tests/gateway/admin/api/test_operations.py.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from client.protocol import OperationKind
from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import OPERATIONS, Ice, Status
from gateway.core.operation import Move, NotValid, Operation, OperationError, State, allows, reason
from gateway.core.problems import Problem, invalid, problem
from gateway.core.times import Clock
from gateway.store import events, ices, operations
from gateway.store.engine import Engine, Transaction
from gateway.store.operations import Operations

MAX_UNFINISHED: Final = 1000
"""Unfinished operations that an ICE may have."""
NO_OPERATION: Final = problem("not-found", "There is no such operation.")


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """An operation as a caller asks for it; `params` is JSON, times are aware."""

    kind: OperationKind
    params: bytes
    run_at: datetime | None = None
    deadline: datetime | None = None
    idempotency_key: str | None = None


class OperationService:
    """Requests, cancels and finds operations.

    For each ICE the table keeps `kept_bytes` of the params, progress and results of its operations.
    """

    def __init__(self, *, engine: Engine, clock: Clock, kept_bytes: int) -> None:
        self._engine = engine
        self._clock = clock
        self._kept_bytes = kept_bytes
        self._operations = Operations(engine.fetch)

    async def prepare(
        self, actor: Actor, ice_name: str, request: OperationRequest
    ) -> Operation | Problem:
        """Validate a request without its ICE; returns the operation to `queue`.

        A request whose times have passed since returns the operation that has its idempotency key.
        """
        try:
            return Operation.request(
                secrets.token_hex(12),
                ice_name,
                request.kind,
                request.params,
                requested_by=actor.name,
                now=self._clock(),
                run_at=request.run_at,
                deadline=request.deadline,
                idempotency_key=request.idempotency_key,
            )
        except NotValid as fault:
            refused = invalid(fault.field, str(fault))
        key = request.idempotency_key
        if key is None:
            return refused
        return await self._operations.find_by_key(ice_name, actor.name, key) or refused

    async def request(
        self, actor: Actor, ice: Ice, request: OperationRequest
    ) -> Operation | Problem:
        """Queue an operation; a repeated idempotency key of the same user returns the first operation."""
        new = await self.prepare(actor, ice.ice_name, request)
        return new if isinstance(new, Problem) else await self.queue(actor, ice, new)

    async def queue(self, actor: Actor, ice: Ice, checked: Operation) -> Operation | Problem:
        """Queue an operation that `prepare` has validated, for this ICE."""
        new = replace(checked, ice_name=ice.ice_name)

        async def unit(transaction: Transaction) -> Operation | Problem:
            rows = Operations(transaction.fetch)
            if new.idempotency_key is not None:
                known = await rows.find_by_key(new.ice_name, actor.name, new.idempotency_key)
                if known is not None:
                    return known
            # Read in this transaction, so that a concurrent deregistration also cancels this operation.
            [now] = (await ices.find_many(transaction, [ice.ice_name])).values()
            refused = _refusal(now, new.kind)
            if refused is not None:
                return refused
            full = _queue_full(
                *await rows.unfinished(new.ice_name), len(new.params), self._kept_bytes
            )
            if full is not None:
                return full
            await operations.insert(transaction, new)
            await operations.trim(transaction, new, self._kept_bytes)
            events.append(
                transaction, [_event(actor, AuditAction.REQUEST_OPERATION, now, new, None)]
            )
            return new

        return await self._engine.write(unit)

    async def cancel(self, actor: Actor, operation_id: str) -> Operation | Problem:
        """End an operation at once; the gateway sends a cancellation to an ICE that works on it."""
        now = self._clock()
        error = reason(OperationError.CANCELLED, f"cancelled by {actor.name}")

        async def unit(transaction: Transaction) -> Operation | Problem:
            old = await Operations(transaction.fetch).find(operation_id)
            if old is None:
                return NO_OPERATION
            new = old.moved(Move.CANCEL, now, error=error)
            if new is None or not await operations.replace(transaction, old, new):
                return problem("already-finished", f"the operation has {_OUTCOMES[old.state]}")
            await operations.trim(transaction, old, self._kept_bytes)
            ice = None
            if old.ice_name is not None:
                [ice] = (await ices.find_many(transaction, [old.ice_name])).values()
            events.append(
                transaction, [_event(actor, AuditAction.CANCEL_OPERATION, ice, new, old.state)]
            )
            return new

        return await self._engine.write(unit)


_OUTCOMES: Final = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "been cancelled",
    State.EXPIRED: "expired",
    State.LOST: "been lost",
}


def _refusal(ice: Ice, kind: OperationKind) -> Problem | None:
    """Why an ICE does not get operations of this kind now; None if it does."""
    if not allows(ice.ice_type, kind):
        allowed = " and ".join(OPERATIONS[ice.ice_type])
        return problem("kind-not-allowed", f"a {ice.ice_type} ICE accepts only {allowed}")
    if ice.status is not Status.REGISTERED:
        return problem(
            "wrong-status", f"{ice.ice_name} is {ice.status}: only a registered ICE gets operations"
        )
    return None


def _queue_full(count: int, size: int, more: int, kept_bytes: int) -> Problem | None:
    """Why an operation of `more` bytes does not fit behind `count` unfinished ones of `size` bytes."""
    if count >= MAX_UNFINISHED:
        return problem(
            "queue-full", f"{MAX_UNFINISHED:,} operations of this ICE are unfinished: {_ADVICE}"
        )
    if size + more <= kept_bytes:
        return None
    return problem(
        "queue-full",
        f"The unfinished operations of this ICE have {size:,} bytes of parameters and this one has {more:,},"
        f" of {kept_bytes:,} (operations.kept_bytes) in total: {_ADVICE}, or send less",
    )


_ADVICE: Final = "wait until some have finished, or cancel some"


def _event(
    actor: Actor, action: str, ice: Ice | None, operation: Operation, before: State | None
) -> Event:
    detail: dict[str, object] = {
        "operation": operation.id,
        "kind": operation.kind,
        "state_before": before,
    }
    if operation.pool is not None:
        detail["pool"] = operation.pool
    at = operation.finished or operation.created
    if ice is None:
        return Event.of(at, actor, action, **detail)
    detail["generation_before"] = ice.generation
    return Event(at, actor, action, ice.ice_name, ice.generation, detail)
