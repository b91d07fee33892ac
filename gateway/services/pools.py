"""Makes, changes and deletes pools, each in one transaction with its event.

Whoever requests an operation of a pool, schedules it, or makes an API token for it locks its row first
(`store.pools.find`), so that a pool is never deleted while it gets in use.

Tested in tests/contract/test_pools.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import IceType
from gateway.core.labels import Labels
from gateway.core.pool import MAX_POOLS, Pool, changes, pool_fault
from gateway.core.problems import Problem, invalid, problem, quoted
from gateway.core.times import Clock
from gateway.store import accounts, events, pools
from gateway.store.engine import Engine, Transaction


@dataclass(frozen=True, slots=True)
class WantedPool:
    """A pool as an admin describes it."""

    name: str
    labels: Labels
    description: str = ""
    ice_type: IceType | None = None


@dataclass(frozen=True, slots=True)
class PoolSet:
    """A pool, and whether it is new."""

    pool: Pool
    created: bool


class PoolService:
    """Changes pools. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock, most: int = MAX_POOLS) -> None:
        self._engine = engine
        self._clock = clock
        self._most = most

    async def set(
        self, actor: Actor, wanted: WantedPool, *, only_new: bool = False
    ) -> PoolSet | Problem:
        """Make a pool, or replace all but the name of the one that has it, case folded.

        With `only_new` a name that a pool has is refused.
        """
        refused = pool_fault(wanted.name, wanted.description, wanted.labels)
        if refused is not None:
            return refused
        new = Pool(
            wanted.name,
            wanted.description,
            wanted.ice_type,
            dict(sorted(wanted.labels.items())),
            actor.name,
            self._clock(),
        )

        async def unit(transaction: Transaction) -> PoolSet | Problem:
            before = await pools.find(transaction, new.name)
            if before is None:
                if await pools.count(transaction) >= self._most:
                    return invalid("name", f"there are {self._most:,} pools: delete one first")
                if await pools.add(transaction, new):
                    self._log(transaction, actor, AuditAction.CREATE_POOL, new, _description(new))
                    return PoolSet(new, created=True)
                # Another transaction has made it since, and has ended.
                before = await pools.find(transaction, new.name)
                if before is None:
                    return problem("unavailable")
            if only_new:
                return invalid("name", f"there is a pool {before.name} already")
            pool = replace(
                before, description=new.description, ice_type=new.ice_type, labels=new.labels
            )
            if pool != before:
                await pools.update(transaction, pool)
                self._log(transaction, actor, AuditAction.CHANGE_POOL, pool, changes(before, pool))
            return PoolSet(pool, created=False)

        return await self._engine.write(unit)

    async def delete(self, actor: Actor, name: str) -> Pool | Problem:
        """Delete a pool and revoke its API tokens, unless operations wait in it or a schedule names it."""

        async def unit(transaction: Transaction) -> Pool | Problem:
            pool = await pools.find(transaction, name)
            if pool is None:
                return no_pool(name)
            refused = _in_use(await pools.use(transaction, pool.name))
            if refused is not None:
                return refused
            revoked = await accounts.revoke_tokens_of_pool(transaction, pool.name, self._clock())
            await pools.delete(transaction, pool.name)
            detail = {**_description(pool), "api_tokens_revoked": revoked}
            self._log(transaction, actor, AuditAction.DELETE_POOL, pool, detail)
            return pool

        return await self._engine.write(unit)

    def _log(
        self,
        transaction: Transaction,
        actor: Actor,
        action: AuditAction,
        pool: Pool,
        detail: dict[str, object],
    ) -> None:
        event = Event.of(self._clock(), actor, action, pool=pool.name, **detail)
        events.append(transaction, [event])


def no_pool(name: str) -> Problem:
    """The refusal of a name that no pool has."""
    return problem("not-found", f"There is no pool {quoted(name)}.")


def _description(pool: Pool) -> dict[str, object]:
    return {
        "description": pool.description,
        "ice_type": pool.ice_type,
        "labels": pool.labels,
    }


def _in_use(use: pools.PoolUse) -> Problem | None:
    """Why a pool cannot be deleted; None if it can."""
    if use.waiting:
        one = use.waiting == 1
        return problem(
            "in-use",
            f"{use.waiting:,} operation{' waits' if one else 's wait'} in this pool:"
            f" cancel {'it' if one else 'them'}, or wait",
        )
    if use.schedule is not None:
        return problem("in-use", f"the schedule {quoted(use.schedule)} is of this pool")
    return None
