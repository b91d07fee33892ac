"""SQL of `ice_tokens`: rows are found, listed, and changed by compare-and-set together with their event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.audit_event import Event
from gateway.core.ice import Ice, IceType, Status, fold, valid_name
from gateway.core.times import from_text_or_none, to_text_or_none
from gateway.store import events
from gateway.store.engine import (
    AppendedEvent,
    Engine,
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    conditions,
    containing,
    from_columns,
    is_in,
    places,
    rows_of,
)
from gateway.store.last_seen import SHOWN
from gateway.store.sessions import CONNECTION_COLUMNS, Connection, connection_from_row

_NAMES: Final = tuple(Ice.__dataclass_fields__)
"""The columns that an `Ice` holds; `lastseen` is presence."""
_COLUMNS: Final = ", ".join(_NAMES)
_JOINED: Final = """
    ice_tokens t
    LEFT JOIN users u ON u.name = t.provisionedto
    LEFT JOIN ice_sessions s
        -- one of an older generation is dropped already, or about to be
        ON s.number = (
            SELECT max(number) FROM ice_sessions
            WHERE ice_name = t.ice_name AND generation = t.generation
        )
    LEFT JOIN ice_confirmed c ON c.node = s.node
"""
_LISTING: Final = f"""
    SELECT {", ".join(f"t.{name}" for name in _NAMES)}, {SHOWN},
        {CONNECTION_COLUMNS}
    FROM {_JOINED}
"""
_ORDERS: Final = {
    "name": "lower(t.ice_name)",
    "type": "t.ice_type",
    "user": "u.name_folded",
    "status": "t.status",
    "seen": SHOWN,
    "version": "s.version",
    "provisioned": "t.provisionedon",
}


@dataclass(frozen=True, slots=True)
class Order:
    """Sort by one of `ORDERS`; missing values come last."""

    by: str = "name"
    descending: bool = False


ORDERS: Final = tuple(_ORDERS)


@dataclass(frozen=True, slots=True)
class Listed:
    """An ICE with what is known of its connection."""

    ice: Ice
    lastseen: datetime | None
    connection: Connection | None


@dataclass(frozen=True, slots=True)
class IceFilter:
    """Which ICEs to list; None stands for all. `text` matches part of the name of the ICE or its user."""

    status: Status | None = None
    ice_type: IceType | None = None
    provisionedto: str | None = None
    connected: bool | None = None
    text: str | None = None


_GUARDS: Final = ("ice_name", "ice_type", "ice_token", "status", "generation")
"""The columns that must still be as they were read when a row is replaced."""
_CHANGED: Final = tuple(
    name for name in _NAMES if name not in ("ice_name", "ice_type", "provisionedto")
)
"""The columns that an action may change."""
_REPLACED: Final = ", ".join(f"{name} = new_{name}" for name in _CHANGED)
_UNCHANGED: Final = " AND ".join(f"ice_tokens.{name} = old_{name}" for name in _GUARDS)
_REPLACEMENTS: Final = rows_of(
    1,
    *(f"{'#' * (name == 'generation')}new_{name}" for name in _CHANGED),
    *(f"{'#' * (name == 'generation')}old_{name}" for name in _GUARDS),
)


class Stale(Exception):
    """The ICE has changed since it was read. The caller must let the transaction roll back."""


async def insert(transaction: Transaction, ice: Ice, event: Event) -> AppendedEvent | None:
    """Add an ICE and its event; None if the name is taken."""
    changed = await transaction.run(
        f"INSERT INTO ice_tokens ({_COLUMNS}) VALUES ({places(len(_NAMES))}) ON CONFLICT DO NOTHING",
        *columns_of(ice, _NAMES),
    )
    return events.append(transaction, [event])[0] if changed else None


async def replace(
    transaction: Transaction, changes: Sequence[tuple[Ice, Ice, Event]]
) -> list[AppendedEvent]:
    """Compare and swap: put each new ICE in place of the old one, with its event.

    The product's rule "find the entry with given ice_token, ice_type and ice_name", guarded by status
    and generation, too.

    Raises:
        Stale: one of the old ICEs is no longer what the table holds.
    """
    changed = await transaction.run(
        f"UPDATE ice_tokens SET {_REPLACED} FROM {_REPLACEMENTS} WHERE {_UNCHANGED}",
        as_json([columns_of(new, _CHANGED) + columns_of(old, _GUARDS) for old, new, _ in changes]),
    )
    if changed != len(changes):
        raise Stale
    return events.append(transaction, [event for _, _, event in changes])


async def swap(transaction: Transaction, old: Ice, new: Ice, event: Event) -> AppendedEvent | None:
    """`replace` for one ICE; None if it is stale.

    It returns rather than raises, so that the other units of the group still commit.
    """
    try:
        [appended] = await replace(transaction, [(old, new, event)])
    except Stale:
        return None
    return appended


async def find_many(transaction: Transaction, names: Sequence[str]) -> dict[str, Ice]:
    """The ICEs of these names, by folded name, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_COLUMNS} FROM ice_tokens WHERE {is_in('lower(ice_name)', 1)}"
        " ORDER BY lower(ice_name)",
        as_json([fold(name) for name in names if valid_name(name)]),
    )
    return {fold(row[0]): _from_row(row) for row in rows}


