"""SQL that changes `ice_tokens`, by compare-and-set and with the event beside it, and what a change reads before.

Tested in tests/contract/test_ices.py and tests/gateway/admin/api/test_bulk.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

import msgspec

from gateway.core.audit_event import Event
from gateway.core.ice import Ice, Status, fold, valid_name
from gateway.core.labels import Labels
from gateway.core.search import own_text
from gateway.core.times import to_text, to_text_or_none
from gateway.store import events
from gateway.store.engine import (
    AppendedEvent,
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    from_columns,
    is_in,
    rows_of,
)

NAMES: Final = tuple(Ice.__dataclass_fields__)
"""The columns that an `Ice` holds."""
_COLUMNS: Final = ", ".join(NAMES)
_GUARDS: Final = ("ice_name", "ice_type", "ice_token", "status", "generation", "expireson")
"""The columns that must still be as they were read when a row is replaced.

`expireson` is among them because disabling a user changes it alone: a registration that read the row before must not
use the token that has expired.
"""
_CHANGED: Final = tuple(
    name for name in NAMES if name not in ("ice_name", "ice_type", "provisionedto")
)
"""What most actions change of an entry. `provisionedto` is indexed, and changes rarely."""
_BY_GENERATION: Final = (
    # A new generation has no session yet.
    "node = CASE WHEN generation = new_generation THEN node END",
    # Its new token is for one copy alone.
    "duplicateon = CASE WHEN generation = new_generation THEN duplicateon END",
    # The next copy speaks for itself.
    "accepts = CASE WHEN generation = new_generation THEN accepts END",
)
_UNINDEXED: Final = "key_thumbprint"
"""The column that a statement sets, to its own value, if the changes change none."""
_UNCHANGED: Final = " AND ".join(
    f"coalesce(ice_tokens.{name}, '') = coalesce(old_{name}, '')"
    if name == "expireson"
    else f"ice_tokens.{name} = old_{name}"
    for name in _GUARDS
)

_NEW: Final = rows_of(
    1, *(f"{'#' * (name == 'generation')}{name}" for name in (*NAMES, "labels", "own_text"))
)


class Stale(Exception):
    """The ICE has changed since it was read. The caller must let the transaction roll back."""


async def insert(transaction: Transaction, ice: Ice, event: Event) -> AppendedEvent | None:
    """Add an ICE and its event; None where the name is taken."""
    [logged] = await insert_many(transaction, [(ice, event, {})])
    return logged


async def insert_many(
    transaction: Transaction, new: Sequence[tuple[Ice, Event, Labels]]
) -> list[AppendedEvent | None]:
    """Add ICEs and their events; None for each name that is taken."""
    rows = [
        (
            *columns_of(ice, NAMES),
            labels_text(labels),
            own_text(ice.ice_name, ice.provisionedto, labels, ""),
        )
        for ice, _, labels in new
    ]
    inserted = await transaction.fetch(
        f"INSERT INTO ice_tokens ({_COLUMNS}, labels, own_text)"
        f" SELECT {_COLUMNS}, labels, own_text FROM {_NEW} WHERE TRUE"
        " ON CONFLICT DO NOTHING RETURNING ice_name",
        as_json(rows),
    )
    names = {name for (name,) in inserted}
    logged = iter(
        events.append(transaction, [event for ice, event, _ in new if ice.ice_name in names])
    )
    return [next(logged) if ice.ice_name in names else None for ice, _, _ in new]


async def replace(
    transaction: Transaction, changes: Sequence[tuple[Ice, Ice, Event]]
) -> list[AppendedEvent]:
    """Compare and swap: put each new ICE in place of the old one, with its event.

    The product's rule "find the entry with given ice_token, ice_type and ice_name", guarded by status
    and generation, too.

    Raises:
        Stale: one of the old ICEs is no longer what the table holds.
    """
    if len(await _put(transaction, changes)) != len(changes):
        raise Stale
    moved = [new for old, new, _ in changes if new.provisionedto != old.provisionedto]
    if moved:
        await _set_owners(transaction, moved)
    return events.append(transaction, [event for _, _, event in changes])


async def _put(transaction: Transaction, changes: Sequence[tuple[Ice, Ice, Event]]) -> set[str]:
    """Put the new ICEs in place of those old ones that are what the table holds; returns their names."""
    # SQLite rewrites an index if a statement sets one of its columns, even to the same value.
    names = tuple(
        name
        for name in _CHANGED
        if any(getattr(new, name) != getattr(old, name) for old, new, _ in changes)
    )
    names = names or (_UNINDEXED,)
    rows = await transaction.fetch(
        _replacement(names),
        as_json([columns_of(new, names) + columns_of(old, _GUARDS) for old, new, _ in changes]),
    )
    return {name for (name,) in rows}


@lru_cache(64)
def _replacement(names: tuple[str, ...]) -> str:
    """The statement that changes these columns where the old ICE is what the table holds."""
    wanted = [f"{name} = new_{name}" for name in names]
    if "generation" in names:
        wanted += _BY_GENERATION
    given = rows_of(
        1,
        *(f"{'#' * (name == 'generation')}new_{name}" for name in names),
        *(f"{'#' * (name == 'generation')}old_{name}" for name in _GUARDS),
    )
    return (
        f"UPDATE ice_tokens SET {', '.join(wanted)} FROM {given} WHERE {_UNCHANGED}"
        " RETURNING ice_tokens.ice_name"
    )


async def _set_owners(transaction: Transaction, moved: Sequence[Ice]) -> None:
    described = await descriptions(transaction, [ice.ice_name for ice in moved])
    await transaction.run(
        "UPDATE ice_tokens SET provisionedto = given.owner, own_text = given.own"
        f" FROM {rows_of(1, 'name', 'owner', 'own')} WHERE ice_tokens.ice_name = given.name",
        as_json(
            [
                (
                    ice.ice_name,
                    ice.provisionedto,
                    own_text(ice.ice_name, ice.provisionedto, *described[ice.ice_name]),
                )
                for ice in moved
            ]
        ),
    )


async def descriptions(
    transaction: Transaction, names: Sequence[str]
) -> dict[str, tuple[Labels, str]]:
    """Labels and note of the ICEs of these exact names, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT ice_name, labels, note FROM ice_tokens WHERE {is_in('ice_name', 1)}"
        " ORDER BY lower(ice_name)",
        as_json(list(names)),
    )
    return {name: (labels_from_text(labels), note) for name, labels, note in rows}


