"""SQL by which the dispatcher chooses the next operation of an ICE, and an ICE for an operation of a pool.

An operation of its own that an ICE does not accept waits, and holds up none of the others. A choice is made by the
compare-and-set that marks the operation as sent, so each operation is sent to one ICE, once.

Tested in tests/contract/test_work_queue.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from msgspec import UnsetType

from client.protocol import OperationKind
from gateway.core.consent import Accepts, accepts_from_text
from gateway.core.ice import OPERATIONS, IceType, Status
from gateway.core.operation import Move, Operation, State
from gateway.core.times import from_text_or_none, to_text, to_text_or_none
from gateway.store.consent import accepted, decided_since
from gateway.store.engine import Fetch, Transaction, as_json, is_in
from gateway.store.ice_filter import MEMBER
from gateway.store.operations import (
    COLUMNS,
    IS_ACTIVE,
    IS_UNFINISHED,
    MAY_WAIT,
    operation_from_row,
)
from gateway.store.pauses import paused

NOBODY: Final = "/"
"""Stands for every requester without an ICE of their own: each ICE treats them alike. No user has this name."""

_TAKEN: Final = f"pool IS NOT NULL AND {IS_ACTIVE}"
_MAY_WAIT: Final = f"pool IS NOT NULL AND {MAY_WAIT}"


@dataclass(frozen=True, slots=True)
class Worker:
    """The session that is to work: its ICE, and the kinds that it now accepts from its `owner` only."""

    ice_name: str
    ice_type: IceType
    generation: int
    session: str
    owner: str | None
    owner_only: Collection[OperationKind]

    def accepts(self, operation: Operation) -> bool:
        """Whether it may be sent this operation."""
        return operation.kind not in self.owner_only or operation.requested_by == self.owner


@dataclass(frozen=True, slots=True)
class Next:
    """The operation that an ICE works on, or its next one, and whether the ICE is paused, and until when."""

    operation: Operation | None
    paused: bool
    paused_until: datetime | None


def _not_accepted(operation: str, owner: int, owner_only: int) -> str:
    """SQL for an operation that the ICE does not accept."""
    kind = is_in(f"{operation}.kind", owner_only)
    return f"({kind} AND {operation}.requested_by <> coalesce(${owner}, ''))"


def _next(ice_name: int, owner: int, owner_only: int) -> str:
    """SQL for the number of the operation that the ICE works on, or of its next one."""
    return (
        f"(SELECT number FROM ice_operations WHERE ice_name = ${ice_name} AND {IS_UNFINISHED}"
        f" AND {in_turn('ice_operations')}"
        f" ORDER BY state = '{State.QUEUED}', {_not_accepted('ice_operations', owner, owner_only)},"
        " coalesce(run_at, created), number LIMIT 1)"
    )


def _as_registered(ice_name: int, status: int, generation: int, now: int) -> str:
    """SQL for the entry of the ICE, if it may be sent work."""
    return (
        f"t.ice_name = ${ice_name} AND t.status = ${status} AND t.generation = ${generation}"
        f" AND NOT {paused('t', now)}"
    )


async def find_next(fetch: Fetch, worker: Worker, now: datetime) -> Next:
    """What the ICE works on, or the next of its own, which may not be due yet or not accepted."""
    columns = ", ".join(f"o.{name}" for name in COLUMNS)
    rows = await fetch(
        f"SELECT {paused('t', 4)}, t.pauseduntil, {columns} FROM ice_tokens t"
        f" LEFT JOIN ice_operations o ON o.number = {_next(1, 2, 3)} WHERE t.ice_name = $1",
        worker.ice_name,
        worker.owner,
        as_json(list(worker.owner_only)),
        to_text(now),
    )
    if not rows:
        return Next(None, paused=False, paused_until=None)
    [(is_paused, until, *columns_found)] = rows
    work = None if columns_found[0] is None else operation_from_row(tuple(columns_found))
    return Next(work, bool(is_paused), from_text_or_none(until) if is_paused else None)


async def send(transaction: Transaction, new: Operation, worker: Worker, now: datetime) -> bool:
    """Mark a queued one as sent; False unless it is still the next of its ICE, which may be sent work.

    Meanwhile another process may have cancelled it, queued an earlier one, sent one, paused the ICE, or ended the
    generation.
    """
    sql = (
        "UPDATE ice_operations SET state = $1, sent = $2 WHERE id = $3 AND state = $4"
        f" AND number = {_next(5, 9, 10)} AND EXISTS (SELECT 1 FROM ice_tokens t"
        f" WHERE {_as_registered(5, 6, 7, 8)})"
    )
    return await _mark_sent(transaction, sql, new, worker, now)


async def _mark_sent(
    transaction: Transaction, sql: str, new: Operation, worker: Worker, now: datetime
) -> bool:
    """Run the compare-and-set of `send` or `claim`; False if its conditions do not hold any more."""
    return bool(
        await transaction.run(
            sql,
            new.state.value,
            to_text_or_none(new.sent),
            new.id,
            State.QUEUED.value,
            worker.ice_name,
            Status.REGISTERED.value,
            worker.generation,
            to_text(now),
            worker.owner,
            as_json(list(worker.owner_only)),
        )
    )


async def claim(transaction: Transaction, worker: Worker, now: datetime) -> Operation | None:
    """Mark the oldest operation of the ICE's pools that it may run as sent to it; None if there is none.

    The ICE takes none while it has work of its own to do.
    """
    old = await oldest(transaction.fetch, worker, now)
    if old is None:
        return None
    new = replace(old, ice_name=worker.ice_name).moved(Move.SEND, now)
    assert new is not None  # noqa: S101 - it is queued
    sql = (
        "UPDATE ice_operations SET state = $1, sent = $2, ice_name = $5 WHERE id = $3 AND state = $4"
        " AND NOT EXISTS (SELECT 1 FROM ice_operations own WHERE own.ice_name = $5"
        f" AND own.{IS_UNFINISHED} AND (own.state <> $4 OR (coalesce(own.run_at, '') <= $8"
        f" AND NOT {_not_accepted('own', 9, 10)} AND {in_turn('own')})))"
        " AND EXISTS (SELECT 1 FROM ice_tokens t, ice_pools p"
        f" WHERE {_as_registered(5, 6, 7, 8)} AND p.name = ice_operations.pool AND {MEMBER})"
    )
    return new if await _mark_sent(transaction, sql, new, worker, now) else None


async def oldest(fetch: Fetch, worker: Worker, now: datetime) -> Operation | None:
    """The oldest queued operation that is due, of those of the ICE's pools that this session may run."""
    columns = ", ".join(COLUMNS)
    rows = await fetch(
        # The oldest of each pool from an index; then the oldest of these.
        f"SELECT {columns} FROM ice_operations WHERE number = (SELECT min(of_pool.number) FROM ("
        f" SELECT (SELECT number FROM ice_operations WHERE pool = p.name AND state = '{State.QUEUED}'"
        f" AND coalesce(run_at, '') <= $4 AND deadline > $4 AND {is_in('kind', 5)}"
        f" AND NOT {_not_accepted('ice_operations', 2, 3)} AND instr(refused_by, $6) = 0 AND {in_turn('ice_operations')}"
        " ORDER BY number LIMIT 1) AS number"
        f" FROM ice_tokens t, ice_pools p WHERE t.ice_name = $1 AND {MEMBER}) of_pool)",
        worker.ice_name,
        worker.owner,
        as_json(list(worker.owner_only)),
        to_text(now),
        as_json(list(OPERATIONS[worker.ice_type])),
        worker.session,
    )
    return operation_from_row(rows[0]) if rows else None


