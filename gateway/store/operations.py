"""SQL of `ice_operations`: inserted, changed by compare-and-set, listed, deleted after their retention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from client.protocol import OperationKind
from gateway.core.ice import fold
from gateway.core.operation import ACTIVE, MAX_KEPT, UNFINISHED, Operation, State, code_of, reason
from gateway.core.times import from_text_or_none, to_text, to_text_or_none
from gateway.store.engine import (
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    conditions,
    from_columns,
    is_in,
    places,
    rows_of,
)

COLUMNS: Final = tuple(Operation.__dataclass_fields__)
_ALL: Final = ", ".join(COLUMNS)
_JSON: Final = frozenset({"params", "progress", "result", "error", "refused_by"})
_BRIEF: Final = _ALL.replace("params", "'null'").replace("result", "NULL").replace("error", "NULL")
_PAGE_SIZE: Final = 4_000_000
"""Maximum bytes of JSON in one page; a page of large operations holds fewer of them."""
_TRIM_BATCH: Final = 100
_PROGRESS_SIZE: Final = "coalesce(octet_length(progress), 0)"
_LARGE_ERROR: Final = 4_000
"""Bytes; a longer error is deleted together with the result."""
_NOT_KEPT: Final = reason("failed", "why it failed is not kept any more")


def state_in(states: Sequence[State]) -> str:
    """SQL for an operation in one of these states."""
    return f"state IN ({', '.join(repr(state.value) for state in states)})"


_ENDED_BY_US: Final = (State.CANCELLED, State.EXPIRED, State.LOST)
IS_UNFINISHED: Final = state_in(UNFINISHED)
"""SQL."""
IS_ACTIVE: Final = state_in(ACTIVE)
"""SQL."""
MAY_WAIT: Final = state_in((State.QUEUED, State.SENT))
"""SQL for an operation that waits in its pool, or may wait there again: the ICE can refuse one that was sent."""
_QUEUED: Final = f"state = '{State.QUEUED}'"
_DUE: Final = "coalesce(run_at, created)"
OF_USER: Final = (
    "former_user IS NULL"
    " AND ice_name IN (SELECT ice_name FROM ice_tokens WHERE provisionedto = {0})"
)
"""SQL for an operation or a schedule of an ICE that is tagged to the user, and was when it was requested."""


@dataclass(frozen=True, slots=True)
class OperationFilter:
    """Which operations to list; None stands for all.

    Attributes:
        requested_by: the exact name of the requester.
        since: lists those requested then or later.
        owner: the user the ICE is tagged to.
        token: the id of the API token that requested it.
    """

    ice_name: str | None = None
    state: State | None = None
    kind: OperationKind | None = None
    requested_by: str | None = None
    since: datetime | None = None
    owner: str | None = None
    pool: str | None = None
    schedule: str | None = None
    token: str | None = None


def _matching(params: list[object], where: OperationFilter, before: int | None) -> str:
    """The condition of a filter; its values are appended to `params`."""
    return conditions(
        params,
        ("number < {0}", before),
        ("lower(ice_name) = {0}", None if where.ice_name is None else fold(where.ice_name)),
        ("state = {0}", where.state),
        ("kind = {0}", where.kind),
        ("requested_by = {0}", where.requested_by),
        ("created >= {0}", to_text_or_none(where.since)),
        (OF_USER, where.owner),
        ("lower(pool) = {0}", None if where.pool is None else fold(where.pool)),
        ("schedule = {0}", where.schedule),
        ("token = {0}", where.token),
    )


@dataclass(frozen=True, slots=True)
class Numbered:
    """An operation with its number, which is in the order of the requests."""

    number: int
    operation: Operation


# --- in a transaction ----------------------------------------------------------------------------


async def insert(transaction: Transaction, operation: Operation) -> None:
    """Add a new operation."""
    await transaction.run(
        f"INSERT INTO ice_operations ({_ALL}, kept) VALUES ({places(len(COLUMNS) + 1)})",
        *columns_of(operation, COLUMNS),
        len(operation.params),
    )


async def replace(transaction: Transaction, old: Operation, new: Operation) -> bool:
    """Compare and swap; False if the operation no longer has the state of `old`."""
    # Progress changes until the operation ends: only then is its size added.
    ends = new.is_finished and not old.is_finished
    progress = f" + {_PROGRESS_SIZE}" if ends else ""
    size = _outcome_size(new)
    return bool(
        await transaction.run(
            "UPDATE ice_operations SET state = $1, sent = $2, finished = $3, result = $4, error = $5,"
            " ice_name = $6, refused_by = $7,"
            f" kept = CASE WHEN kept = 0 THEN $10 ELSE kept + $11{progress} END"
            " WHERE id = $8 AND state = $9",
            *columns_of(
                new, ("state", "sent", "finished", "result", "error", "ice_name", "refused_by")
            ),
            old.id,
            old.state.value,
            size,
            size - _outcome_size(old),
        )
    )


def _outcome_size(operation: Operation) -> int:
    return len(operation.result or b"") + len(operation.error or b"")


async def cancel_all(
    transaction: Transaction, ice_names: Sequence[str], now: datetime, error: bytes
) -> None:
    """Cancel all unfinished operations of these ICEs."""
    await transaction.run(
        f"UPDATE ice_operations SET state = $1, finished = $2, error = $3,"
        f" kept = kept + {len(error)} + {_PROGRESS_SIZE}"
        f" WHERE {is_in('ice_name', 4)} AND {IS_UNFINISHED}",
        State.CANCELLED.value,
        to_text(now),
        error.decode(),
        as_json(ice_names),
    )


async def leave_to_former_users(transaction: Transaction, ices: Sequence[tuple[str, str]]) -> None:
    """Note the former user in all operations of each of these ICEs, given as pairs of both."""
    await transaction.run(
        f"UPDATE ice_operations SET former_user = given.user_name FROM {rows_of(1, 'name', 'user_name')}"
        " WHERE ice_operations.ice_name = given.name AND former_user IS NULL",
        as_json(list(ices)),
    )


async def overdue(transaction: Transaction, now: datetime, limit: int) -> list[Operation]:
    """The unfinished operations whose deadline has passed, at most `limit`."""
    rows = await transaction.fetch(
        f"SELECT {_BRIEF} FROM ice_operations WHERE {IS_UNFINISHED} AND deadline <= $1"
        " ORDER BY deadline LIMIT $2",
        to_text(now),
        limit,
    )
    return [operation_from_row(row) for row in rows]


async def set_progress(transaction: Transaction, progress: Sequence[tuple[str, bytes]]) -> None:
    """Store the progress of operations, by id, if the ICE still works on them."""
    await transaction.run(
        f"UPDATE ice_operations SET progress = given.progress FROM {rows_of(1, 'id', 'progress')}"
        f" WHERE ice_operations.id = given.id AND {IS_ACTIVE}",
        as_json([(name, encoded.decode()) for name, encoded in progress]),
    )


async def trim(transaction: Transaction, operation: Operation, kept_bytes: int) -> None:
    """Delete the contents of the oldest finished operations of its ICE or pool until the rest is within the limits.

    `operation` is spared: its requester has not read its result yet. Of the others params become null, and result,
    progress and log are deleted; id, state, key and a short error stay. The next call counts what the gateway itself
    has added meanwhile to operations that it ended.
    """
    kept, target = _kept_for(operation.ice_name, operation.pool)
    [(count, size)] = await transaction.fetch(
        f"SELECT count(*), coalesce(sum(kept), 0) FROM ice_operations WHERE {kept}", target
    )
    count, size = count - MAX_KEPT, size - kept_bytes
    while count > 0 or size > 0:
        oldest = await transaction.fetch(
            f"SELECT number, kept FROM ice_operations WHERE {kept}"
            f" AND finished IS NOT NULL AND id <> $2 ORDER BY finished LIMIT {_TRIM_BATCH}",
            target,
            operation.id,
        )
        given_up = []
        for number, kept in oldest:
            if count > 0 or size > 0:
                given_up.append([number])
                count, size = count - 1, size - kept
        if not given_up:
            return
        await transaction.run(
            "UPDATE ice_operations SET params = 'null', result = NULL, progress = NULL, kept = 0,"
            f" error = CASE WHEN octet_length(error) > {_LARGE_ERROR} THEN $2 ELSE error END"
            f" WHERE number IN (SELECT number FROM {rows_of(1, '#number')})",
            as_json(given_up),
            _NOT_KEPT.decode(),
        )
        await transaction.run(
            "DELETE FROM ice_operation_logs WHERE operation IN (SELECT id FROM ice_operations"
            f" WHERE number IN (SELECT number FROM {rows_of(1, '#number')}))",
            as_json(given_up),
        )


def _kept_for(ice_name: str | None, pool: str | None) -> tuple[str, str | None]:
    """SQL for the operations whose bytes count for this target, and its parameter `$1`."""
    if pool is not None:
        return "pool = $1 AND kept > 0", pool
    return "ice_name = $1 AND pool IS NULL AND kept > 0", ice_name


async def forget(
    transaction: Transaction, before: datetime, limit: int, *, emptied: bool = False
) -> int:
    """Delete operations that finished before `before`, or only the `emptied` ones; returns their number."""
    which = "finished < $1 AND kept = 0" if emptied else "finished < $1"
    return await transaction.run(
        "DELETE FROM ice_operations WHERE number IN (SELECT number FROM ice_operations"
        f" WHERE {which} ORDER BY finished LIMIT $2)",
        to_text(before),
        limit,
    )


# --- reading -------------------------------------------------------------------------------------


class Operations:
    """Reads the table, with an engine's `fetch` or a transaction's."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def find(self, operation_id: str) -> Operation | None:
        """The operation of this id."""
        return await self._one("id = $1", operation_id)

    async def find_by_key(
        self, ice_name: str | None, requested_by: str, key: str, *, pool: str | None = None
    ) -> Operation | None:
        """The operation that this user requested of this ICE or pool (case folded) with this idempotency key."""
        target = (
            "pool IS NULL AND ice_name = (SELECT ice_name FROM ice_tokens WHERE lower(ice_name) = $1)"
            if pool is None
            else "pool = (SELECT name FROM ice_pools WHERE lower(name) = $1)"
        )
        return await self._one(
            f"{target} AND requested_by = $2 AND idempotency_key = $3",
            fold(pool or ice_name or ""),
            requested_by,
            key,
        )

    async def _one(self, condition: str, *params: object) -> Operation | None:
        rows = await self._fetch(f"SELECT {_ALL} FROM ice_operations WHERE {condition}", *params)
        return operation_from_row(rows[0]) if rows else None

    async def standing(
        self, ice_name: str, ids: Collection[str]
    ) -> dict[str, tuple[State, str | None]]:
        """The state of the operations `ids` of this ICE, with the error code if the gateway ended one."""
        rows = await self._fetch(
            f"SELECT id, state, CASE WHEN {state_in(_ENDED_BY_US)} THEN error END"
            f" FROM ice_operations WHERE ice_name = $1 AND {is_in('id', 2)}",
            ice_name,
            as_json(list(ids)),
        )
        return {
            operation_id: (State(state), code_of(None if error is None else error.encode()))
            for operation_id, state, error in rows
        }

    async def unfinished(self, ice_name: str | None, *, pool: str | None = None) -> tuple[int, int]:
        """The number of unfinished operations requested of this ICE or pool, and the bytes stored of them."""
        kept, target = _kept_for(ice_name, pool)
        [(count, size)] = await self._fetch(
            "SELECT count(*), coalesce(sum(kept), 0) FROM ice_operations"
            f" WHERE {kept} AND finished IS NULL",
            target,
        )
        return int(count), int(size)

    async def busy(self) -> list[str]:
        """The ICEs that have unfinished operations."""
        rows = await self._fetch(
            f"SELECT DISTINCT ice_name FROM ice_operations WHERE {IS_UNFINISHED} AND ice_name IS NOT NULL"
        )
        return [name for (name,) in rows]

    async def next_deadline(self) -> datetime | None:
        """The earliest deadline of all unfinished operations."""
        [(deadline,)] = await self._fetch(
            f"SELECT min(deadline) FROM ice_operations WHERE {IS_UNFINISHED}"
        )
        return from_text_or_none(deadline)

    async def counts(self, now: datetime) -> tuple[int, int, int]:
        """How many operations ICEs were sent and have not finished, and how many queued ones are not due, and due."""
        # Each from an index alone.
        [(active, not_due, due)] = await self._fetch(
            f"SELECT (SELECT count(*) FROM ice_operations WHERE {IS_ACTIVE}),"
            f" (SELECT count(*) FROM ice_operations WHERE {_QUEUED} AND {_DUE} > $1),"
            f" (SELECT count(*) FROM ice_operations WHERE {_QUEUED} AND {_DUE} <= $1)",
            to_text(now),
        )
        return int(active), int(not_due), int(due)

    async def waiting_longest(self, now: datetime, limit: int) -> list[Operation]:
        """At most `limit` queued operations that are due, those that have waited longest first, without `params`."""
        rows = await self._fetch(
            f"SELECT {_BRIEF} FROM ice_operations WHERE {_QUEUED} AND {_DUE} <= $1"
            f" ORDER BY {_DUE}, number LIMIT $2",
            to_text(now),
            limit,
        )
        return [operation_from_row(row) for row in rows]

    async def any_unfinished(self, where: OperationFilter, before: int | None = None) -> bool:
        """Whether an unfinished operation matches; `before` is as for `page`."""
        params: list[object] = []
        matching = _matching(params, where, before)
        return bool(
            await self._fetch(
                f"SELECT 1 FROM ice_operations WHERE {IS_UNFINISHED} AND {matching} LIMIT 1",
                *params,
            )
        )

    async def page(
        self, where: OperationFilter, limit: int, before: int | None = None, *, brief: bool = False
    ) -> tuple[list[Numbered], bool]:
        """At most `limit` operations, newest first, numbered below `before`, and whether there are more.

        A page of large operations holds fewer. `brief` leaves `params`, `result` and `error` out.
        """
        params: list[object] = [limit + 1]
        matching = _matching(params, where, before)
        rows = await self._fetch(
            f"SELECT number, kept FROM ice_operations WHERE {matching} ORDER BY number DESC LIMIT $1",
            *params,
        )
        count = min(len(rows), limit) if brief else fitting([row[1] for row in rows[:limit]])
        if not count:
            return [], False
        # By their numbers: by now the condition may match other operations.
        found = await self._fetch(
            f"SELECT number, {_BRIEF if brief else _ALL} FROM ice_operations"
            f" WHERE number IN (SELECT number FROM {rows_of(1, '#number')}) ORDER BY number DESC",
            as_json([[number] for number, _ in rows[:count]]),
        )
        return [Numbered(row[0], operation_from_row(row[1:])) for row in found], len(rows) > count


def fitting(sizes: Sequence[int]) -> int:
    """How many operations of these sizes fit into one page, at least one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > _PAGE_SIZE:
            return count
    return len(sizes)


def operation_from_row(row: Row) -> Operation:
    """A row of `COLUMNS`. Raises `StoreUnavailable` for a damaged one."""
    values = [
        value.encode() if name in _JSON and isinstance(value, str) else value
        for name, value in zip(COLUMNS, row, strict=True)
    ]
    return from_columns(Operation, values, f"the operation {row[0]}")
