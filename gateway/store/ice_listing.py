"""Reads ICEs: one, or pages of those that a filter matches, and how many they are.

On SQLite the names of a page are read from an index that covers every filter and every sort (`ice_tokens_listing`);
then the rows of the page alone are read, with their sessions.

Tested in tests/contract/test_ices.py and tests/gateway/admin/api/test_labels.py.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import msgspec

from gateway.core.attention import Attention, attention
from gateway.core.ice import Ice, Status, fold
from gateway.core.labels import Labels
from gateway.core.times import from_text_or_none, to_text, to_text_or_none
from gateway.core.version_key import version_key
from gateway.store import ice_filter
from gateway.store.engine import Engine, Row, as_json, damaged, is_in
from gateway.store.ice_filter import IceFilter
from gateway.store.ices import NAMES, ice_from_row, labels_from_text
from gateway.store.last_seen import SHOWN, confirmations
from gateway.store.sessions import CONNECTION_COLUMNS, Connection, connection_from_row

_ICES: Final = "ice_tokens t"
_AND_USER: Final = "LEFT JOIN users u ON u.name = t.provisionedto"
_AND_CONFIRMED: Final = "LEFT JOIN ice_confirmed c ON c.node = t.node"
_DESCRIBED: Final = (
    *("labels", "note", "refusedon"),
    *("last_address", "last_version", "last_platform", "last_hostname"),
)
_LISTING: Final = f"""
    SELECT {", ".join(f"t.{name}" for name in (*NAMES, *_DESCRIBED))}, u.disabledon, {SHOWN},
        {CONNECTION_COLUMNS}
    FROM {_ICES} {_AND_USER} {_AND_CONFIRMED}
    LEFT JOIN ice_sessions s
        -- one of an older generation is dropped already, or about to be
        ON s.number = (
            SELECT max(number) FROM ice_sessions
            WHERE ice_name = t.ice_name AND generation = t.generation
        )
"""
_NAME: Final = "lower(t.ice_name)"


class SortKey(enum.StrEnum):
    """What a listing is sorted by; ICEs without a value come last."""

    NAME = "name"
    TYPE = "type"
    USER = "user"
    STATUS = "status"
    LAST_SEEN = "lastseen"
    VERSION = "version"
    PROVISIONED = "provisionedon"


_SORTED_BY: Final = {
    SortKey.NAME: _NAME,
    SortKey.TYPE: "t.ice_type",
    SortKey.USER: "u.name_folded",
    SortKey.STATUS: "t.status",
    SortKey.LAST_SEEN: SHOWN,
    SortKey.VERSION: "t.version_key",
    SortKey.PROVISIONED: "t.provisionedon",
}
_JOINED_FOR: Final = {SortKey.USER: _AND_USER, SortKey.LAST_SEEN: _AND_CONFIRMED}


@dataclass(frozen=True, slots=True)
class Order:
    """Sort by a key, then by name; descending reverses both. ICEs without a value come last, by name."""

    by: SortKey = SortKey.NAME
    descending: bool = False


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

    `refusedon` is when a genuine token of it was last refused.
    """

    ice: Ice
    lastseen: datetime | None = None
    connection: Connection | None = None
    labels: Labels = field(default_factory=dict)
    note: str = ""
    last: Last | None = None
    refusedon: datetime | None = None
    owner_disabled: bool = False

    def attention(self, now: datetime) -> list[Attention]:
        """Why a person should look at it."""
        return attention(
            self.ice, refusedon=self.refusedon, owner_disabled=self.owner_disabled, now=now
        )


