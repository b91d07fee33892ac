"""The rules of an operation: its states and the moves between them, as one table.

Pure: no I/O and no clock. A CHECK in the migrations of `store` repeats the states. Source: docs/protocol.md.

An operation is sent at most once. An operation that was not sent by its deadline is `expired`: it certainly
never ran. One that was sent and whose outcome is unknown is `lost`, until the ICE reports it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Final, Self

import msgspec

from client.protocol import MAX_VALUE, CancelReason, JsonTooComplex, OperationKind, check_json
from gateway.core.ice import OPERATIONS, IceType
from gateway.core.times import later

FINISH_GRACE: Final = timedelta(seconds=30)
"""How long after a hello that does not name an operation its finish may still arrive."""
LIFETIME: Final = 86_400.0
"""Seconds from `run_at` or the request to the default deadline."""
MAX_REFUSALS: Final = 256
"""Sessions that may refuse an operation of a pool before it fails."""
MAX_AHEAD: Final = timedelta(days=366)
"""How far ahead `run_at` and `deadline` may be; a later time is taken for a mistake."""
MAX_KEPT: Final = 10_000
"""Maximum operations of an ICE whose params and results are kept, whatever their size."""
KEY_PATTERN: Final = "(?!schedule:)[ -~]{1,128}"
"""An idempotency key that a caller may choose; the gateway makes those of schedules itself."""


class State(enum.StrEnum):
    """`sent` means not yet accepted by the ICE, `running` means accepted."""

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
"""States in which the ICE may be working on it."""


class Waits(enum.StrEnum):
    """Why a queued operation is not sent: the first that holds."""

    RUN_AT = "run-at"
    OPERATION_BEFORE = "operation-before"
    OFFLINE = "offline"
    NO_ICE = "no-ice"
    """No ICE of the pool has a type that accepts this kind."""
    ALL_OFFLINE = "all-offline"
    PAUSED = "paused"
    """The ICE is paused, or all connected ones of the pool are."""
    NOT_ACCEPTED = "not-accepted"
    """The ICE accepts no such operation of this requester, or no connected and unpaused one of the pool does."""
    ALL_BUSY = "all-busy"


_WHY: Final = {
    Waits.RUN_AT: "its time has not come",
    Waits.OPERATION_BEFORE: "another operation comes before it",
    Waits.OFFLINE: "the ICE is not connected",
    Waits.NO_ICE: "no ICE of the pool may do this kind",
    Waits.ALL_OFFLINE: "no ICE of the pool is connected",
    Waits.PAUSED: "the ICE is paused",
    Waits.NOT_ACCEPTED: "the ICE does not accept this kind from the requester",
    Waits.ALL_BUSY: "each ICE of the pool is busy",
}
_WHY_OF_POOL: Final = _WHY | {
    Waits.PAUSED: "each connected ICE of the pool is paused",
    Waits.NOT_ACCEPTED: "no connected ICE of the pool accepts this kind from the requester",
}


def in_words(why: Waits, *, of_pool: bool) -> str:
    """Why an operation waits, for people, without a full stop."""
    return (_WHY_OF_POOL if of_pool else _WHY)[why]


class Move(enum.StrEnum):
    """What changes an operation; each is one compare-and-set."""

    SEND = "send"
    RECALL = "recall"
    DECLINE = "decline"
    ACCEPT = "accept"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"
    LOSE = "lose"


# A late finish is accepted: only the ICE knows the outcome.
_FINISHABLE: Final = (State.SENT, State.RUNNING, State.LOST)

# Every combination that is not in this table is refused and changes nothing.
MOVES: Final[Mapping[Move, tuple[tuple[State, ...], State]]] = MappingProxyType(
    {
        Move.SEND: ((State.QUEUED,), State.SENT),
        # Only if no byte of it was written to the connection.
        Move.RECALL: ((State.SENT,), State.QUEUED),
        # The ICE refused a pool's operation before it began.
        Move.DECLINE: ((State.SENT,), State.QUEUED),
        Move.ACCEPT: ((State.SENT,), State.RUNNING),
        Move.SUCCEED: (_FINISHABLE, State.SUCCEEDED),
        Move.FAIL: (_FINISHABLE, State.FAILED),
        Move.CANCEL: (UNFINISHED, State.CANCELLED),
        Move.EXPIRE: ((State.QUEUED,), State.EXPIRED),
        Move.LOSE: (ACTIVE, State.LOST),
    }
)


class NotValid(ValueError):
    """An invalid request for an operation or a schedule; `field` is the field to change."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True)
