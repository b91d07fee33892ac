"""Requests and cancels operations of an ICE or a pool, each in one transaction.

A request adds a row, whether or not the ICE is connected; `node.dispatcher` sends it when it can. A
refusal is a `Problem` of the catalogue. `core.roles` says who may request what.

Tested in tests/gateway/admin/api/test_operations.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from client.protocol import OperationKind
from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import OPERATIONS, Ice, IceType, Status
from gateway.core.operation import Move, NotValid, Operation, OperationError, State, allows, reason
from gateway.core.pool import Pool
from gateway.core.problems import Problem, invalid, problem
from gateway.core.times import Clock
from gateway.services.pools import no_pool
from gateway.store import events, ices, operations, pools
from gateway.store.engine import Engine, Transaction
from gateway.store.operations import Operations
from gateway.store.pools import Pools

MAX_UNFINISHED: Final = 1000
"""Unfinished operations that an ICE or a pool may have."""
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

    For each ICE and each pool the table keeps `kept_bytes` of the params, progress, results and logs of its operations.
    `cancelled` is called with each operation that was cancelled.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        kept_bytes: int,
        cancelled: Callable[[Operation], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._kept_bytes = kept_bytes
        self._cancelled = cancelled
        self._operations = Operations(engine.fetch)

    async def prepare(
        self,
        actor: Actor,
        ice_name: str | None,
        request: OperationRequest,
        *,
        pool: str | None = None,
        token: str | None = None,
        own_keys: bool = False,
    ) -> Operation | Problem:
        """Validate a request without its ICE or pool; returns the operation to `queue` or `queue_in_pool`.

        A request whose times have passed since returns the operation that has its idempotency key. `token` is the
        API token of the caller. With `own_keys` the key counts for this token alone: a token of a pool does not see
        what its user requested otherwise.
        """
        key = request.idempotency_key
        if own_keys and key is not None:
            key = f"token:{token}:{key}"
        try:
            new = Operation.request(
                secrets.token_hex(12),
                ice_name,
                request.kind,
                request.params,
                requested_by=actor.name,
                now=self._clock(),
                run_at=request.run_at,
                deadline=request.deadline,
                idempotency_key=request.idempotency_key,
                pool=pool,
                token=token,
            )
            return replace(new, idempotency_key=key)
        except NotValid as fault:
            refused = invalid(fault.field, str(fault))
        if key is None:
            return refused
        return await self._operations.find_by_key(ice_name, actor.name, key, pool=pool) or refused

    async def request(
        self, actor: Actor, ice: Ice, request: OperationRequest
    ) -> Operation | Problem:
        """Queue an operation; a repeated idempotency key of the same user returns the first operation."""
        new = await self.prepare(actor, ice.ice_name, request)
        return new if isinstance(new, Problem) else await self.queue(actor, ice, new)

    async def request_of_pool(
        self, actor: Actor, pool: str, request: OperationRequest
    ) -> Operation | Problem:
        """Queue an operation for any ICE of the pool of this name, as `request` does for an ICE."""
        found = await Pools(self._engine.fetch).find(pool)
        if found is None:
            return no_pool(pool)
        new = await self.prepare(actor, None, request, pool=found.name)
        return new if isinstance(new, Problem) else await self.queue_in_pool(actor, found, new)

    async def queue(self, actor: Actor, ice: Ice, checked: Operation) -> Operation | Problem:
        """Queue an operation that `prepare` has validated, for this ICE."""
        new = replace(checked, ice_name=ice.ice_name)

        async def target(transaction: Transaction) -> Ice | Problem:
            # Read in this transaction, so that a concurrent deregistration also cancels this operation.
            [now] = (await ices.find_many(transaction, [ice.ice_name])).values()
            return refusal(now, new.kind) or now

        return await self._engine.write(
            lambda transaction: self._add(transaction, actor, new, target)
        )

    async def queue_in_pool(
        self, actor: Actor, pool: Pool, checked: Operation
    ) -> Operation | Problem:
        """Queue an operation that `prepare` has validated, for any ICE of this pool."""
        new = replace(checked, pool=pool.name)

        async def target(transaction: Transaction) -> Problem | None:
            # Locked, so that nobody deletes the pool meanwhile.
            now = await pools.find(transaction, pool.name)
            if now is None:
                return no_pool(pool.name)
            if now.ice_type is not None and not allows(now.ice_type, new.kind):
                return _kind_not_allowed(now.ice_type)
            return None

        return await self._engine.write(
            lambda transaction: self._add(transaction, actor, new, target)
        )

    async def _add(
        self,
        transaction: Transaction,
        actor: Actor,
        new: Operation,
        target: Callable[[Transaction], Awaitable[Ice | Problem | None]],
    ) -> Operation | Problem:
        """Store an operation if its target, whose row `target` locks, takes it; or find the one with its key."""
        rows = Operations(transaction.fetch)
        if new.idempotency_key is not None:
            known = await rows.find_by_key(
                new.ice_name, new.requested_by, new.idempotency_key, pool=new.pool
            )
            if known is not None:
                return known
        found = await target(transaction)
        if isinstance(found, Problem):
            return found
        full = await self.queue_full(transaction, new)
        if full is not None:
            return full
        await self.insert(transaction, actor, new, found)
        return new

    async def queue_full(self, transaction: Transaction, new: Operation) -> Problem | None:
        """Why an operation does not fit behind those of its target that are unfinished; None if it does."""
        return _queue_full(
            "ICE" if new.pool is None else "pool",
            *await Operations(transaction.fetch).unfinished(new.ice_name, pool=new.pool),
            len(new.params),
            self._kept_bytes,
        )

    async def insert(
        self, transaction: Transaction, actor: Actor, new: Operation, ice: Ice | None
    ) -> None:
        """Store an operation that its target takes, with its event; `ice` is None for one of a pool."""
        await operations.insert(transaction, new)
        await operations.trim(transaction, new, self._kept_bytes)
        events.append(transaction, [_event(actor, AuditAction.REQUEST_OPERATION, ice, new, None)])

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

        outcome = await self._engine.write(unit)
        if isinstance(outcome, Operation):
            self._cancelled(outcome)
        return outcome


_OUTCOMES: Final = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "been cancelled",
    State.EXPIRED: "expired",
    State.LOST: "been lost",
}


def refusal(ice: Ice, kind: OperationKind) -> Problem | None:
    """Why an ICE does not get operations of this kind now; None if it does."""
    if not allows(ice.ice_type, kind):
        return _kind_not_allowed(ice.ice_type)
    if ice.status is not Status.REGISTERED:
        return problem(
            "wrong-status", f"{ice.ice_name} is {ice.status}: only a registered ICE gets operations"
        )
    return None


def _kind_not_allowed(ice_type: IceType) -> Problem:
    allowed = " and ".join(OPERATIONS[ice_type])
    return problem("kind-not-allowed", f"a {ice_type} ICE accepts only {allowed}")


def _queue_full(what: str, count: int, size: int, more: int, kept_bytes: int) -> Problem | None:
    """Why an operation of `more` bytes does not fit behind `count` unfinished ones of `size` bytes of a target."""
    if count >= MAX_UNFINISHED:
        return problem(
            "queue-full", f"{MAX_UNFINISHED:,} operations of this {what} are unfinished: {_ADVICE}"
        )
    if size + more <= kept_bytes:
        return None
    return problem(
        "queue-full",
        f"The unfinished operations of this {what} have {size:,} bytes of parameters and logs, and this one has {more:,},"
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
    if operation.schedule is not None:
        detail["schedule"] = operation.schedule
    at = operation.finished or operation.created
    if ice is None:
        return Event.of(at, actor, action, **detail)
    detail["generation_before"] = ice.generation
    return Event(at, actor, action, ice.ice_name, ice.generation, detail)
