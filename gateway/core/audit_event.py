"""An event of the audit log, and the hash that chains it to the one before. Pure.

The log is what people read and the only way in which the rest of the gateway learns of a change.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from gateway.core.times import to_text

COLUMNS: Final = (
    "seq",
    "at",
    "actor",
    "via",
    "address",
    "action",
    "ice_name",
    "generation",
    "detail",
    "previous",
)
"""Of the log, in the order in which they are hashed."""
GENESIS: Final = "0" * 64
"""What stands in for the digest of the event before the first."""
ID_PATTERN: Final = "[0-9]{1,20}(-[0-9a-f]{8})?"
"""A `Position` where it stands as text."""
_ID_DIGITS: Final = 8
_LAST: Final = 2**63 - 2
"""No log reaches this number: what is beyond is beyond the end, and needs no larger integers in SQL."""


class Via(enum.StrEnum):
    """The door through which an actor came; it keeps a user from posing as a command or an ICE."""

    API = "api"
    COMMAND = "command"
    PAGE = "page"
    ICE = "ice"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, through which door, and from where (an IP address, or the host of a command)."""

    name: str
    via: Via
    address: str


@dataclass(frozen=True, slots=True)
class Event:
    """One change: `action` is one of the five of `ice.Action` or a word of the project's own.

    `generation` is the ICE's after the change, `detail["generation_before"]` the one before. Both
    are None where no ICE is concerned.
    """

    at: datetime
    actor: Actor
    action: str
    ice_name: str | None
    generation: int | None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as it stands in the log: numbered without gaps, with the digest of the one before."""

    seq: int
    event: Event
    previous: str

    def columns(self) -> tuple[object, ...]:
        """The values of `COLUMNS`, as they are stored and hashed."""
        event = self.event
        return (
            self.seq,
            to_text(event.at),
            event.actor.name,
            event.actor.via.value,
            event.actor.address,
            event.action,
            event.ice_name,
            event.generation,
            detail_text(event.detail),
            self.previous,
        )

    def digest(self) -> str:
        """The digest over every column."""
        return digest_of(self.columns())


@dataclass(frozen=True, slots=True)
class Position:
    """A reader's place in the log: behind event `seq`, whose digest begins with `digest`.

    The digest tells a restored log, which gives the same numbers to other events.
    """

    seq: int
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The position of an id, or of a plain number; None where it is neither."""
        if not re.fullmatch(ID_PATTERN, text):
            return None
        seq, _, digest = text.partition("-")
        return cls(min(int(seq), _LAST), digest)

    @classmethod
    def behind(cls, entry: Entry) -> Position:
        """The position behind an event."""
        return cls(entry.seq, entry.digest())

    def __str__(self) -> str:
        return f"{self.seq}-{self.digest[:_ID_DIGITS]}"

    def is_in(self, found: Sequence[Entry]) -> bool:
        """Whether a log has this place; `found` are its events from number `seq` on.

        Where the event has been pruned the next one names its digest. If that has been pruned, too,
        nothing contradicts the position, and the log goes on with its oldest event.
        """
        if not found:
            return self.seq == 0 and GENESIS.startswith(self.digest)
        first = found[0]
        if first.seq == self.seq:
            return first.digest().startswith(self.digest)
        return first.seq > self.seq + 1 or first.previous.startswith(self.digest)


def digest_of(columns: Sequence[object]) -> str:
    """Lowercase hex SHA-256 of the columns as one JSON array, without blanks, in UTF-8."""
    return hashlib.sha256(msgspec.json.encode(columns)).hexdigest()


def detail_text(detail: dict[str, Any]) -> str:
    """The detail as it is stored and hashed: JSON with sorted keys."""
    return msgspec.json.encode(detail, order="sorted").decode()
