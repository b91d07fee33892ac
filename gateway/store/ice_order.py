"""The order of a listing of ICEs, and the parts in which it is read.

Tested in tests/contract/test_ices.py and tests/contract/test_last_seen.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from gateway.core.attention import Expectations
from gateway.store import ice_filter
from gateway.store.engine import as_json
from gateway.store.ice_filter import IceFilter
from gateway.store.last_seen import SHOWN

ICES: Final = "ice_tokens t"
AND_USER: Final = "LEFT JOIN users u ON u.name = t.provisionedto"
AND_CONFIRMED: Final = "LEFT JOIN ice_confirmed c ON c.node = t.node"
NAME: Final = "lower(t.ice_name)"


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
    SortKey.NAME: NAME,
    SortKey.TYPE: "t.ice_type",
    SortKey.USER: "u.name_folded",
    SortKey.STATUS: "t.status",
    SortKey.LAST_SEEN: SHOWN,
    SortKey.VERSION: "t.version_key",
    SortKey.PROVISIONED: "t.provisionedon",
}
_JOINED_FOR: Final = {SortKey.USER: AND_USER, SortKey.LAST_SEEN: AND_CONFIRMED}


@dataclass(frozen=True, slots=True)
class Order:
    """Sort by a key, then by name; descending reverses both. ICEs without a value come last, by name."""

    by: SortKey = SortKey.NAME
    descending: bool = False


BY_NAME: Final = Order()


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a listing: the value that an ICE is sorted by, and its folded name."""

    value: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a listing that is read in one order.

    Attributes:
        value: SQL for what it is sorted by before the name; empty for the name alone.
        condition: SQL for the ICEs in it; `{0}` stands for the first of `given`.
        source: the tables that both read.
        given: the parameters of the condition.
        tied: what all of them have that the listing is sorted by, if it is the same.
        covered: whether an index of the order has what `IceFilter.is_broad` allows.
        is_sorted: whether the ICEs that match are sorted, rather than all ICEs read in the order of names.
        first: how many ICEs are looked at; 0 stands for all. A page that these do not fill is read from the next part.
    """

    value: str = ""
    condition: str = "TRUE"
    source: str = ICES
    descending: bool = False
    given: tuple[str, ...] = ()
    tied: str | None = None
    covered: bool = False
    is_sorted: bool = False
    first: int = 0

    def matching(self, where: IceFilter, expectations: Expectations, params: list[object]) -> str:
        """SQL for the ICEs in it that match the filter."""
        found = ice_filter.matching(where, expectations, params, covered=self.covered)
        first = len(params) + 1
        params += self.given
        numbers = (f"${first + place}" for place in range(len(self.given)))
        return f"{found} AND {self.condition.format(*numbers)}"

    def ordered(self) -> str:
        """SQL for its order."""
        direction = "DESC" if self.descending else "ASC"
        name = f"coalesce({NAME}, '')" if self.is_sorted else NAME  # no index has that order
        keys = (self.value, name) if self.value else (name,)
        return f"ORDER BY {', '.join(f'{key} {direction}' for key in keys)}"

    def among(self, beyond: str) -> str:
        """SQL for the tables that a page is read from; `beyond` is as below."""
        if not self.first:
            return self.source
        return f"(SELECT * FROM {self.source} WHERE {beyond} {self.ordered()} LIMIT {self.first}) t"

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
            return f"{NAME} {further} ${len(params)}"
        params.append(after.value)
        return f"({self.value}, {NAME}) {further} (${len(params)}, ${len(params) - 1})"


def parts(where: IceFilter, order: Order) -> list[Part]:
    """See `ice_listing.IceListing`."""
    by, descending = order.by, order.descending
    if by is SortKey.NAME:
        return [Part(descending=descending)]
    value, needed = _SORTED_BY[by], _JOINED_FOR.get(by, "")
    if by is SortKey.LAST_SEEN or not where.is_broad():
        source = f"{ICES} {needed}"
        value = f"coalesce({value}, '')"  # so that no index has this order
        given, none = f"{value} <> ''", f"{value} = ''"
    elif by is SortKey.USER:
        source = "users u JOIN ice_tokens t ON t.provisionedto = u.name"
        given, none = "t.provisionedto IS NOT NULL", "t.provisionedto IS NULL"
    else:
        source = ICES
        given, none = f"{value} IS NOT NULL", f"{value} IS NULL"
    return [Part(value, given, source, descending), Part("", none, f"{ICES} {needed}")]


def tries_by_name(order: Order, tried: int) -> list[Part]:
    """Two ways to read the same page by name; the second is for a page that the first does not fill.

    PostgreSQL cannot foresee how many ICEs match. If many do, the first `tried` of all names fill a page. Otherwise
    those that match are sorted: to read all rows in the order of an index takes twice as long as to read the table.
    """
    found = Part(descending=order.descending)
    return [replace(found, first=tried), replace(found, is_sorted=True)]


def parts_by_last_seen(confirmed: dict[str, list[str]], order: Order) -> list[Part]:
    """See `ice_listing.IceListing`. `confirmed` are the nodes by the moment of their confirmation, the earliest first.

    The connected ICEs of a node have one value, its confirmation, except those that connected since. So the parts
    are, for each moment, the ICEs that have it as their value, in the order of names; and between two moments
    the others, in the order of the column. A part looks at nothing that changes from query to query.
    """
    found: list[Part] = []
    nodes = [node for those in confirmed.values() for node in those]
    earlier: str | None = None
    for moment, those in confirmed.items():
        found.append(_between(earlier, moment, nodes, order))
        nodes = [node for node in nodes if node not in those]
        found.append(
            Part(
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
    found.append(_between(earlier, None, nodes, order))
    if order.descending:
        found.reverse()
    without = _between(None, None, [node for those in confirmed.values() for node in those], order)
    return [
        *found,
        replace(
            without,
            value="",
            condition=f"t.lastseen IS NULL AND {_at_none_of('{0}')}",
            descending=False,
        ),
    ]


def _between(after: str | None, before: str | None, later: list[str], order: Order) -> Part:
    """The ICEs that were seen between two moments; the nodes `later` confirmed theirs at `before` or later."""
    condition = f"t.lastseen IS NOT NULL AND {_at_none_of('{0}')}"
    given = [as_json(later)]
    for comparison, moment in ((">", after), ("<", before)):
        if moment is not None:
            condition += f" AND t.lastseen {comparison} {{{len(given)}}}"
            given.append(moment)
    return Part(
        "t.lastseen", condition, descending=order.descending, given=tuple(given), covered=True
    )


def _at_one_of(nodes: str) -> str:
    """SQL for an ICE that is connected to one of the nodes of a JSON list."""
    return f"t.node IN (SELECT atom FROM json_each({nodes}))"


def _at_none_of(nodes: str) -> str:
    """SQL for any other ICE."""
    return f"(t.node IS NULL OR NOT {_at_one_of(nodes)})"