async def any_ice(fetch: Fetch) -> bool:
    """Whether any ICE was ever provisioned."""
    return bool(await fetch("SELECT 1 FROM ice_tokens LIMIT 1"))


async def sealed_with(fetch: Fetch) -> dict[str | None, list[str]]:
    """The names of the ICEs whose tokens need a key, by its id; under None those whose key is not known."""
    rows = await fetch(
        "SELECT key_id, ice_name FROM ice_tokens WHERE status <> $1 ORDER BY lower(ice_name)",
        Status.DEREGISTERED.value,
    )
    needs: dict[str | None, list[str]] = {}
    for key_id, ice_name in rows:
        needs.setdefault(key_id, []).append(ice_name)
    return needs


async def of_unknown_key(fetch: Fetch, since: datetime | None) -> list[str]:
    """The ICEs whose token needs a key of unknown id and was made at `since` or later."""
    rows = await fetch(
        "SELECT ice_name FROM ice_tokens"
        " WHERE status <> $1 AND key_id IS NULL AND provisionedon >= $2",
        Status.DEREGISTERED.value,
        to_text_or_none(since) or "",
    )
    return [ice_name for (ice_name,) in rows]


class Ices:
    """Reads the table."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def find(self, ice_name: str) -> Listed | None:
        """The ICE of this name, case folded."""
        rows = await self._engine.fetch(f"{_LISTING} WHERE lower(t.ice_name) = $1", fold(ice_name))
        return _listed(rows[0]) if rows else None

    async def standing(self, names: Sequence[str]) -> dict[str, tuple[int, Status]]:
        """Generation and status of these ICEs, to compare a node's sessions with the table."""
        rows = await self._engine.fetch(
            f"SELECT ice_name, generation, status FROM ice_tokens WHERE {is_in('ice_name', 1)}",
            as_json(list(names)),
        )
        return {name: (generation, Status(status)) for name, generation, status in rows}

    async def page(self, where: IceFilter, limit: int, after: str | None) -> list[Listed]:
        """At most `limit` ICEs in order of their folded names, after the folded name `after`."""
        params: list[object] = [limit, after or ""]
        rows = await self._engine.fetch(
            f"{_LISTING} WHERE {_conditions(where, params)} AND lower(t.ice_name) > $2"
            " ORDER BY lower(t.ice_name) LIMIT $1",
            *params,
        )
        return [_listed(row) for row in rows]

    async def sorted(
        self, where: IceFilter, order: Order, limit: int, offset: int
    ) -> tuple[list[Listed], int]:
        """A page in another order, and the number of all; it reads every match, but people sort rarely."""
        params: list[object] = [limit, offset]
        column, direction = _ORDERS[order.by], "DESC" if order.descending else "ASC"
        rows = await self._engine.fetch(
            f"{_LISTING} WHERE {_conditions(where, params)}"
            f" ORDER BY {column} IS NULL, {column} {direction}, lower(t.ice_name)"
            " LIMIT $1 OFFSET $2",
            *params,
        )
        params = []
        [(total,)] = await self._engine.fetch(
            f"SELECT count(*) FROM {_JOINED} WHERE {_conditions(where, params)}", *params
        )
        return [_listed(row) for row in rows], int(total)


def _conditions(where: IceFilter, params: list[object]) -> str:
    """SQL for the filter; its parameters are added to `params`."""
    connected = {None: "", True: " AND s.number IS NOT NULL", False: " AND s.number IS NULL"}
    return (
        conditions(
            params,
            ("t.status = {0}", where.status),
            ("t.ice_type = {0}", where.ice_type),
            ("u.name_folded = {0}", where.provisionedto),
            (
                "(lower(t.ice_name) LIKE {0} ESCAPE '\\' OR u.name_folded LIKE {0} ESCAPE '\\')",
                None if where.text is None else containing(where.text),
            ),
        )
        + connected[where.connected]
    )


def _from_row(row: Row) -> Ice:
    return from_columns(Ice, row, f"the entry of {row[0]}")


def _listed(row: Row) -> Listed:
    return Listed(
        _from_row(row[: len(_NAMES)]),
        from_text_or_none(row[len(_NAMES)]),
        connection_from_row(row[len(_NAMES) + 1 :]),
    )