def in_turn(operation: str) -> str:
    """SQL for an operation of which no earlier one of the same schedule is unfinished."""
    return (
        f"({operation}.schedule IS NULL OR NOT EXISTS (SELECT 1 FROM ice_operations earlier"
        f" WHERE earlier.schedule = {operation}.schedule AND earlier.finished IS NULL"
        f" AND earlier.number < {operation}.number))"
    )


async def last_accepts(fetch: Fetch, ice_name: str) -> Accepts | UnsetType:
    """What the ICE last said others may send; UNSET if it never said."""
    [(stored,)] = await fetch("SELECT accepts FROM ice_tokens WHERE ice_name = $1", ice_name)
    return accepts_from_text(stored)


# --- for the claimers of pools -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Due operations of a pool that the same ICEs may run, and how many they are."""

    kind: OperationKind
    requested_by: str
    refused_by: str
    count: int


@dataclass(frozen=True, slots=True)
class PoolQueue:
    """What waits in a pool: the groups that are due, and the time of the next that is not."""

    due: Sequence[Group]
    next_due: datetime | None


async def waiting_pools(fetch: Fetch) -> list[str]:
    """The pools with operations that wait for an ICE, or may come back from one."""
    rows = await fetch(f"SELECT DISTINCT pool FROM ice_operations WHERE {_MAY_WAIT}")
    return [name for (name,) in rows]