BY_NAME: Final = Order()
_FEW: Final = 2
"""Of more parts, most are before a page that is far down. These are counted, not read."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a listing: the value that an ICE is sorted by, and its folded name."""

    value: str | None
    name: str

    @classmethod
    def of(cls, listed: Listed, order: Order) -> Mark:
        """The place of this ICE."""
        ice = listed.ice
        match order.by:
            case SortKey.LAST_SEEN:
                value = to_text_or_none(listed.lastseen)
            case SortKey.VERSION:
                value = None if listed.last is None else version_key(listed.last.version)
            case SortKey.PROVISIONED:
                value = to_text(ice.provisionedon)
            case _:
                value = None
        return cls(value, fold(ice.ice_name))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many ICEs: `offline` are registered and not connected."""

    total: int
    status: dict[Status, int]
    connected: int
    offline: int
    attention: dict[Attention, int]


NO_ICES: Final = Counts(0, dict.fromkeys(Status, 0), 0, 0, dict.fromkeys(Attention, 0))


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
            matching = part.matching(where, params)
            beyond = part.beyond(after, params)
            if beyond is None:
                continue
            # The names of a page first, from an index; then their rows.
            names = (
                f"SELECT t.ice_name FROM {part.source} WHERE {matching} AND {beyond}"
                f" {part.ordered()} LIMIT $1 OFFSET $2"
            )
            rows = await self._engine.fetch(
                f"{_LISTING} WHERE t.ice_name IN ({names}) {part.ordered()}", *params
            )
            found += map(_listed, rows)
            if len(found) == limit:
                break
            if offset:
                offset = 0 if rows else max(0, offset - await self._count(where, part))
        return found

    async def generations(self, where: IceFilter, limit: int) -> list[tuple[str, int]]:
        """Names and generations of at most `limit` ICEs, by name; a fraction of the time of a page of as many."""
        params: list[object] = [limit]
        rows = await self._engine.fetch(
            f"SELECT t.ice_name, t.generation FROM {_ICES} WHERE {ice_filter.matching(where, params)}"
            f" ORDER BY {_NAME} LIMIT $1",
            *params,
        )
        return [(name, generation) for name, generation in rows]

    async def _parts(self, where: IceFilter, order: Order) -> list[_Part]:
        """The parts of a listing, one after the other: ICEs that have what it is sorted by, and those without.

        If many ICEs match, an index is read in the order of the sort. Otherwise all that match are sorted.
        """
        # PostgreSQL has no index for this order: it would make each admission dearer there.
        if order.by is SortKey.LAST_SEEN and where.is_broad() and not self._engine.shared:
            return _parts_by_last_seen(await confirmations(self._engine.fetch), order)
        return _parts(where, order)

    async def count(self, where: IceFilter) -> int:
        """How many ICEs match."""
        return await self._count(where, _Part())

    async def _count(self, where: IceFilter, part: _Part) -> int:
        params: list[object] = []
        [(total,)] = await self._engine.fetch(
            f"SELECT count(*) FROM {part.source} WHERE {part.matching(where, params)}", *params
        )
        return int(total)

    async def counts(self, where: IceFilter, now: datetime) -> Counts:
        """How many of the ICEs that match are in each status, are connected, and need attention."""
        params: list[object] = []
        # Read with all ICEs that match, not grouped by status, for which SQLite would sort them.
        many = [
            "t.node IS NOT NULL",
            f"t.node IS NULL AND t.status = '{Status.REGISTERED}'",
            f"t.status = '{Status.REGISTERED}'",
        ]
        # Of all ICEs these are few: each has an index.
        few = [
            *(f"t.status = '{status}'" for status in Status if status is not Status.REGISTERED),
            *(ice_filter.needs(reason, now, params) for reason in Attention),
        ]
        counted = (
            f"(SELECT count(*) FROM {_ICES} WHERE {{}})"
            if where.is_empty()
            else "count(CASE WHEN {} THEN 1 END)"
        )
        columns = [
            *(f"count(CASE WHEN {one} THEN 1 END)" for one in many),
            *map(counted.format, few),
        ]
        [(total, connected, offline, registered, *numbers)] = await self._engine.fetch(
            f"SELECT count(*), {', '.join(columns)}"
            f" FROM {_ICES} WHERE {ice_filter.matching(where, params)}",
            *params,
        )
        number = iter(numbers)
        return Counts(
            total,
            {
                status: registered if status is Status.REGISTERED else next(number)
                for status in Status
            },
            connected,
            offline,
            {reason: next(number) for reason in Attention},
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a listing that is read in one order.

    Attributes:
        value: SQL for what it is sorted by before the name; empty for the name alone.
        condition: SQL for the ICEs in it; `{0}` stands for the first of `given`.
        source: the tables that both read.
        given: the parameters of the condition.
        tied: what all of them have that the listing is sorted by, if it is the same.
        covered: whether an index of the order has what `IceFilter.is_broad` allows.
    """

    value: str = ""
    condition: str = "TRUE"
    source: str = _ICES
    descending: bool = False
    given: tuple[str, ...] = ()
    tied: str | None = None
    covered: bool = False

    def matching(self, where: IceFilter, params: list[object]) -> str:
        """SQL for the ICEs in it that match the filter."""
        found = ice_filter.matching(where, params, covered=self.covered)
        first = len(params) + 1
        params += self.given
        numbers = (f"${first + place}" for place in range(len(self.given)))
        return f"{found} AND {self.condition.format(*numbers)}"

    def ordered(self) -> str:
        """SQL for its order."""
        direction = "DESC" if self.descending else "ASC"
        keys = (self.value, _NAME) if self.value else (_NAME,)
        return f"ORDER BY {', '.join(f'{key} {direction}' for key in keys)}"

    def beyond(self, after: Mark | None, params: list[object]) -> str | None:
        """SQL for what comes after the ICE of this mark; None if nothing does."""
        has_value = bool(self.value) or self.tied is not None
        if after is None or (not has_value and after.value is not None):
            return "TRUE"  # all ICEs without a value come after one that has one
        if has_value and after.value is None:
            return None
        if self.tied is not None and self.tied != after.value:
            return "TRUE" if (self.tied < str(after.value)) is self.descending else None
        further = "<" if self.descending else ">"
        params.append(after.name)
        if not self.value:
            return f"{_NAME} {further} ${len(params)}"
        params.append(after.value)
        return f"({self.value}, {_NAME}) {further} (${len(params)}, ${len(params) - 1})"


