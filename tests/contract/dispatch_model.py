"""A simple model of what ICEs may be sent, over whole tables: the queries of `store` have to agree with it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from msgspec import UNSET, UnsetType

from gateway.core.consent import FIRST_WAIT, Accepts, accepts_from_text
from gateway.core.ice import IceType, Status
from gateway.core.labels import Labels
from gateway.core.operation import ACTIVE, Operation, State, Waits, allows
from gateway.core.pause import Pause
from gateway.core.times import from_text_or_none
from gateway.store.ices import labels_from_text
from gateway.store.operations import COLUMNS, Numbered, operation_from_row
from gateway.store.pauses import COLUMNS as PAUSE
from gateway.store.pauses import pause_from_row


@dataclass(frozen=True, slots=True)
class Member:
    """An ICE as the tables have it, with its newest session."""

    ice_name: str
    ice_type: IceType
    owner: str | None
    status: Status
    generation: int
    connected: bool
    labels: Labels
    accepts: Accepts | UnsetType
    pause: Pause | None
    session: str | None
    since: datetime | None

    def is_paused(self, now: datetime) -> bool:
        return self.pause is not None and not self.pause.is_over(now)

    def takes(self, operation: Operation, accepts: Accepts | UnsetType, *, decided: bool) -> bool:
        """Whether it accepts this operation; `decided`: without a word it accepts all by now."""
        if not allows(self.ice_type, operation.kind):
            return False
        if self.ice_type is IceType.CI_CD or operation.requested_by == self.owner:
            return True
        if accepts is UNSET:
            return decided
        return accepts is None or operation.kind in accepts

    def takes_now(self, operation: Operation, now: datetime) -> bool:
        """Likewise, by what the tables say."""
        waited = self.since is None or now - self.since >= timedelta(seconds=FIRST_WAIT)
        return self.takes(operation, self.accepts, decided=waited)


@dataclass(frozen=True, slots=True)
class Receiver:
    """A session that was sent an operation.

    `words` are what it may be held to have said; `decided`: it has been open for so long that without a word of its
    ICE it takes all.
    """

    session: str
    generation: int
    words: Collection[Accepts | UnsetType]
    decided: bool

    def may_take(self, ice: Member, operation: Operation) -> bool:
        return any(ice.takes(operation, word, decided=self.decided) for word in self.words)

    def must_take(self, ice: Member, operation: Operation) -> bool:
        return all(ice.takes(operation, word, decided=self.decided) for word in self.words)


@dataclass(frozen=True, slots=True)
class Tables:
    """ICEs by name, the types and labels of pools by name, and all operations, oldest first."""

    ices: dict[str, Member]
    pools: dict[str, tuple[IceType | None, Labels]]
    operations: Sequence[Numbered]

    def is_in(self, ice: Member, pool: str) -> bool:
        ice_type, labels = self.pools[pool]
        return (
            ice.status is not Status.DEREGISTERED
            and ice_type in (None, ice.ice_type)
            and labels.items() <= ice.labels.items()
        )

    def is_in_turn(self, one: Numbered) -> bool:
        """Whether no earlier operation of its schedule is unfinished."""
        schedule = one.operation.schedule
        return schedule is None or not any(
            other.operation.schedule == schedule and not other.operation.is_finished
            for other in itertools.takewhile(
                lambda other: other.number < one.number, self.operations
            )
        )

    def of_ice(self, ice: Member) -> list[Numbered]:
        """The unfinished operations that are its own, or that it works on."""
        return [
            one
            for one in self.operations
            if one.operation.ice_name == ice.ice_name and not one.operation.is_finished
        ]

    def waits(self, one: Numbered, now: datetime) -> Waits | None:
        """Why a queued operation waits."""
        operation = one.operation
        if not operation.is_due(now):
            return Waits.RUN_AT
        if operation.pool is not None:
            return self._waits_in_pool(one, operation.pool, now)
        ice = self.ices[operation.ice_name or ""]
        before = (
            other.operation.state in ACTIVE
            or (
                _order(other) < _order(one)
                and ice.takes_now(other.operation, now)
                and self.is_in_turn(other)
            )
            for other in self.of_ice(ice)
        )
        reasons = {
            Waits.OPERATION_BEFORE: any(before) or not self.is_in_turn(one),
            Waits.OFFLINE: not ice.connected,
            Waits.PAUSED: ice.is_paused(now),
            Waits.NOT_ACCEPTED: not ice.takes_now(operation, now),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _waits_in_pool(self, one: Numbered, pool: str, now: datetime) -> Waits | None:
        operation = one.operation
        if not self.is_in_turn(one):
            return Waits.OPERATION_BEFORE
        left = [
            ice
            for ice in self.ices.values()
            if self.is_in(ice, pool) and allows(ice.ice_type, operation.kind)
        ]
        conditions = {
            Waits.NO_ICE: lambda _: True,
            Waits.ALL_OFFLINE: lambda ice: ice.connected,
            Waits.PAUSED: lambda ice: not ice.is_paused(now),
            Waits.NOT_ACCEPTED: lambda ice: (
                ice.takes_now(operation, now)
                and (ice.session or "none").encode() not in operation.refused_by
            ),
            Waits.ALL_BUSY: lambda ice: not self._is_busy(ice, now),
        }
        for reason, holds in conditions.items():
            left = [ice for ice in left if holds(ice)]
            if not left:
                return reason
        return None

    def _is_busy(self, ice: Member, now: datetime) -> bool:
        return any(
            one.operation.state in ACTIVE
            or (
                one.operation.is_due(now)
                and ice.takes_now(one.operation, now)
                and self.is_in_turn(one)
            )
            for one in self.of_ice(ice)
        )

    def faults_of_sending(self, one: Numbered, to: Receiver, now: datetime) -> list[str]:
        """Why an operation that has just been marked as sent should not have been."""
        operation = one.operation
        ice = self.ices[operation.ice_name or ""]
        first = self._first(one, ice, to, now)
        faults = {
            f"its ICE is {ice.status}": ice.status is not Status.REGISTERED,
            f"its ICE has generation {ice.generation} now": ice.generation != to.generation,
            "its ICE is paused": ice.is_paused(now),
            "it is not due": not operation.is_due(now),
            f"of {operation.requested_by} its ICE takes {to.words}": not to.may_take(
                ice, operation
            ),
            "its ICE works on another": any(
                other.operation.state in ACTIVE and other.number != one.number
                for other in self.of_ice(ice)
            ),
            "an earlier one of its schedule is unfinished": not self.is_in_turn(one),
            f"{first} comes first": first is not None,
        }
        if operation.pool is not None:
            faults |= {
                f"its ICE is not in {operation.pool}": not self.is_in(ice, operation.pool),
                "this session has refused it": to.session.encode() in operation.refused_by,
            }
        return [fault for fault, holds in faults.items() if holds]

    def _first(self, one: Numbered, ice: Member, to: Receiver, now: datetime) -> str | None:
        """The operation that should have been sent before this one."""

        def is_of_pools(other: Numbered) -> bool:
            pool = other.operation.pool
            return (
                pool is not None
                and other.operation.deadline > now
                and self.is_in(ice, pool)
                and to.session.encode() not in other.operation.refused_by
            )

        earlier = [
            other
            for other in self.of_ice(ice)
            if one.operation.pool is not None or _order(other) < _order(one)
        ]
        if one.operation.pool is not None:
            earlier += [o for o in self.operations if o.number < one.number and is_of_pools(o)]
        for other in earlier:
            waits = other.operation.state is State.QUEUED and other.operation.is_due(now)
            may_go = waits and other.number != one.number and self.is_in_turn(other)
            if may_go and to.must_take(ice, other.operation):
                return other.operation.id
        return None

    def faults_of_occurrence(self, one: Numbered, now: datetime) -> Iterator[str]:
        """Why an occurrence should not have become this operation just now."""
        if not self.is_in_turn(one):
            yield "the one before is unfinished"
        if one.operation.ice_name is not None and one.operation.pool is None:
            ice = self.ices[one.operation.ice_name]
            if ice.status is not Status.REGISTERED:
                yield f"its ICE is {ice.status}"
            if ice.is_paused(now):
                yield "its ICE is paused"


def _order(one: Numbered) -> tuple[datetime, int]:
    return one.operation.run_at or one.operation.created, one.number


_PAUSE: Final = ", ".join(f"t.{name}" for name in PAUSE)
_ICES: Final = (
    "SELECT t.ice_name, t.ice_type, t.provisionedto, t.status, t.generation, t.node, t.labels,"  # noqa: S608 - ours
    f" t.accepts, s.session, s.since, {_PAUSE} FROM ice_tokens t LEFT JOIN ice_sessions s"
    " ON s.ice_name = t.ice_name AND s.generation = t.generation ORDER BY s.number"
)
_OPERATIONS: Final = f"SELECT number, {', '.join(COLUMNS)} FROM ice_operations ORDER BY number"  # noqa: S608


async def read_tables(fetch) -> Tables:
    """By an engine's `fetch`, or a transaction's."""
    members = {}
    for row in await fetch(_ICES):
        name, kind, owner, status, generation, node, labels, accepts, session, since, *pause = row
        members[name] = Member(
            name,
            IceType(kind),
            owner,
            Status(status),
            generation,
            node is not None,
            labels_from_text(labels),
            accepts_from_text(accepts),
            pause_from_row(tuple(pause)),
            session,
            from_text_or_none(since),
        )
    pools = {
        name: (None if kind is None else IceType(kind), labels_from_text(labels))
        for name, kind, labels in await fetch("SELECT name, ice_type, labels FROM ice_pools")
    }
    rows = await fetch(_OPERATIONS)
    return Tables(members, pools, [Numbered(row[0], operation_from_row(row[1:])) for row in rows])