async def working(fetch: Fetch, ice_names: Collection[str]) -> list[str] | None:
    """Which of these ICEs have taken an operation of a pool; None if no ICE has."""
    rows = await fetch(
        f"SELECT ice_name FROM ice_operations WHERE {_TAKEN} AND {is_in('ice_name', 1)}",
        as_json(list(ice_names)),
    )
    if not rows and not await fetch(f"SELECT 1 FROM ice_operations WHERE {_TAKEN} LIMIT 1"):
        return None
    return [name for (name,) in rows]


async def sent_to(fetch: Fetch, pool: str, node: str) -> list[str]:
    """The ICEs connected to this node that were sent an operation of the pool, and have not accepted it yet."""
    rows = await fetch(
        "SELECT o.ice_name FROM ice_operations o JOIN ice_tokens t ON t.ice_name = o.ice_name"
        f" WHERE o.pool = $1 AND o.state = '{State.SENT}' AND t.node = $2",
        pool,
        node,
    )
    return [name for (name,) in rows]


async def pool_queue(fetch: Fetch, pool: str, now: datetime) -> PoolQueue | None:
    """What waits in a pool; None if nothing does, and nothing may come back from an ICE."""
    rows = await fetch(
        "SELECT kind, CASE WHEN EXISTS (SELECT 1 FROM ice_tokens"
        " WHERE provisionedto = ice_operations.requested_by) THEN requested_by"
        f" ELSE '{NOBODY}' END, refused_by, state = '{State.QUEUED}' AND coalesce(run_at, '') <= $2"
        f" AND {in_turn('ice_operations')},"
        f" count(*), min(CASE WHEN state = '{State.QUEUED}' AND run_at > $2 THEN run_at END)"
        f" FROM ice_operations WHERE pool = $1 AND {_MAY_WAIT} GROUP BY 1, 2, 3, 4 ORDER BY min(number)",
        pool,
        to_text(now),
    )
    if not rows:
        return None
    due = [
        Group(OperationKind(kind), requested_by, refused_by, count)
        for kind, requested_by, refused_by, is_due, count, _ in rows
        if is_due
    ]
    times = [run_at for *_, is_due, _, run_at in rows if not is_due and run_at is not None]
    return PoolQueue(due, from_text_or_none(min(times, default=None)))


async def free_ices(
    fetch: Fetch, pool: str, group: Group, *, node: str, now: datetime, limit: int
) -> list[str]:
    """The ICEs of the pool that a node holds and that may be sent the group now: those that idle longest first."""
    types = [ice_type.value for ice_type, kinds in OPERATIONS.items() if group.kind in kinds]
    rows = await fetch(
        "SELECT t.ice_name FROM ice_sessions s JOIN ice_tokens t"
        " ON t.ice_name = s.ice_name AND t.generation = s.generation"
        f" JOIN ice_pools p ON p.name = $1 AND {MEMBER}"
        f" WHERE s.node = $2 AND t.status = $3 AND {is_in('t.ice_type', 4)} AND NOT {paused('t', 5)}"
        f" AND {accepted('t', 's', kind='$6', requested_by='$7', since=10)} AND instr($8, s.session) = 0"
        f" AND NOT {has_own_work('t', 's', now=5, since=10)}"
        " GROUP BY t.ice_name ORDER BY coalesce("
        "(SELECT max(finished) FROM ice_operations WHERE ice_name = t.ice_name AND finished IS NOT NULL),"
        " min(s.since)) LIMIT $9",
        pool,
        node,
        Status.REGISTERED.value,
        as_json(types),
        to_text(now),
        group.kind.value,
        group.requested_by,
        group.refused_by,
        limit,
        decided_since(now),
    )
    return [name for (name,) in rows]


def has_own_work(ice: str, session: str, *, now: int, since: int) -> str:
    """SQL for an ICE that works on an operation, or has one of its own that it may be sent now."""
    accepts = accepted(ice, session, kind="own.kind", requested_by="own.requested_by", since=since)
    return (
        f"EXISTS (SELECT 1 FROM ice_operations own WHERE own.ice_name = {ice}.ice_name AND own.{IS_UNFINISHED}"
        f" AND (own.state <> '{State.QUEUED}' OR (coalesce(own.run_at, '') <= ${now} AND {accepts} AND {in_turn('own')})))"
    )
