"""Reads ICEs: one, or pages of those that a filter matches, and how many they are.

On SQLite the names of a page are read from an index that covers every filter and every sort (`ice_tokens_listing`);
then the rows of the page alone are read, with their sessions. On PostgreSQL such an index would make each admission
dearer: a filter reads the rows, in which the columns it compares come first.

Tested in tests/contract/test_ices.py and tests/gateway/admin/api/test_labels.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from gateway.core.attention import NO_EXPECTATIONS, Attention, Expectations, attention
from gateway.core.consent import Accepts
from gateway.core.ice import Ice, Status, fold
from gateway.core.labels import Labels
from gateway.core.pause import Pause, standing
from gateway.core.times import from_text_or_none, to_text, to_text_or_none
from gateway.core.version_key import version_key
from gateway.store import ice_filter, ice_order, pauses
from gateway.store.engine import Engine, Row, as_json, damaged, is_in
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_order import (
    AND_CONFIRMED,
    AND_USER,
    BY_NAME,
    ICES,
    NAME,
    Mark,
    Order,
    Part,
    SortKey,
)
from gateway.store.ices import NAMES, ice_from_row, labels_from_text
from gateway.store.last_seen import SHOWN, confirmations
from gateway.store.sessions import (
    CONNECTION_COLUMNS,
    Connection,
    accepts_in,
    connection_from_row,
)

_DESCRIBED: Final = (
    *("labels", "note", "accepts", "refusedon", "duplicateon"),
    *("last_address", "last_version", "last_platform", "last_hostname"),
    *pauses.COLUMNS,
)
_LISTING: Final = f"""
    SELECT {", ".join(f"t.{name}" for name in (*NAMES, *_DESCRIBED))}, u.disabledon, {SHOWN},
        {CONNECTION_COLUMNS}
    FROM {ICES} {AND_USER} {AND_CONFIRMED}
    LEFT JOIN ice_sessions s
        -- one of an older generation is dropped already, or about to be
        ON s.number = (
            SELECT max(number) FROM ice_sessions
            WHERE ice_name = t.ice_name AND generation = t.generation
        )
