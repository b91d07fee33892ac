"""SQL that says why queued operations wait (`core.operation.Waits`).

Tested in tests/contract/test_work_queue.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from gateway.core.ice import OPERATIONS, Status
from gateway.core.operation import MAX_REFUSALS, Operation, State, Waits
from gateway.core.times import to_text
from gateway.store.consent import accepted, decided_since
from gateway.store.engine import Fetch, as_json, is_in
from gateway.store.ice_filter import MEMBER
from gateway.store.operations import IS_UNFINISHED, Operations
from gateway.store.pauses import paused
from gateway.store.work_queue import NOBODY, has_own_work, in_turn

_SESSION: Final = (
    "LEFT JOIN ice_sessions s ON s.number ="
    " (SELECT max(number) FROM ice_sessions WHERE ice_name = t.ice_name AND generation = t.generation)"
)


async def waits(fetch: Fetch, operations: Sequence[Operation], now: datetime) -> dict[str, Waits]:
    """Why each of these operations waits, by id; those that are not queued, or about to be sent, are left out."""
    found = {
        operation.id: Waits.RUN_AT
        for operation in operations
        if operation.state is State.QUEUED and not operation.is_due(now)
    }
    due = [each for each in operations if each.state is State.QUEUED and each.id not in found]
    found |= await _of_ices(fetch, [each for each in due if each.pool is None], now)
    return found | await _of_pools(fetch, [each for each in due if each.pool is not None], now)


async def _of_ices(
    fetch: Fetch, operations: Sequence[Operation], now: datetime
) -> dict[str, Waits]:
    if not operations:
        return {}
    earlier = "(coalesce({0}.run_at, {0}.created), {0}.number)"
    earlier = f"{earlier.format('b')} < {earlier.format('o')}"
    before_accepted = accepted("t", "s", kind="b.kind", requested_by="b.requested_by", since=3)
    this_accepted = accepted("t", "s", kind="o.kind", requested_by="o.requested_by", since=3)
    rows = await fetch(
        "SELECT o.id, CASE"
        f" WHEN EXISTS (SELECT 1 FROM ice_operations b WHERE b.ice_name = o.ice_name AND b.{IS_UNFINISHED}"
        f" AND (b.state <> '{State.QUEUED}' OR ({earlier} AND {before_accepted} AND {in_turn('b')})))"
        f" OR NOT {in_turn('o')}"
        f" THEN '{Waits.OPERATION_BEFORE}'"
        f" WHEN t.node IS NULL THEN '{Waits.OFFLINE}'"
        f" WHEN {paused('t', 2)} THEN '{Waits.PAUSED}'"
        f" WHEN NOT {this_accepted} THEN '{Waits.NOT_ACCEPTED}' END"
        f" FROM ice_operations o JOIN ice_tokens t ON t.ice_name = o.ice_name {_SESSION}"
        f" WHERE {is_in('o.id', 1)}",
        as_json([operation.id for operation in operations]),
        to_text(now),
        decided_since(now),
    )
    return {operation_id: Waits(why) for operation_id, why in rows if why is not None}


async def _of_pools(
    fetch: Fetch, operations: Sequence[Operation], now: datetime
) -> dict[str, Waits]:
    """One look at the ICEs of a pool for all its operations of a group, and one more if any refused some."""
    if not operations:
        return {}
    groups: dict[_Group, dict[bytes, list[str]]] = {}
    of_pools = await _grouped(fetch, operations)
    for each in operations:
        if each.id in of_pools:
            by_refusals = groups.setdefault(of_pools[each.id], {})
            by_refusals.setdefault(each.refused_by, []).append(each.id)
    rows = await fetch(
        f"SELECT o.id FROM ice_operations o WHERE {is_in('o.id', 1)} AND NOT {in_turn('o')}",
        as_json([each.id for each in operations if each.schedule is not None]),
    )
    found = {operation_id: Waits.OPERATION_BEFORE for (operation_id,) in rows}
    for group, by_refusals in groups.items():
        for refused_by, why in (await _of_group(fetch, *group, by_refusals, now=now)).items():
            found = dict.fromkeys(by_refusals[refused_by], why) | found
    return found


_Group = tuple[str | None, str, str]


async def _grouped(fetch: Fetch, operations: Sequence[Operation]) -> dict[str, _Group]:
    """By id what decides, but for refusals, which ICEs may run an operation of a pool; see `_of_group`.

    Each ICE treats all requesters without an ICE of their own alike.
    """
    rows = await fetch(
        f"SELECT DISTINCT provisionedto FROM ice_tokens WHERE {is_in('provisionedto', 1)}",
        as_json(list({each.requested_by for each in operations if each.pool is not None})),
    )
    owners = {name for (name,) in rows}
    return {
        each.id: (
            each.pool,
            each.kind.value,
            each.requested_by if each.requested_by in owners else NOBODY,
        )
        for each in operations
        if each.pool is not None
    }


async def _of_group(
    fetch: Fetch,
    pool: str | None,
    kind: str,
    requested_by: str,
    refusals: Collection[bytes],
    *,
    now: datetime,
) -> dict[bytes, Waits]:
    """Why operations of a kind and requester wait, by the sessions that refused them."""
    types = [ice_type.value for ice_type, kinds in OPERATIONS.items() if kind in kinds]
    members = (
        f"(SELECT t.node IS NOT NULL AS connected, s.session AS session, {paused('t', 2)} AS paused,"
        f" {accepted('t', 's', kind='$3', requested_by='$4', since=6)} AS accepts,"
        f" {has_own_work('t', 's', now=2, since=6)} AS busy"
        f" FROM ice_tokens t JOIN ice_pools p ON p.name = $1 AND {MEMBER} {_SESSION}"
        f" WHERE t.status <> '{Status.DEREGISTERED}' AND {is_in('t.ice_type', 5)}) members"
    )
    params = (pool, to_text(now), kind, requested_by, as_json(types), decided_since(now))
    [(may, reached, unpaused, accepting, free)] = await fetch(
        f"SELECT count(*), {_count('connected')}, {_count('connected AND NOT paused')},"
        f" {_count(_WILLING)}, {_count(f'{_WILLING} AND NOT busy')} FROM {members}",
        *params,
    )
    same = None
    if not may:
        same = Waits.NO_ICE
    elif not reached:
        same = Waits.ALL_OFFLINE
    elif not unpaused:
        same = Waits.PAUSED
    elif not accepting:
        same = Waits.NOT_ACCEPTED
    if same is not None:
        return dict.fromkeys(refusals, same)
    why = {} if free else dict.fromkeys(refusals, Waits.ALL_BUSY)
    if any(refused_by != _NO_REFUSALS for refused_by in refusals):
        # The free ones first, and one more than may have refused an operation: that many decide.
        sessions = await fetch(
            f"SELECT session, busy FROM {members} WHERE {_WILLING} ORDER BY busy LIMIT $7",
            *params,
            MAX_REFUSALS + 1,
        )
        for refused_by in refusals:
            refused = set(msgspec.json.decode(refused_by, type=list[str]))
            left = [busy for session, busy in sessions if session not in refused]
            if not left:
                why[refused_by] = Waits.NOT_ACCEPTED
            elif left[0]:
                why[refused_by] = Waits.ALL_BUSY
    return why


_WILLING: Final = "connected AND NOT paused AND accepts"
_NO_REFUSALS: Final = b"[]"


def _count(condition: str) -> str:
    return f"count(CASE WHEN {condition} THEN 1 END)"


# --- all of them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """Due operations that wait for the same reason: how many, and since when the one that waits longest is due."""

    count: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Backlog:
    """What all ICEs and pools have to do.

    Attributes:
        running: how many operations ICEs work on, or were sent.
        not_due: how many queued ones wait for their `run_at`.
        due: those examined, by why they wait; None: they are about to be sent.
        not_examined: how many further ones are due.
    """

    running: int
    not_due: int
    due: Mapping[Waits | None, Waiting]
    not_examined: int


async def backlog(fetch: Fetch, now: datetime, examined: int, groups: int) -> Backlog:
    """Count the unfinished operations; why they wait is read of those that have waited longest.

    These are `examined` operations at most. Those of pools make at most so many `groups` that the same ICEs may run:
    each needs a look at all ICEs of its pool.
    """
    rows = Operations(fetch)
    running, not_due, due = await rows.counts(now)
    oldest = await rows.waiting_longest(now, examined)
    grouped = await _grouped(fetch, oldest)
    looked_at = set(itertools.islice(dict.fromkeys(grouped.values()), groups))
    oldest = [each for each in oldest if each.pool is None or grouped[each.id] in looked_at]
    why = await waits(fetch, oldest, now)
    found: dict[Waits | None, Waiting] = {}
    for operation in oldest:
        reason = why.get(operation.id)
        before = found.get(reason, Waiting(0, operation.run_at or operation.created))
        found[reason] = Waiting(before.count + 1, before.since)
    return Backlog(running, not_due, found, max(0, due - len(oldest)))
