"""The rules of an operation: its states, and what moves it from one to another, as one table.

Pure: no I/O and no clock. The states stand as a CHECK in `store/migrations`, too. Source: contract
section 9.

An operation is sent at most once. What was never sent and is too late has `expired`: it certainly never
ran. What was sent and is not heard of is `lost`: nobody knows, until the ICE itself says what it came to.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from client.protocol import (
    MAX_VALUE,
    CancelReason,
    JsonTooComplex,
    OperationKind,
    check_json,
)
from gateway.core.codes import OperationError
from gateway.core.ice import OPERATIONS, IceType
from gateway.core.times import later

PATIENCE: Final = timedelta(seconds=30)
"""How long a finish may take to come after a hello that does not name the operation."""
LIFETIME: Final = 86_400.0
"""Seconds from `run_at` or the request to the deadline, where none is given."""
FARTHEST: Final = timedelta(days=366)
"""How far ahead `run_at` and `deadline` may lie: what is farther is a mistake."""
MAX_KEPT: Final = 10_000
"""Operations of an ICE whose params and results are kept, however small they are."""
KEY_PATTERN: Final = "(?!schedule:)[ -~]{1,128}"
"""An idempotency key that a caller may choose; those of schedules are the gateway's own."""


class State(enum.StrEnum):
    """`sent` is not yet accepted by the ICE, `running` is."""

    QUEUED = "queued"
    SENT = "sent"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


UNFINISHED: Final = (State.QUEUED, State.SENT, State.RUNNING)
ACTIVE: Final = (State.SENT, State.RUNNING)
"""The ICE may be working on it."""


class Move(enum.StrEnum):
    """What changes an operation; each is one compare-and-set."""

    SEND = "send"
    RECALL = "recall"
    ACCEPT = "accept"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"
    LOSE = "lose"


# A finish that comes after all is believed: the ICE knows what nobody else does.
_FINISHABLE: Final = (State.SENT, State.RUNNING, State.LOST)

# Every combination that is not in this table is refused and changes nothing.
MOVES: Final[Mapping[Move, tuple[tuple[State, ...], State]]] = MappingProxyType(
    {
        Move.SEND: ((State.QUEUED,), State.SENT),
        # Only by whoever knows that nothing of it was written to the ICE.
        Move.RECALL: ((State.SENT,), State.QUEUED),
        Move.ACCEPT: ((State.SENT,), State.RUNNING),
        Move.SUCCEED: (_FINISHABLE, State.SUCCEEDED),
        Move.FAIL: (_FINISHABLE, State.FAILED),
        Move.CANCEL: (UNFINISHED, State.CANCELLED),
        Move.EXPIRE: ((State.QUEUED,), State.EXPIRED),
        Move.LOSE: (ACTIVE, State.LOST),
    }
)