async def describe(
    transaction: Transaction, changes: Sequence[tuple[Ice, Labels, str, Event]]
) -> list[AppendedEvent]:
    """Store labels and note of each ICE, with its event."""
    await transaction.run(
        "UPDATE ice_tokens SET labels = given.labels, note = given.note, own_text = given.own"
        f" FROM {rows_of(1, 'name', 'labels', 'note', 'own')} WHERE ice_tokens.ice_name = given.name",
        as_json(
            [
                (
                    ice.ice_name,
                    labels_text(labels),
                    note,
                    own_text(ice.ice_name, ice.provisionedto, labels, note),
                )
                for ice, labels, note, _ in changes
            ]
        ),
    )
    return events.append(transaction, [event for *_, event in changes])


async def register(
    transaction: Transaction, changes: Sequence[tuple[Ice, Ice, Event]]
) -> list[AppendedEvent | None]:
    """`replace` for each that is not stale; None for the others. Of several changes of one ICE the first counts."""
    firsts: dict[str, tuple[Ice, Ice, Event]] = {}
    for change in changes:
        firsts.setdefault(change[0].ice_name, change)
    if len(firsts) > 1:
        # In one order: else two nodes that register the same ICEs could each hold one that the other waits for.
        await transaction.lock(
            f"SELECT 1 FROM ice_tokens WHERE {is_in('ice_name', 1)} ORDER BY lower(ice_name)",
            as_json(list(firsts)),
        )
    fresh = await _put(transaction, list(firsts.values()))
    logged = {
        name: events.append(transaction, [event])[0]
        for name, (_, _, event) in firsts.items()
        if name in fresh
    }
    return [
        logged.get(change[0].ice_name) if firsts[change[0].ice_name] is change else None
        for change in changes
    ]


async def expire_unused(transaction: Transaction, user: str, now: datetime) -> None:
    """Let the tokens of this user's ICEs expire that were not used for a registration yet."""
    await transaction.run(
        "UPDATE ice_tokens SET expireson = $3 WHERE provisionedto = $1 AND status = $2"
        " AND (expireson IS NULL OR expireson > $3)",
        user,
        Status.PROVISIONED.value,
        to_text(now),
    )


async def find(transaction: Transaction, name: str) -> Ice | None:
    """The ICE of this name in any case, locked until the transaction ends."""
    return next(iter((await find_many(transaction, [name])).values()), None)


async def find_many(transaction: Transaction, names: Sequence[str]) -> dict[str, Ice]:
    """The ICEs of these names, by folded name, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_COLUMNS} FROM ice_tokens WHERE {is_in('lower(ice_name)', 1)}"
        " ORDER BY lower(ice_name)",
        as_json([fold(name) for name in names if valid_name(name)]),
    )
    return {fold(row[0]): ice_from_row(row) for row in rows}


async def tagged_to(transaction: Transaction, user: str) -> list[Ice]:
    """The ICEs of the user of this exact name, in order, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_COLUMNS} FROM ice_tokens WHERE provisionedto = $1 ORDER BY lower(ice_name)", user
    )
    return [ice_from_row(row) for row in rows]


async def sealed_with(fetch: Fetch, status: Status) -> dict[str | None, list[str]]:
    """The names of the ICEs of this status by the id of the key of their tokens; under None if it is not known."""
    rows = await fetch(
        "SELECT key_id, ice_name FROM ice_tokens WHERE status = $1 ORDER BY lower(ice_name)",
        status.value,
    )
    needs: dict[str | None, list[str]] = {}
    for key_id, ice_name in rows:
        needs.setdefault(key_id, []).append(ice_name)
    return needs


async def of_unknown_key(fetch: Fetch, since: datetime | None) -> list[str]:
    """The provisioned ICEs whose token needs a key of unknown id and was made at `since` or later."""
    rows = await fetch(
        "SELECT ice_name FROM ice_tokens"
        " WHERE status = $1 AND key_id IS NULL AND provisionedon >= $2",
        Status.PROVISIONED.value,
        to_text_or_none(since) or "",
    )
    return [ice_name for (ice_name,) in rows]


def labels_text(labels: Labels) -> str:
    """The labels as a row stores them."""
    return msgspec.json.encode(labels, order="sorted").decode()


def pair_text(key: str, value: str) -> str:
    """How a label is written in `labels_text`. It stands nowhere else: a quote in a value is escaped."""
    return f"{msgspec.json.encode(key).decode()}:{msgspec.json.encode(value).decode()}"


def labels_from_text(text: str) -> Labels:
    """The labels that a row stores. Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(text, type=Labels)


def ice_from_row(row: Row) -> Ice:
    """A row of `NAMES`. Raises `StoreUnavailable` for a damaged one."""
    return from_columns(Ice, row, "the entry of")
