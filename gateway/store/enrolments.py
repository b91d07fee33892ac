"""SQL of `enrolment_keys` and `enrolments`.

Tested in tests/contract/test_enrolments.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from gateway.core.enrolment import Enrolment, EnrolmentKey, EnrolmentState
from gateway.core.ice import fold
from gateway.core.times import to_text
from gateway.store.engine import (
    Engine,
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
from gateway.store.ices import labels_from_text, labels_text

_KEY_NAMES: Final = tuple(EnrolmentKey.__dataclass_fields__)
_KEY: Final = ", ".join(_KEY_NAMES)
_NAMES: Final = tuple(Enrolment.__dataclass_fields__)
_COLUMNS: Final = ", ".join(_NAMES)
_CHANGED: Final = tuple(name for name in _NAMES if name not in ("id", "key_id", "thumbprint"))
_MACHINE: Final = (
    f"(key_id, thumbprint, lower(ice_name)) IN (SELECT k, t, n FROM {rows_of(1, 'k', 't', 'n')})"
)
_NEW: Final = rows_of(
    1, *(f"{'#' * (name in ('replaces', 'generation'))}{name}" for name in _NAMES)
)
_OPEN: Final = "state IN ('waiting', 'approved')"
_STANDING: Final = (
    "SELECT id FROM enrolment_keys WHERE revokedon IS NULL AND expireson > $1 AND uses < max_uses"
)


MachineName = tuple[str, str, str]
"""An enrolment key's id, the thumbprint of a machine's key pair, and the folded name that it asks for."""


def machine_of(enrolment: Enrolment) -> MachineName:
    """Whose it is: a machine has one enrolment for each name."""
    return enrolment.key_id, enrolment.thumbprint, fold(enrolment.ice_name)


async def add_key(transaction: Transaction, key: EnrolmentKey) -> None:
    """Store a new key."""
    await transaction.run(
        f"INSERT INTO enrolment_keys ({_KEY}) VALUES ({places(len(_KEY_NAMES))})",
        *columns_of(replace(key, labels={}), _KEY_NAMES[:-1]),
        labels_text(key.labels),
    )


async def find_key(transaction: Transaction, key_id: str) -> EnrolmentKey | None:
    """The key of this id, locked until the transaction ends."""
    rows = await transaction.hold(f"SELECT {_KEY} FROM enrolment_keys WHERE id = $1", key_id)
    return _key(rows[0]) if rows else None


async def find_keys(transaction: Transaction, ids: Collection[str]) -> dict[str, EnrolmentKey]:
    """The keys of these ids, by id, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_KEY} FROM enrolment_keys WHERE {is_in('id', 1)} ORDER BY id", as_json(list(ids))
    )
    return {key.id: key for key in map(_key, rows)}


async def find_key_of(transaction: Transaction, enrolment_id: str) -> EnrolmentKey | None:
    """The key of this enrolment, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_KEY} FROM enrolment_keys"
        " WHERE id = (SELECT key_id FROM enrolments e WHERE e.id = $1)",
        enrolment_id,
    )
    return _key(rows[0]) if rows else None


async def revoke_key(transaction: Transaction, key_id: str, now: datetime) -> None:
    """Revoke a key, and end what waits for it."""
    await transaction.run(
        "UPDATE enrolment_keys SET revokedon = $2 WHERE id = $1 AND revokedon IS NULL",
        key_id,
        to_text(now),
    )
    await transaction.run(
        f"UPDATE enrolments SET state = $2 WHERE key_id = $1 AND {_OPEN}",
        key_id,
        EnrolmentState.ENDED.value,
    )


async def count_uses(transaction: Transaction, key_id: str, uses: int) -> None:
    """Count more ICEs of a key that the caller has locked."""
    await transaction.run("UPDATE enrolment_keys SET uses = uses + $2 WHERE id = $1", key_id, uses)


async def forget_old(transaction: Transaction, now: datetime) -> None:
    """Delete the enrolments whose time is over."""
    await transaction.run("DELETE FROM enrolments WHERE expireson <= $1", to_text(now))


async def find(transaction: Transaction, enrolment_id: str, now: datetime) -> Enrolment | None:
    """The enrolment of this id, locked until the transaction ends."""
    return (await find_many(transaction, [enrolment_id], now)).get(enrolment_id)


async def find_many(
    transaction: Transaction, ids: Collection[str], now: datetime
) -> dict[str, Enrolment]:
    """The enrolments of these ids, by id, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_COLUMNS} FROM enrolments WHERE {is_in('id', 1)} AND expireson > $2 ORDER BY id",
        as_json(list(ids)),
        to_text(now),
    )
    return {enrolment.id: enrolment for enrolment in map(_enrolment, rows)}