"""
_FEW: Final = 2
"""Of more parts, most are before a page that is far down. These are counted, not read."""
_TRIED: Final = 5_000
"""The ICEs among which PostgreSQL looks for a page first: 1 % of them fill it."""


@dataclass(frozen=True, slots=True)
class Last:
    """What was known of an ICE's newest session; the ICE itself reported all but the address."""

    address: str
    version: str | None
    platform: str | None
    hostname: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """An ICE with what an admin says of it, and what is known of its connections.

    `accepts` is what it last said others may send, UNSET if it never said; `pause` may be over. `refusedon` is when a
    genuine token of it was last refused, `duplicateon` when two running copies of it were last found.
    """

    ice: Ice
    lastseen: datetime | None = None
    connection: Connection | None = None
    labels: Labels = field(default_factory=dict)
    note: str = ""
    last: Last | None = None
    accepts: Accepts | UnsetType = UNSET
    pause: Pause | None = None
    refusedon: datetime | None = None
    duplicateon: datetime | None = None
    owner_disabled: bool = False
    expectations: Expectations = NO_EXPECTATIONS

    def attention(self, now: datetime) -> list[Attention]:
        """Why a person should look at it."""
        version = None if self.last is None else self.last.version
        return attention(
            self.ice,
            refusedon=self.refusedon,
            duplicateon=self.duplicateon,
            owner_disabled=self.owner_disabled,
            outdated=self.expectations.is_outdated(version),
            now=now,
        )

    def paused(self, now: datetime) -> Pause | None:
        """Its pause, if it holds at this time."""
        return standing(self.pause, now)

    def is_inactive(self, now: datetime) -> bool:
        """Whether it is registered, not connected, and was not seen for too long."""
        since = self.expectations.inactive_since(now)
        seen = self.lastseen or self.ice.registeredon
        if since is None or seen is None or self.connection is not None:
            return False
        return self.ice.status is Status.REGISTERED and seen < since

    def mark(self, order: Order) -> Mark:
        """Its place in a listing of this order."""
        match order.by:
            case SortKey.LAST_SEEN:
                value = to_text_or_none(self.lastseen)
            case SortKey.VERSION:
                value = None if self.last is None else version_key(self.last.version)
            case SortKey.PROVISIONED:
                value = to_text(self.ice.provisionedon)
            case _:
                value = None
        return Mark(value, fold(self.ice.ice_name))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many ICEs: `offline` are registered and not connected, `inactive` are those not seen for too long."""

    total: int
    status: dict[Status, int]
    connected: int
    offline: int
    inactive: int
    paused: int
    attention: dict[Attention, int]


NO_ICES: Final = Counts(0, dict.fromkeys(Status, 0), 0, 0, 0, 0, dict.fromkeys(Attention, 0))


class IceListing:
    """Reads the table; `expectations` say which ICEs are outdated and inactive. `tried` is for tests."""

    def __init__(
        self,
        engine: Engine,
        expectations: Expectations = NO_EXPECTATIONS,
        *,
        tried: int = _TRIED,
    ) -> None:
        self._engine = engine
        self._expectations = expectations
        self._tried = tried

    async def find(self, ice_name: str) -> Listed | None:
        """The ICE of this name, case folded."""
        rows = await self._engine.fetch(f"{_LISTING} WHERE lower(t.ice_name) = $1", fold(ice_name))
        return _listed(rows[0], self._expectations) if rows else None

    async def standing(self, names: Sequence[str]) -> dict[str, tuple[int, Status]]:
        """Generation and status of these ICEs, to compare a node's sessions with the table."""
        rows = await self._engine.fetch(
            f"SELECT ice_name, generation, status FROM ice_tokens WHERE {is_in('ice_name', 1)}",
            as_json(list(names)),
        )
        return {name: (generation, Status(status)) for name, generation, status in rows}

    async def page(
        self,
        where: IceFilter,
        limit: int,
        *,
        order: Order = BY_NAME,
        after: Mark | None = None,
        offset: int = 0,
    ) -> list[Listed]:
        """At most `limit` ICEs in this order, after the ICE of the mark `after`, or from the `offset`th on."""
        found: list[Listed] = []
        parts = await self._parts(where, order)
        for part in parts:
            if offset and len(parts) > _FEW:
                total = await self._count(where, part)
                if total <= offset:
                    offset -= total
                    continue
            params: list[object] = [limit - len(found), offset]
            matching = part.matching(where, self._expectations, params)
            beyond = part.beyond(after, params)
            if beyond is None:
                continue
            # The names of a page first, from an index; then their rows.
            names = (
                f"SELECT t.ice_name FROM {part.among(beyond)} WHERE {matching} AND {beyond}"
                f" {part.ordered()} LIMIT $1 OFFSET $2"
            )
            rows = await self._engine.fetch(
                f"{_LISTING} WHERE t.ice_name IN ({names}) {part.ordered()}", *params
            )
            if part.first and len(rows) < limit:
                continue
            found += [_listed(row, self._expectations) for row in rows]
            if len(found) == limit:
                break
            if offset:
                offset = 0 if rows else max(0, offset - await self._count(where, part))
        return found

    async def generations(self, where: IceFilter, limit: int) -> list[tuple[str, int]]:
        """Names and generations of at most `limit` ICEs, by name; a fraction of the time of a page of as many."""
        params: list[object] = [limit]
        rows = await self._engine.fetch(
            f"SELECT t.ice_name, t.generation FROM {ICES} WHERE {ice_filter.matching(where, self._expectations, params)}"
            f" ORDER BY {NAME} LIMIT $1",
            *params,
        )
        return [(name, generation) for name, generation in rows]

    async def _parts(self, where: IceFilter, order: Order) -> list[Part]:
        """The parts of a listing, one after the other: ICEs that have what it is sorted by, and those without.

        If many ICEs match, an index is read in the order of the sort. Otherwise all that match are sorted. PostgreSQL
        tries one, then the other.
        """
        # PostgreSQL has no index for this order: it would make each admission dearer there.
        if order.by is SortKey.LAST_SEEN and where.is_broad() and not self._engine.shared:
            return ice_order.parts_by_last_seen(await confirmations(self._engine.fetch), order)
        if order.by is SortKey.NAME and not where.is_broad() and self._engine.shared:
            return ice_order.tries_by_name(order, self._tried)
        return ice_order.parts(where, order)

    async def count(self, where: IceFilter) -> int:
        """How many ICEs match."""
        return await self._count(where, Part())

    async def _count(self, where: IceFilter, part: Part) -> int:
        params: list[object] = []
        [(total,)] = await self._engine.fetch(
            f"SELECT count(*) FROM {part.source} WHERE {part.matching(where, self._expectations, params)}",
            *params,
        )
        return int(total)

    async def counts(self, where: IceFilter, now: datetime) -> Counts:
        """How many of the ICEs that match are in each status, are connected, and need attention."""
        params: list[object] = []
        wanted: dict[str, str] = {
            "connected": "t.node IS NOT NULL",
            "offline": f"t.node IS NULL AND t.status = '{Status.REGISTERED}'",
            "unseen": ice_filter.inactive(self._expectations, now, params, seen="t.lastseen"),
            "never seen": "t.lastseen IS NULL AND "
            + ice_filter.inactive(self._expectations, now, params, seen="t.registeredon"),
            "paused": ice_filter.is_paused(now, params),
            **{status: f"t.status = '{status}'" for status in Status},
            **{
                reason: ice_filter.needs(reason, self._expectations, now, params)
                for reason in Attention
            },
        }
        # Of all ICEs these are few: each has an index, but PostgreSQL has none of `lastseen`, and reads the rows of
        # the outdated ICEs.
        few: set[str] = {*Status, *Attention, "paused"} - {Status.REGISTERED}
        if self._engine.shared:
            few.remove(Attention.OUTDATED)
        else:
            few.add("never seen")
        # The others are read with all ICEs that match, not grouped by status, for which SQLite would sort them.
        columns = (
            f"(SELECT count(*) FROM {ICES} WHERE {condition})"
            if where.is_empty() and name in few
            else f"count(CASE WHEN {condition} THEN 1 END)"
            for name, condition in wanted.items()
        )
        [(total, *numbers)] = await self._engine.fetch(
            f"SELECT count(*), {', '.join(columns)}"
            f" FROM {ICES} WHERE {ice_filter.matching(where, self._expectations, params)}",
            *params,
        )
        found = dict(zip(wanted, numbers, strict=True))
        return Counts(
            total,
            {status: found[status] for status in Status},
            found["connected"],
            found["offline"],
            found["unseen"] + found["never seen"],
            found["paused"],
            {reason: found[reason] for reason in Attention},
        )


def _listed(row: Row, expectations: Expectations) -> Listed:
    ice, known = ice_from_row(row[: len(NAMES)]), row[len(NAMES) :]
    labels, note, said, refused, duplicate, address, version, platform, hostname, *rest = known
    pause = pauses.pause_from_row(tuple(rest[: len(pauses.COLUMNS)]))
    disabled, seen, *session = rest[len(pauses.COLUMNS) :]
    connection = connection_from_row(tuple(session))
    accepts = accepts_in(said, f"the ICE {ice.ice_name}")
    if connection is not None and connection.accepts is UNSET:
        connection = msgspec.structs.replace(connection, accepts=accepts)
    elif connection is not None:
        accepts = connection.accepts
    try:
        labels = labels_from_text(labels)
    except msgspec.DecodeError as error:
        raise damaged(f"the ICE {ice.ice_name}", error) from error
    return Listed(
        ice,
        from_text_or_none(seen),
        connection,
        labels,
        note,
        None if address is None else Last(address, version, platform, hostname),
        accepts,
        pause,
        from_text_or_none(refused),
        from_text_or_none(duplicate),
        owner_disabled=disabled is not None,
        expectations=expectations,
    )
