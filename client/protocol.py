"""The wire protocol of an ICE and the gateway: names in the handshake, codes, messages.

Pure: no I/O, and no import of `gateway`, which imports this module. Refusals follow RFC 9457, messages
JSON-RPC 2.0, close codes RFC 6455 section 7.4 (4000-4999 are private use).
"""

from __future__ import annotations

import enum
from typing import Any, Final, Literal, Self, TypeVar

import msgspec

from client.codes import (
    CLOSINGS,
    REFUSALS,
    RETRIED_ONCE_ADMITTED,
    SLOW_RETRY,
    SUPERSEDED_LIMIT,
    SUPERSEDED_WAIT,
    CloseCode,
    EnrolmentCode,
    RefusalCode,
    Then,
    after_close,
)
from client.json_bounds import MAX_DEPTH, MAX_DIGITS, JsonTooComplex, check_json, outline

# The gateway imports these names from here, not from the modules that define them.
__all__ = [
    "CLOSINGS",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "REFUSALS",
    "RETRIED_ONCE_ADMITTED",
    "SLOW_RETRY",
    "SUPERSEDED_LIMIT",
    "SUPERSEDED_WAIT",
    "CloseCode",
    "EnrolmentCode",
    "JsonTooComplex",
    "RefusalCode",
    "Then",
    "after_close",
    "check_json",
    "outline",
]

_T = TypeVar("_T")

PATH: Final = "/ice/v1"
ENROLMENTS: Final = f"{PATH}/enrolments"
"""Where machines ask for an ICE of their own."""
SUBPROTOCOL: Final = "ice.v1"
PROOF_TYPE: Final = "dpop+jwt"
MAX_MESSAGE: Final = 1024 * 1024
"""The largest message in bytes, either way; one byte more is close code 1009."""
MAX_TOKEN: Final = 1024
"""The longest registration token in characters."""
PROOF_WINDOW: Final = 60.0
"""Seconds by which a proof's `iat` may differ from the gateway's clock."""
MAX_VALUE: Final = 1_000_000
"""The longest `params`, `result` or `error` of an operation, in bytes of JSON as sent."""
MAX_LOG_BYTES: Final = 65_536
"""The longest text of one `operation.log` in bytes of UTF-8; the gateway ignores a longer one."""


class OperationKind(enum.StrEnum):
    """The kinds of operations; `gateway.core.ice` says which type of ICE accepts which."""

    SCRAPE = "scrape"
    DEBUG = "debug"
    EXECUTE = "execute"
    REMOTE_EXECUTE = "remote-execute"
    SCHEDULE = "schedule"


class RetryAfter(msgspec.Struct):
    """The JSON reason of close code 1012: seconds, a different value for each ICE."""

    retry_after: float


# --- messages ----------------------------------------------------------------------------------


class Welcome(msgspec.Struct, kw_only=True):
    """`ice.welcome`, gateway to ICE: always the first frame. `heartbeat` in seconds."""

    ice_name: str
    ice_type: str
    provisionedto: str | None
    status: str
    generation: int
    session: str
    operations: list[str]
    heartbeat: float
    server: str