class NotValid(ValueError):
    """A request that cannot be an operation; `field` is the one to change."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True)
class Operation:
    """One piece of work for one ICE.

    `params`, `progress`, `result` and `error` are JSON as it was sent; times are aware, in UTC.
    """

    id: str
    ice_name: str
    kind: OperationKind
    params: bytes
    state: State
    requested_by: str
    created: datetime
    run_at: datetime | None
    deadline: datetime
    sent: datetime | None = None
    finished: datetime | None = None
    progress: bytes | None = None
    result: bytes | None = None
    error: bytes | None = None
    idempotency_key: str | None = None

    @classmethod
    def request(
        cls,
        operation_id: str,
        ice_name: str,
        kind: OperationKind,
        params: bytes,
        *,
        requested_by: str,
        now: datetime,
        run_at: datetime | None = None,
        deadline: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Operation:
        """A new operation, queued. Raises `NotValid`."""
        if len(params) > MAX_VALUE:
            raise NotValid("params", f"at most {MAX_VALUE:,} bytes of JSON")
        try:
            check_json(params)
        except JsonTooComplex as excess:
            raise NotValid("params", str(excess)) from None
        if kind is OperationKind.SCHEDULE and run_at is None:
            raise NotValid("run_at", "is required for schedule")
        if kind is not OperationKind.SCHEDULE and run_at is not None:
            raise NotValid("run_at", f"is for schedule alone; {kind} is sent as soon as can be")
        if run_at is not None and run_at < now:
            raise NotValid("run_at", "is past")
        begin = run_at or now
        end = deadline or later(begin, LIFETIME) or begin
        if end <= begin:
            raise NotValid("deadline", "has to be later than run_at" if run_at else "is past")
        if end > now + FARTHEST:
            farther = "run_at" if deadline is None else "deadline"
            raise NotValid(farther, f"at most {FARTHEST.days} days ahead")
        key = idempotency_key
        if key is not None and not re.fullmatch(KEY_PATTERN, key):
            raise NotValid(
                "idempotency_key",
                "1 to 128 printable ASCII characters, and does not begin with schedule:",
            )
        return cls(
            operation_id,
            ice_name,
            kind,
            params,
            State.QUEUED,
            requested_by,
            now,
            run_at,
            end,
            idempotency_key=key,
        )

    def moved(
        self,
        move: Move,
        now: datetime,
        *,
        result: bytes | None = None,
        error: bytes | None = None,
    ) -> Operation | None:
        """The operation after `move`, or None where the table refuses that."""
        sources, target = MOVES[move]
        if self.state not in sources:
            return None
        if target is State.QUEUED:
            return replace(self, state=target, sent=None)
        if target is State.SENT:
            return replace(self, state=target, sent=now)
        if target is State.RUNNING:
            return replace(self, state=target)
        return replace(self, state=target, finished=now, result=result, error=error)

    @property
    def is_finished(self) -> bool:
        """Whether it has come to a final state."""
        return self.state not in UNFINISHED

    def is_due(self, now: datetime) -> bool:
        """Whether it may be sent by now."""
        return self.run_at is None or self.run_at <= now

    def overdue(self) -> Move:
        """What its deadline does to it, while it is unfinished."""
        return Move.EXPIRE if self.state is State.QUEUED else Move.LOSE


def allows(ice_type: IceType, kind: OperationKind) -> bool:
    """Whether an ICE of this type may be sent this kind, whoever asks."""
    return kind in OPERATIONS[ice_type]


# --- why it has ended ------------------------------------------------------------------------------

MAX_SENTENCE: Final = 2000
"""Characters of the message of an error that is not as the ICE sent it."""
ENDED_REGISTRATION: Final = frozenset({OperationError.DEREGISTERED, OperationError.REREGISTERED})
"""Error codes of operations that ended with their ICE's registration."""


_OF_STOPPING: Final = frozenset({OperationError.DEADLINE, OperationError.CANCELLED})
"""The codes with which ICEs end what they were told to cancel; older ones know no reason."""


class _Error(msgspec.Struct, forbid_unknown_fields=True):
    """The `error` of an operation; `code` is a word for programs."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    message: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Code(msgspec.Struct):
    code: str


def reason(
    code: str,
    sentence: str | None = None,
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET,
) -> bytes:
    """The `error` of an operation: why it has ended, in a sentence that may be cut.

    Without one it is that of the `codes.OperationError`.
    """
    if sentence is None:
        assert isinstance(code, OperationError)  # noqa: S101 - only these have one
        sentence = code.sentence
    return msgspec.json.encode(_Error(str(code), sentence[:MAX_SENTENCE], data))


def failure(sent: bytes | None) -> bytes:
    """The `error` of an operation that its ICE has finished as failed with `sent`, which is JSON.

    Another shape than `{"code", "message", "data"?}` becomes its message.
    """
    if sent is None or sent == b"null":
        return reason(OperationError.FAILED)
    try:
        return msgspec.json.encode(msgspec.json.decode(sent, type=_Error))
    except msgspec.ValidationError:
        return reason(OperationError.FAILED, sent.decode())


def code_of(error: bytes | None) -> str | None:
    """The code of an operation's error."""
    return None if error is None else msgspec.json.decode(error, type=_Code).code


def cancel_reason(state: State | None, code: str | None) -> CancelReason | None:
    """Why an ICE is to stop an operation in this state, with an error of this code.

    Without a state it is no operation of this ICE. None where the ICE is to go on, or has said itself what
    it came to.
    """
    if state in (*ACTIVE, State.SUCCEEDED, State.FAILED):
        return None
    if state is State.CANCELLED:
        anew = code in ENDED_REGISTRATION
        return CancelReason.REREGISTERED if anew else CancelReason.REQUESTED
    return CancelReason.DEADLINE if code == OperationError.DEADLINE else CancelReason.UNKNOWN


def was_stopped(operation: Operation, error: bytes | None) -> bool:
    """Whether an ICE failed only because it was cancelled at the deadline; the operation stays lost then."""
    late = operation.state is State.LOST and code_of(operation.error) == OperationError.DEADLINE
    return late and code_of(error) in _OF_STOPPING
