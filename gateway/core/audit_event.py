"""An event of the audit log, and the hash that chains it to the one before. Pure.

People read the log, and the rest of the gateway learns of changes only from it.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Sequence
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
"""The columns of the log, in the order in which they are hashed."""
GENESIS: Final = "0" * 64
"""The `previous` digest of the first event."""
ID_PATTERN: Final = "[0-9]{1,20}(-[0-9a-f]{8})?"
"""The text form of a `Position`."""
_ID_DIGITS: Final = 8
_LAST: Final = 2**63 - 2
"""No log reaches this number. Larger positions are clamped to it, so that they fit an SQL integer."""


class AuditAction(enum.StrEnum):
    """What the audit log records besides the five actions of `ice.Action`."""

    DISCONNECT = "disconnect"
    LABEL = "label"
    PAUSE = "pause"
    RESUME = "resume"
    CREATE_SCHEDULE = "create-schedule"
    CHANGE_SCHEDULE = "change-schedule"
    DELETE_SCHEDULE = "delete-schedule"
    RUN_SCHEDULE = "run-schedule"
    DUPLICATE = "duplicate"
    """Two copies of an ICE run."""
    REQUEST_OPERATION = "request-operation"
    CANCEL_OPERATION = "cancel-operation"
    ADD_USER = "add-user"
    SET_ROLE = "set-role"
    SET_PASSWORD = "set-password"  # noqa: S105 - an action
    SET_LOGIN = "set-login"
    """A user was linked to a subject of an issuer, or made local."""
    DISABLE_USER = "disable-user"
    ENABLE_USER = "enable-user"
    LOG_IN = "log-in"
    LOGIN_FAILED = "login-failed"
    END_LOGINS = "end-logins"
    CREATE_API_TOKEN = "create-api-token"  # noqa: S105 - an action
    REVOKE_API_TOKEN = "revoke-api-token"  # noqa: S105 - an action
    CREATE_ENROLMENT_KEY = "create-enrolment-key"
    REVOKE_ENROLMENT_KEY = "revoke-enrolment-key"
    REQUEST_ENROLMENT = "request-enrolment"
    APPROVE_ENROLMENT = "approve-enrolment"
    REJECT_ENROLMENT = "reject-enrolment"
    CREATE_POOL = "create-pool"
    CHANGE_POOL = "change-pool"
    DELETE_POOL = "delete-pool"
    CREATE_WEBHOOK = "create-webhook"
    CHANGE_WEBHOOK = "change-webhook"
    DELETE_WEBHOOK = "delete-webhook"
    ROTATE_KEYS = "rotate-keys"
    PROMOTE_KEY = "promote-key"
    RETIRE_KEY = "retire-key"
    DRAIN_NODE = "drain-node"
    RESUME_NODE = "resume-node"
    PRUNE = "prune"
    BACKUP = "backup"
    RESTORE = "restore"
    CONFIRM_RESTORE = "confirm-restore"


class Via(enum.StrEnum):
    """The channel that an actor used; it keeps a user from posing as a command or an ICE."""

    API = "api"
    COMMAND = "command"
    PAGE = "page"
    ICE = "ice"
    SCHEDULE = "schedule"
    """The gateway acts for the requester of a schedule; `address` is the schedule's id."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, through which channel, and from where (an IP address, or the host of a command)."""

    name: str
    via: Via
    address: str


@dataclass(frozen=True, slots=True)
class Event:
    """One change: `action` is one of `ice.Action` or of `audit_event.AuditAction`.

    `generation` is the ICE's generation after the change, `detail["generation_before"]` the one before.
    Both are None if the event concerns no ICE.
    """

    at: datetime
    actor: Actor
    action: str
    ice_name: str | None
    generation: int | None
    detail: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, at: datetime, actor: Actor, action: str, **detail: Any) -> Event:
        """An event that concerns no ICE."""
        return cls(at, actor, action, None, None, detail)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An event in the log: numbered without gaps, with the digest of the event before it."""

    seq: int
    event: Event
    previous: str

    def columns(self) -> tuple[object, ...]:
        """The values of `COLUMNS` as they are stored and hashed."""
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
    """A reader's place in the log: after event `seq`, whose digest begins with `digest`.

    The digest detects a restored log, which gives the same numbers to other events.
    """

    seq: int
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Parse an event id or a plain number; None if `text` is neither."""
        if not re.fullmatch(ID_PATTERN, text):
            return None
        seq, _, digest = text.partition("-")
        return cls(min(int(seq), _LAST), digest)

    @classmethod
    def after(cls, entry: LogEntry) -> Position:
        """The position after an event."""
        return cls(entry.seq, entry.digest())

    def __str__(self) -> str:
        return f"{self.seq}-{self.digest[:_ID_DIGITS]}"

    def is_in(self, found: Sequence[LogEntry]) -> bool:
        """Whether a log contains this position; `found` are its events from number `seq` on.

        If the event has been pruned, the next one holds its digest. If that one has been pruned too,
        nothing contradicts the position, and reading continues at the oldest event.
        """
        if not found:
            return self.seq == 0 and GENESIS.startswith(self.digest)
        first = found[0]
        if first.seq == self.seq:
            return first.digest().startswith(self.digest)
        return first.seq > self.seq + 1 or first.previous.startswith(self.digest)


def differences(before: object, after: object, names: Iterable[str]) -> dict[str, Any]:
    """The detail of a change: each of these attributes that differs, and its old value as `NAME_before`."""
    detail: dict[str, Any] = {}
    for name in names:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            detail |= {name: new, f"{name}_before": old}
    return detail


def digest_of(columns: Sequence[object]) -> str:
    """Lowercase hex SHA-256 of the columns as one JSON array in UTF-8 without white space."""
    return hashlib.sha256(msgspec.json.encode(columns)).hexdigest()


def detail_text(detail: dict[str, Any]) -> str:
    """The detail as it is stored and hashed: JSON with sorted keys."""
    return msgspec.json.encode(detail, order="sorted").decode()