class Hello(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`ice.hello`, ICE to gateway, soon after the welcome; `running` holds the ids of unfinished operations.

    `instance` is a random text that the client makes at each start: the gateway detects by it that two copies run.
    `accepts` as in `Accepts`.
    """

    version: str | None = None
    platform: str | None = None
    hostname: str | None = None
    instance: str | None = None
    running: list[str] = msgspec.field(default_factory=lambda: [])  # noqa: PIE807 - `omit_defaults` would leave out an empty list of `list`
    accepts: list[str] | None = None


class Accepts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`ice.accepts`, ICE to gateway, when it changes.

    `accepts` holds the kinds that others than the ICE's tagged user may send; `[]` is none. None, which is
    sent as no member, is all.
    """

    accepts: list[str] | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """`operation.run`, a request from the gateway; `deadline` is RFC 3339."""

    id: str
    kind: str
    params: Any = None
    deadline: str | None = None


class Progress(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`operation.progress`, ICE to gateway; `fraction` from 0 to 1."""

    id: str
    fraction: float | None = None
    message: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Log(msgspec.Struct, kw_only=True):
    """`operation.log`, ICE to gateway: output to keep and to show live; `text` has at most `MAX_LOG_BYTES`."""

    id: str
    text: str


class Finish(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`operation.finish`, a request from the ICE, repeated across reconnects until the gateway answers."""

    id: str
    outcome: Literal["succeeded", "failed"]
    result: Any = None
    error: Any = None


class CancelReason(enum.StrEnum):
    """Why the gateway cancels an operation."""

    REQUESTED = "requested"
    DEADLINE = "deadline"
    REREGISTERED = "reregistered"
    UNKNOWN = "unknown"
    """The ICE named it in `running`, but the gateway does not know it or has given it up."""


class Cancel(msgspec.Struct, kw_only=True):
    """`operation.cancel`, gateway to ICE; older gateways send no `reason`, newer ones may send others."""

    id: str
    reason: str | None = None


# --- JSON-RPC 2.0 ------------------------------------------------------------------------------

METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603


class RpcRefusal(enum.StrEnum):
    """Why the gateway refuses a request from an ICE; the ICE does not repeat it.

    The code goes into the error's `data`; `number` and `message` are those of JSON-RPC.
    """

    number: int
    message: str

    def __new__(cls, code: str, number: int, message: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.number, member.message = number, message
        return member

    INVALID = "invalid", INVALID_PARAMS, "The parameters have the wrong shape."
    TOO_LARGE = "too-large", INVALID_PARAMS, "A result or error has at most 1,000,000 bytes."
    UNKNOWN_OPERATION = (
        "unknown-operation",
        -32001,
        "The gateway did not send this operation to this ICE.",
    )
    ALREADY_FINISHED = "already-finished", -32002, "The operation has already finished."


RequestId = str | int | float | None


class RpcError(msgspec.Struct, omit_defaults=True):
    """The `error` member of a response (JSON-RPC 2.0, section 5.1)."""

    code: int
    message: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One JSON-RPC 2.0 message: a request (method and id), a notification (method), or a response."""

    jsonrpc: Literal["2.0"]
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | int | float | msgspec.UnsetType | None = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: RpcError | msgspec.UnsetType = msgspec.UNSET


_decoder: Final = msgspec.json.Decoder(Message)
_encoder: Final = msgspec.json.Encoder()
_ENVELOPES: Final = frozenset({"operation.run", "operation.progress", "operation.finish"})
"""Methods whose params carry values of a caller or a handler, one level deeper."""


class NotJsonRpc(ValueError):
    """The text is not one JSON-RPC 2.0 message; a batch is not one."""


class MessageTooComplex(NotJsonRpc):
    """The message's JSON exceeds the bounds of `check_json`.

    `message` is the readable part: method, id, and params, from which large parts may be missing.
    """

    def __init__(self, reason: str, message: Message) -> None:
        super().__init__(reason)
        self.message = message


def decode(text: str | bytes) -> Message:
    """Parse one message.

    The depth counts from `params`, `result` and `error`; in an operation's messages from the values within
    them, so that a value of `MAX_DEPTH` levels passes everywhere.

    Raises:
        MessageTooComplex: its JSON exceeds the bounds.
        NotJsonRpc: it is not a message; the text says why.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
        try:
            message = _decoder.decode(data)
        except RecursionError:
            # The sender of a request needs an answer even if its message is too deep.
            rest = outline(data, 2)
            if rest is None:
                raise
            message = _decoder.decode(rest)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotJsonRpc(str(error)) from None
    if message.method is not msgspec.UNSET:
        if message.result is not msgspec.UNSET or message.error is not msgspec.UNSET:
            raise NotJsonRpc("a message is either a call or a response")
        # Section 4.2: params, if present, must be a structured value.
        if message.params is not msgspec.UNSET and bytes(message.params)[:1] not in (b"{", b"["):
            raise NotJsonRpc("params must be an object or an array")
    elif message.id is msgspec.UNSET:
        raise NotJsonRpc("neither a method nor an id")
    elif (message.result is msgspec.UNSET) == (message.error is msgspec.UNSET):
        raise NotJsonRpc("a response has either a result or an error")
    try:
        check_json(data, MAX_DEPTH + (2 if message.method in _ENVELOPES else 1))
    except JsonTooComplex as excess:
        raise MessageTooComplex(str(excess), message) from None
    return message


def params_of(message: Message, shape: type[_T]) -> _T:
    """The parameters as `shape`. Raises `msgspec.ValidationError`."""
    raw = b"{}" if message.params is msgspec.UNSET else message.params
    return msgspec.json.decode(raw, type=shape)


def notification(method: str, params: Any) -> bytes:
    """Encode a notification."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params})


def request(method: str, params: Any, request_id: str | int) -> bytes:
    """Encode a request; the response bears `request_id`."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params, "id": request_id})


def result(request_id: RequestId, value: Any) -> bytes:
    """Encode the response to a request."""
    return _encoder.encode({"jsonrpc": "2.0", "result": value, "id": request_id})


def error(request_id: RequestId, code: int, message: str, **more: Any) -> bytes:
    """Encode the error response to a request."""
    failure = {"code": code, "message": message, **more}
    return _encoder.encode({"jsonrpc": "2.0", "error": failure, "id": request_id})


def refuse(request_id: RequestId, code: RpcRefusal, detail: str | None = None) -> bytes:
    """Encode a refusal; `detail` replaces its message."""
    return error(request_id, code.number, detail or code.message, data={"code": code})
