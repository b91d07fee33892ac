"""Which ICEs a listing finds, and the SQL for that.

Tested in tests/contract/test_ices.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.attention import DUPLICATE_FOR, REFUSED_FOR, Attention, Expectations
from gateway.core.ice import IceType, Status
from gateway.core.pool import Pool
from gateway.core.times import to_text, to_text_or_none
from gateway.store.engine import conditions, containing
from gateway.store.ices import pair_text
from gateway.store.last_seen import seen_after, seen_before
from gateway.store.pauses import paused

_COMPARED: Final = "{0} = {{0}}"
# SQLite prefers the index of a column that is compared to the one of the order, and sorts what it finds.
_COVERED: Final = "coalesce({0}, '') = {{0}}"
# As `NOT IN`, so that SQLite does not read the index of `status`.
_OF_USE: Final = f"t.status NOT IN ('{Status.DEREGISTERED}')"
_DISABLED: Final = "SELECT name FROM users WHERE disabledon IS NOT NULL"


@dataclass(frozen=True, slots=True)
class IceFilter:
    """Which ICEs to list; None and empty stand for all.

    Attributes:
        provisionedto: the folded name of the owner.
        words: each must be in what is searched (`core.search`).
        labels: pairs that the ICE must have.
        pool: the ICE must belong to it.
        version_below: a key of `core.version_key`.
        needs_attention: for any reason.
        inactive: whether it is registered, not connected, and was not seen for too long.
        now: the present, for `inactive`, `paused`, `attention` and `needs_attention`.
    """

    status: Status | None = None
    ice_type: IceType | None = None
    provisionedto: str | None = None
    connected: bool | None = None
    inactive: bool | None = None
    paused: bool | None = None
    words: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    pool: Pool | None = None
    attention: Attention | None = None
    needs_attention: bool = False
    version_below: str | None = None
    lastseen_before: datetime | None = None
    lastseen_after: datetime | None = None
    now: datetime | None = None

    def is_empty(self) -> bool:
        """Whether it matches all ICEs."""
        return self == IceFilter(now=self.now)

    def is_broad(self) -> bool:
        """Whether it says nothing that few ICEs may match: then an index in the order of a sort ends soon."""
        broad = IceFilter(self.status, self.ice_type, connected=self.connected, now=self.now)
        return self == broad


def matching(
    where: IceFilter, expectations: Expectations, params: list[object], *, covered: bool = False
) -> str:
    """SQL for the filter; its parameters are added to `params`. See `ice_order.Part`."""
    compared = _COVERED if covered else _COMPARED
    found = [
        conditions(
            params,
            (compared.format("t.status"), where.status),
            (compared.format("t.ice_type"), where.ice_type),
            (
                "t.provisionedto = (SELECT name FROM users WHERE name_folded = {0})",
                where.provisionedto,
            ),
            ("t.version_key < {0}", where.version_below),
            (seen_before("{0}"), to_text_or_none(where.lastseen_before)),
            (seen_after("{0}"), to_text_or_none(where.lastseen_after)),
            *_having(where.labels),
            *(
                (
                    "(t.own_text LIKE {0} ESCAPE '\\' OR t.session_text LIKE {0} ESCAPE '\\')",
                    containing(word),
                )
                for word in where.words
            ),
        )
    ]
    if where.pool is not None:
        found.append(member(where.pool, params, covered=covered))
    if where.connected is not None:
        found.append(f"t.node IS {'NOT ' * where.connected}NULL")
    if where.inactive is not None:
        found.append(
            f"{'' if where.inactive else 'NOT '}({inactive(expectations, _now(where), params)})"
        )
    if where.paused is not None:
        found.append(f"{'' if where.paused else 'NOT '}{is_paused(_now(where), params)}")
    wanted: list[tuple[Attention, ...]] = []
    if where.attention is not None:
        wanted.append((where.attention,))
    if where.needs_attention:
        # `OR FALSE` would keep SQLite from reading an index for each reason.
        never = () if expectations.recommended else (Attention.OUTDATED,)
        wanted.append(tuple(reason for reason in Attention if reason not in never))
    for reasons in wanted:
        any_reason = (needs(reason, expectations, _now(where), params) for reason in reasons)
        found.append(f"({' OR '.join(any_reason)})")
    return " AND ".join(found)


def member(pool: Pool, params: list[object], *, covered: bool = False) -> str:
    """SQL for an ICE `t` that belongs to the pool; its parameters are added to `params`."""
    compared = _COVERED if covered else _COMPARED
    found = conditions(
        params, (compared.format("t.ice_type"), pool.ice_type), *_having(pool.labels.items())
    )
    return f"{found} AND {_OF_USE}"


MEMBER: Final = (
    "((p.ice_type IS NULL OR p.ice_type = t.ice_type) AND NOT EXISTS"
    " (SELECT 1 FROM json_each(p.pairs) AS needed WHERE instr(t.labels, needed.atom) = 0)"
    f" AND {_OF_USE})"
)
"""SQL for an ICE `t` that belongs to the pool `p`, a row of `ice_pools`. It says the same as `member`."""


def _having(labels: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return (("instr(t.labels, {0}) > 0", pair_text(*pair)) for pair in labels)


def _now(where: IceFilter) -> datetime:
    assert where.now is not None  # noqa: S101 - these conditions are always asked of a moment
    return where.now


def inactive(
    expectations: Expectations,
    now: datetime,
    params: list[object],
    *,
    seen: str = "coalesce(t.lastseen, t.registeredon)",
) -> str:
    """SQL for an inactive ICE, as `Listed.is_inactive` says; `seen` is SQL for when it was last seen."""
    since = expectations.inactive_since(now)
    if since is None:
        return "FALSE"
    params.append(to_text(since))
    return (
        # "Registered" as `NOT IN`, so that SQLite reads the index of `lastseen`, not that of `status`.
        f"t.node IS NULL AND t.status NOT IN ('{Status.PROVISIONED}', '{Status.DEREGISTERED}')"
        f" AND {seen} < ${len(params)}"
    )


def is_paused(now: datetime, params: list[object]) -> str:
    """SQL for an ICE that is paused at this time."""
    params.append(to_text(now))
    return paused("t", len(params))


def needs(
    reason: Attention, expectations: Expectations, now: datetime, params: list[object]
) -> str:
    """SQL for an ICE that needs attention for this reason, as `core.attention` says."""
    match reason:
        case Attention.REFUSED:
            return conditions(params, ("t.refusedon > {0}", to_text(now - REFUSED_FOR)))
        case Attention.DUPLICATE:
            return conditions(params, ("t.duplicateon > {0}", to_text(now - DUPLICATE_FOR)))
        case Attention.TOKEN_EXPIRED:
            return conditions(params, ("t.expireson <= {0}", to_text(now)))
        case Attention.OWNER_DISABLED:
            return conditions(
                params,
                (
                    f"t.status <> {{0}} AND t.provisionedto IN ({_DISABLED})",
                    Status.DEREGISTERED.value,
                ),
            )
        case Attention.OUTDATED if expectations.recommended is None:
            return "FALSE"
        case Attention.OUTDATED:
            return conditions(
                params,
                ("t.version_key < {0}", expectations.recommended),
                ("t.status <> {0}", Status.DEREGISTERED.value),
            )
