"""An event of the audit log, and the hash that chains it to the one before. Pure.

The log is what people read and the only way in which the rest of the gateway learns of a change.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from gateway.times import to_text

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


def digest_of(columns: Sequence[object]) -> str:
    """Lowercase hex SHA-256 of the columns as one JSON array, without blanks, in UTF-8."""
    return hashlib.sha256(msgspec.json.encode(columns)).hexdigest()


def detail_text(detail: dict[str, Any]) -> str:
    """The detail as it is stored and hashed: JSON with sorted keys."""
    return msgspec.json.encode(detail, order="sorted").decode()