async def find_of_machines(
    transaction: Transaction, machines: Collection[MachineName], now: datetime
) -> dict[MachineName, Enrolment]:
    """What these key pairs have asked for before under these names, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_COLUMNS} FROM enrolments WHERE {_MACHINE} AND expireson > $2 ORDER BY id",
        as_json(list(machines)),
        to_text(now),
    )
    return {machine_of(enrolment): enrolment for enrolment in map(_enrolment, rows)}


async def has_asked(transaction: Transaction, key_id: str, thumbprint: str, now: datetime) -> bool:
    """Whether this key pair has asked for any ICE with this key before."""
    return bool(
        await transaction.fetch(
            "SELECT 1 FROM enrolments WHERE key_id = $1 AND thumbprint = $2 AND expireson > $3",
            key_id,
            thumbprint,
            to_text(now),
        )
    )


async def count_waiting(transaction: Transaction, key_id: str, now: datetime) -> int:
    """How many enrolments wait for this key."""
    [(count,)] = await transaction.fetch(
        f"SELECT count(*) FROM enrolments WHERE key_id = $1 AND {_OPEN} AND expireson > $2",
        key_id,
        to_text(now),
    )
    return int(count)


async def approved_for(transaction: Transaction, ice_name: str, now: datetime) -> bool:
    """Whether another machine has the approval for this name, by a key that still lets it enrol."""
    return bool(
        await transaction.fetch(
            f"SELECT 1 FROM enrolments e JOIN ({_STANDING}) k ON k.id = e.key_id"
            " WHERE lower(e.ice_name) = $2 AND e.state = $3 AND e.expireson > $1",
            to_text(now),
            fold(ice_name),
            EnrolmentState.APPROVED.value,
        )
    )


async def put(transaction: Transaction, new: Sequence[Enrolment]) -> None:
    """Store enrolments, each in place of what its key pair has asked for before under its name."""
    machines = [machine_of(enrolment) for enrolment in new]
    await transaction.run(f"DELETE FROM enrolments WHERE {_MACHINE}", as_json(machines))
    await transaction.run(
        f"INSERT INTO enrolments ({_COLUMNS}) SELECT {_COLUMNS} FROM {_NEW}",
        as_json([columns_of(enrolment, _NAMES) for enrolment in new]),
    )


async def update(transaction: Transaction, enrolment: Enrolment) -> None:
    """Store what has changed of an enrolment that the caller has locked."""
    changes = ", ".join(f"{name} = ${place}" for place, name in enumerate(_CHANGED, 2))
    await transaction.run(
        f"UPDATE enrolments SET {changes} WHERE id = $1",
        enrolment.id,
        *columns_of(enrolment, _CHANGED),
    )


async def standing_ids(fetch: Fetch, now: datetime) -> list[str]:
    """The ids of the keys that have uses left and were neither revoked nor have expired."""
    rows = await fetch(f"{_STANDING} ORDER BY id", to_text(now))
    return [key_id for (key_id,) in rows]


class Enrolments:
    """Reads enrolment keys and enrolments."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def keys_before(
        self, limit: int, place: str | None, offset: int = 0
    ) -> list[EnrolmentKey]:
        """Keys, newest first, that come after the `EnrolmentKey.place` of another, but for the first `offset`."""
        params: list[object] = [limit, offset]
        matching = conditions(params, ("createdon || ' ' || id < {0}", place))
        rows = await self._engine.fetch(
            f"SELECT {_KEY} FROM enrolment_keys WHERE {matching}"
            " ORDER BY createdon DESC, id DESC LIMIT $1 OFFSET $2",
            *params,
        )
        return [_key(row) for row in rows]

    async def count_keys(self) -> int:
        """How many keys there are."""
        [(count,)] = await self._engine.fetch("SELECT count(*) FROM enrolment_keys")
        return int(count)

    async def keys(self, ids: Collection[str]) -> dict[str, EnrolmentKey]:
        """The keys of these ids, by id."""
        rows = await self._engine.fetch(
            f"SELECT {_KEY} FROM enrolment_keys WHERE {is_in('id', 1)}", as_json(list(ids))
        )
        return {key.id: key for key in map(_key, rows)}

    async def key(self, key_id: str) -> EnrolmentKey | None:
        """The key of this id."""
        rows = await self._engine.fetch(f"SELECT {_KEY} FROM enrolment_keys WHERE id = $1", key_id)
        return _key(rows[0]) if rows else None

    async def after(
        self,
        state: EnrolmentState | None,
        now: datetime,
        limit: int,
        place: str | None = None,
        offset: int = 0,
    ) -> list[Enrolment]:
        """Enrolments, oldest first, that come after the `Enrolment.place` of another, but for the first `offset`."""
        params: list[object] = [limit, to_text(now), offset]
        matching = conditions(
            params,
            ("state = {0}", None if state is None else state.value),
            ("createdon || ' ' || id > {0}", place),
        )
        rows = await self._engine.fetch(
            f"SELECT {_COLUMNS} FROM enrolments WHERE expireson > $2 AND {matching}"
            " ORDER BY createdon, id LIMIT $1 OFFSET $3",
            *params,
        )
        return [_enrolment(row) for row in rows]

    async def one(self, enrolment_id: str, now: datetime) -> Enrolment | None:
        """The enrolment of this id."""
        rows = await self._engine.fetch(
            f"SELECT {_COLUMNS} FROM enrolments WHERE id = $1 AND expireson > $2",
            enrolment_id,
            to_text(now),
        )
        return _enrolment(rows[0]) if rows else None

    async def waiting(self, now: datetime) -> int:
        """How many enrolments wait for an admin."""
        [(count,)] = await self._engine.fetch(
            "SELECT count(*) FROM enrolments WHERE state = $1 AND expireson > $2",
            EnrolmentState.WAITING.value,
            to_text(now),
        )
        return int(count)


def _key(row: Row) -> EnrolmentKey:
    values = dict(zip(_KEY_NAMES, row, strict=True))
    values |= {"approval": bool(values["approval"]), "labels": labels_from_text(values["labels"])}
    return from_columns(EnrolmentKey, tuple(values.values()), f"the enrolment key {row[0]}")


def _enrolment(row: Row) -> Enrolment:
    values = dict(zip(_NAMES, row, strict=True))
    values["replaces"] = bool(values["replaces"])
    return from_columns(Enrolment, tuple(values.values()), f"the enrolment {row[0]}")