def _parts(where: IceFilter, order: Order) -> list[_Part]:
    """See `Ices._parts`."""
    by, descending = order.by, order.descending
    if by is SortKey.NAME:
        return [_Part(descending=descending)]
    value, needed = _SORTED_BY[by], _JOINED_FOR.get(by, "")
    if by is SortKey.LAST_SEEN or not where.is_broad():
        source = f"{_ICES} {needed}"
        value = f"coalesce({value}, '')"  # so that no index has this order
        given, none = f"{value} <> ''", f"{value} = ''"
    elif by is SortKey.USER:
        source = "users u JOIN ice_tokens t ON t.provisionedto = u.name"
        given, none = "t.provisionedto IS NOT NULL", "t.provisionedto IS NULL"
    else:
        source = _ICES
        given, none = f"{value} IS NOT NULL", f"{value} IS NULL"
    return [_Part(value, given, source, descending), _Part("", none, f"{_ICES} {needed}")]


def _parts_by_last_seen(confirmed: dict[str, list[str]], order: Order) -> list[_Part]:
    """See `Ices._parts`. `confirmed` are the nodes by the moment of their confirmation, the earliest first.

    The connected ICEs of a node have one value, its confirmation, except those that connected since. So the parts
    are, for each moment, the ICEs that have it as their value, in the order of names; and between two moments
    the others, in the order of the column. A part looks at nothing that changes from query to query.
    """
    parts: list[_Part] = []
    nodes = [node for those in confirmed.values() for node in those]
    earlier: str | None = None
    for moment, those in confirmed.items():
        parts.append(_between(earlier, moment, nodes, order))
        nodes = [node for node in nodes if node not in those]
        parts.append(
            _Part(
                condition=(
                    f"(({_at_one_of('{0}')} AND coalesce(t.lastseen, '') <= {{1}})"
                    f" OR (t.lastseen = {{1}} AND {_at_none_of('{2}')}))"
                ),
                descending=order.descending,
                given=(as_json(those), moment, as_json(nodes)),
                tied=moment,
                covered=True,
            )
        )
        earlier = moment
    parts.append(_between(earlier, None, nodes, order))
    if order.descending:
        parts.reverse()
    without = _between(None, None, [node for those in confirmed.values() for node in those], order)
    return [
        *parts,
        replace(
            without,
            value="",
            condition=f"t.lastseen IS NULL AND {_at_none_of('{0}')}",
            descending=False,
        ),
    ]


def _between(after: str | None, before: str | None, later: list[str], order: Order) -> _Part:
    """The ICEs that were seen between two moments; the nodes `later` confirmed theirs at `before` or later."""
    condition = f"t.lastseen IS NOT NULL AND {_at_none_of('{0}')}"
    given = [as_json(later)]
    for comparison, moment in ((">", after), ("<", before)):
        if moment is not None:
            condition += f" AND t.lastseen {comparison} {{{len(given)}}}"
            given.append(moment)
    return _Part(
        "t.lastseen", condition, descending=order.descending, given=tuple(given), covered=True
    )


def _at_one_of(nodes: str) -> str:
    """SQL for an ICE that is connected to one of the nodes of a JSON list."""
    return f"t.node IN (SELECT atom FROM json_each({nodes}))"


def _at_none_of(nodes: str) -> str:
    """SQL for any other ICE."""
    return f"(t.node IS NULL OR NOT {_at_one_of(nodes)})"


def _listed(row: Row) -> Listed:
    ice, rest = ice_from_row(row[: len(NAMES)]), row[len(NAMES) :]
    labels, note, refused, address, version, platform, hostname, disabled, seen = rest[:9]
    try:
        labels = labels_from_text(labels)
    except msgspec.DecodeError as error:
        raise damaged(f"the ICE {ice.ice_name}", error) from error
    return Listed(
        ice,
        from_text_or_none(seen),
        connection_from_row(rest[9:]),
        labels,
        note,
        None if address is None else Last(address, version, platform, hostname),
        from_text_or_none(refused),
        owner_disabled=disabled is not None,
    )