class Operation:
    """One piece of work for one ICE, or for any one of a pool: then `ice_name` is None until one is chosen.

    `params`, `progress`, `result` and `error` are JSON as it was sent; times are aware, in UTC.
    """

    id: str
    ice_name: str | None
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
    former_user: str | None = None
    """The user that the ICE was tagged to when it was requested, once it is tagged to another."""
    pool: str | None = None
    schedule: str | None = None
    """The id of the schedule that requested it."""
    token: str | None = None
    """The id of the API token that requested it."""
    refused_by: bytes = b"[]"
    """JSON: the ids of the sessions that refused it for its pool."""

    @classmethod
    def request(
        cls,
        operation_id: str,
        ice_name: str | None,
        kind: OperationKind,
        params: bytes,
        *,
        requested_by: str,
        now: datetime,
        run_at: datetime | None = None,
        deadline: datetime | None = None,
        idempotency_key: str | None = None,
        pool: str | None = None,
        token: str | None = None,
    ) -> Operation:
        """A new operation, queued. Raises `NotValid`."""
        check_params(params)
        if kind is OperationKind.SCHEDULE and run_at is None:
            raise NotValid("run_at", "is required for schedule")
        if kind is not OperationKind.SCHEDULE and run_at is not None:
            raise NotValid("run_at", f"is only for schedule; {kind} is sent as soon as possible")
        if run_at is not None and run_at < now:
            raise NotValid("run_at", "is past")
        begin, latest = run_at or now, now + MAX_AHEAD
        too_late = f"at most {MAX_AHEAD.days} days ahead"
        if begin > latest:  # the default deadline of a time in 9999 would exceed `datetime`
            raise NotValid("run_at", too_late)
        end = deadline or later(begin, LIFETIME) or begin
        if end <= begin:
            raise NotValid("deadline", "must be later than run_at" if run_at else "is past")
        if end > latest:
            raise NotValid("run_at" if deadline is None else "deadline", too_late)
        if idempotency_key is not None and not re.fullmatch(KEY_PATTERN, idempotency_key):
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
            idempotency_key=idempotency_key,
            pool=pool,
            token=token,
        )

    def moved(
        self, move: Move, now: datetime, *, result: bytes | None = None, error: bytes | None = None
    ) -> Operation | None:
        """The operation after `move`, or None if the table does not allow it."""
        sources, target = MOVES[move]
        if self.state not in sources:
            return None
        if target is State.QUEUED:
            ice_name = self.ice_name if self.pool is None else None
            return replace(self, ice_name=ice_name, state=target, sent=None)
        if target is State.SENT:
            return replace(self, state=target, sent=now)
        if target is State.RUNNING:
            return replace(self, state=target)
        return replace(self, state=target, finished=now, result=result, error=error)

    def declined(self, session: str, now: datetime, error: bytes) -> Operation | None:
        """The operation after this session has refused it: one of a pool waits again, but not for this session."""
        refused_by = [*msgspec.json.decode(self.refused_by), session]
        back = self.moved(Move.DECLINE, now)
        if back is None or self.pool is None or len(refused_by) > MAX_REFUSALS:
            return self.moved(Move.FAIL, now, error=error)
        return replace(back, refused_by=msgspec.json.encode(refused_by))

    @property
    def is_finished(self) -> bool:
        """Whether its state is final."""
        return self.state not in UNFINISHED

    def is_due(self, now: datetime) -> bool:
        """Whether it may be sent at `now`."""
        return self.run_at is None or self.run_at <= now

    def overdue_move(self) -> Move:
        """The move that its deadline makes while it is unfinished."""
        return Move.EXPIRE if self.state is State.QUEUED else Move.LOSE


