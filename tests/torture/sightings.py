"""What ICEs and admins saw of a cluster, and whether it agrees with what the gateway promises. Pure.

All times are of one monotonic clock, that of the process in which ICEs and admins live. An order is concluded from cause
alone: what was begun after an answer had come is later than what was answered.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from client.protocol import CloseCode
from tests.torture.callers import UNKNOWN, Taken

_DEMANDED = {
    CloseCode.DEREGISTERED.value: "deregister",
    CloseCode.TOKEN_REPLACED.value: "reregister",
    "deregistered": "deregister",
    "token-replaced": "reregister",
}
"""The action without which there is no such close code or refusal."""


@dataclass
class Visit:
    """An attempt of an ICE to connect with the token of this generation, and the session that came of it.

    `acted` is when the last request was sent over the session that was answered; `refused` and `closed` have codes;
    `ended` is when the ICE saw the end.
    """

    ice_name: str
    node: str
    generation: int
    began: float
    welcomed: float | None = None
    session: str | None = None
    acted: float = -math.inf
    refused: str | None = None
    closed: int | None = None
    ended: float = math.inf


@dataclass(frozen=True)
class Cut:
    """When a node could not reach the database, or the database not the node."""

    node: str
    began: float
    ended: float


@dataclass
class Sightings:
    """All that was seen in a round. `alive` are the nodes that were not gone at `alive_at`, after the action."""

    lease: float
    visits: list[Visit] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    asked: list[tuple[str, str, float]] = field(default_factory=list)
    """Name, action and time of each action that was begun, whatever became of it."""
    cuts: list[Cut] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    alive_at: float = math.inf

    def violations(self) -> list[str]:
        """Whatever does not agree."""
        return [
            *_outdated(self.visits, self.taken),
            *_together(self.visits, self.lease),
            *_superseded(self.visits),
            *_without_cause(self.visits, self.asked),
            *_not_said(
                self.taken, [cut for cut in self.cuts if self.alive_at < cut.ended], self.alive
            ),
        ]


def _outdated(visits: Iterable[Visit], taken: Iterable[Taken]) -> Iterable[str]:
    """What an ICE that was taken out was still let do."""
    for action in taken:
        for visit in visits:
            if visit.ice_name != action.ice_name or visit.generation > action.generation:
                continue
            out = action.out_at(visit.node)
            if visit.welcomed is not None and visit.began > out:
                yield f"{visit.node} admitted the old token: {visit}, {action}"
            if visit.acted > out:
                yield f"{visit.node} acted on the old session: {visit}, {action}"


def _together(visits: Collection[Visit], lease: float) -> Iterable[str]:
    """Two sessions of an ICE that were both in use, longer than a lease after the later one had begun."""
    for later in visits:
        if later.welcomed is None:
            continue
        for older in visits:
            if older.ice_name == later.ice_name and (older.welcomed or math.inf) < later.began:
                both = min(older.acted, later.acted) - later.welcomed
                if both > lease:
                    yield f"two sessions were in use for {both:.2f} s: {older}, {later}"


def _superseded(visits: Collection[Visit]) -> Iterable[str]:
    """A session that was superseded although the ICE had begun nothing that may have been later."""
    for visit in visits:
        if visit.closed == CloseCode.SUPERSEDED and not any(
            other.ice_name == visit.ice_name
            and other.began < visit.ended
            and visit.began < (math.inf if other.welcomed is None else other.welcomed)
            for other in visits
            if other is not visit and other.refused is None
        ):
            yield f"nothing can have superseded {visit}"


def _without_cause(
    visits: Iterable[Visit], asked: Collection[tuple[str, str, float]]
) -> Iterable[str]:
    """A close or a refusal that says what no admin had asked for."""
    for visit in visits:
        for code in (visit.closed, visit.refused):
            action = _DEMANDED.get(code)  # type: ignore[arg-type]
            if action is not None and not any(
                (name, done) == (visit.ice_name, action) and at < visit.ended
                for name, done, at in asked
            ):
                yield f"no admin had asked for {code}: {visit}"


def _not_said(
    taken: Iterable[Taken], cuts: Collection[Cut], alive: Collection[str]
) -> Iterable[str]:
    """A node that cannot have confirmed and is not named; the cuts lasted until after the answer."""
    for action in taken:
        if UNKNOWN in action.unconfirmed:
            continue
        for cut in cuts:
            if (
                cut.began < action.requested
                and cut.node in alive
                and cut.node not in action.unconfirmed
            ):
                yield f"{cut.node} was cut off and is not named: {action}, {cut}"