def check_params(params: bytes) -> None:
    """Check the size and the complexity of parameters, which are JSON. Raises `NotValid`."""
    if len(params) > MAX_VALUE:
        raise NotValid("params", f"at most {MAX_VALUE:,} bytes of JSON")
    try:
        check_json(params)
    except JsonTooComplex as excess:
        raise NotValid("params", str(excess)) from None


def allows(ice_type: IceType, kind: OperationKind) -> bool:
    """Whether an ICE of this type may be sent this kind, regardless of the caller."""
    return kind in OPERATIONS[ice_type]


# --- why it ended ----------------------------------------------------------------------------------


class OperationError(enum.StrEnum):
    """The `code` of an operation's `error`: why it ended without a result. ICEs may send other codes.

    `sentence` is the message that the gateway uses when it has no better one.
    """

    sentence: str

    def __new__(cls, code: str, sentence: str) -> Self:
        """Make a member whose value is its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    CANCELLED = "cancelled", "it was cancelled"
    DEADLINE = "deadline", "its deadline has passed"
    DEREGISTERED = "deregistered", "the ICE was deregistered"
    REREGISTERED = "reregistered", "the ICE was reregistered"
    USER_CHANGED = "user-changed", "the ICE belongs to another user now"
    LOST = "lost", "the ICE reconnected without it and did not report its outcome"
    REFUSED = "refused", "the ICE has not accepted it"
    KIND_NOT_ALLOWED = "kind-not-allowed", "an ICE of this type does not accept this kind"
    FAILED = "failed", "the ICE gave no reason"


MAX_SENTENCE: Final = 2000
"""Characters of the message of an error that the gateway writes."""
ENDED_REGISTRATION: Final = frozenset({OperationError.DEREGISTERED, OperationError.REREGISTERED})
"""Error codes of operations that ended with their ICE's registration."""
_CANCELLATION_CODES: Final = frozenset({OperationError.DEADLINE, OperationError.CANCELLED})
"""The codes with which ICEs end an operation that the gateway cancelled; older ICEs send only `cancelled`."""


class _Error(msgspec.Struct, forbid_unknown_fields=True):
    """The `error` of an operation; `code` is for programs."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    message: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Code(msgspec.Struct):
    code: str


def reason(
    code: str, sentence: str | None = None, data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
) -> bytes:
    """The `error` of an operation: why it ended, with a sentence cut to `MAX_SENTENCE`.

    The default sentence is that of the `OperationError`.
    """
    if sentence is None:
        assert isinstance(code, OperationError)  # noqa: S101 - only these have a sentence
        sentence = code.sentence
    return msgspec.json.encode(_Error(str(code), sentence[:MAX_SENTENCE], data))


def failure(sent: bytes | None) -> bytes:
    """The `error` of an operation that its ICE reported as failed with `sent`, which is JSON.

    JSON of another shape than `{"code", "message", "data"?}` becomes the message.
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
    """The reason for an ICE to stop an operation with this state and error code; None if it need not.

    `state` is None if this ICE has no such operation. An ICE need not stop an active operation, or one that it has
    reported as finished.
    """
    if state in (*ACTIVE, State.SUCCEEDED, State.FAILED):
        return None
    if state is State.CANCELLED:
        reregistered = code in ENDED_REGISTRATION
        return CancelReason.REREGISTERED if reregistered else CancelReason.REQUESTED
    return CancelReason.DEADLINE if code == OperationError.DEADLINE else CancelReason.UNKNOWN


def was_stopped(operation: Operation, error: bytes | None) -> bool:
    """Whether the ICE failed only because it was cancelled at the deadline; the operation then stays lost."""
    late = operation.state is State.LOST and code_of(operation.error) == OperationError.DEADLINE
    return late and code_of(error) in _CANCELLATION_CODES
