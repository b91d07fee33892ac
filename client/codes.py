"""Why the gateway refuses a handshake or an enrolment, and why it closes a connection.

Part of `client.protocol`, which names all of it: import it from there.

Tested in tests/unit/client/test_protocol.py.
"""

from __future__ import annotations

import enum
from typing import Final, Self

# --- refusals of a handshake -------------------------------------------------------------------


class _Refusal(enum.StrEnum):
    """Why the gateway refuses a request of an ICE.

    `status` is the HTTP status, `summary` the problem's title. `detail` says what a person should do,
    `retry` whether the ICE may try again by itself.
    """

    status: int
    summary: str
    detail: str
    retry: bool

    def __new__(cls, code: str, status: int, title: str, detail: str, retry: bool = False) -> Self:  # noqa: FBT001, FBT002
        member = str.__new__(cls, code)
        member._value_ = code
        member.status, member.summary, member.detail, member.retry = status, title, detail, retry
        return member


class RefusalCode(_Refusal):
    """Why the gateway refuses a handshake (docs/protocol.md)."""

    BAD_HANDSHAKE = (
        "bad-handshake",
        400,
        "Not a WebSocket handshake of this protocol",
        "Connect with a WebSocket handshake (RFC 6455, version 13) that offers the subprotocol ice.v1.",
    )
    DRAINING = (
        "draining",
        503,
        "The gateway is stopping",
        "Nothing needs to be done: the ICE tries again by itself.",
        True,
    )
    OVERLOADED = (
        "overloaded",
        503,
        "The gateway is overloaded",
        "Nothing needs to be done: the ICE tries again by itself. If this lasts, the gateway's operator should raise ice.max_connections or the limit of open files.",
        True,
    )
    TOKEN_MISSING = (
        "token-missing",
        401,
        "No registration token",
        "Start the ICE with the registration token that the admin received for it.",
    )
    TOKEN_INVALID = (
        "token-invalid",
        401,
        "Unknown token",
        "This gateway did not issue this token: check that you copied it whole and that the gateway's address is right; otherwise ask the admin for a new token.",
    )
    TOO_MANY_ATTEMPTS = (
        "too-many-attempts",
        429,
        "Too many attempts without a genuine token",
        "Check the tokens of the ICEs at this address.",
        True,
    )
    PROOF_INVALID = (
        "proof-invalid",
        401,
        "Invalid proof of possession",
        "The DPoP proof must be fresh, signed with the ICE's own key, and made for this URL and token.",
    )
    USE_DPOP_NONCE = (
        "use-dpop-nonce",
        401,
        "The proof needs a nonce",
        "The clocks of the ICE and the gateway differ: correct the one that is wrong. The next proof must carry the nonce from DPoP-Nonce.",
        True,
    )
    STORE_UNAVAILABLE = (
        "store-unavailable",
        503,
        "The gateway cannot use its database",
        "Nothing needs to be done: the ICE tries again by itself.",
        True,
    )
    DEREGISTERED = (
        "deregistered",
        403,
        "This ICE is deregistered",
        "The admin has deregistered this ICE: if you still need it, ask the admin to reregister it and start it with the new token.",
    )
    TOKEN_REPLACED = (
        "token-replaced",
        401,
        "This token has been replaced",
        "The admin has reprovisioned or reregistered this ICE: start it with the newest token.",
    )
    TOKEN_EXPIRED = (
        "token-expired",
        401,
        "This token has expired",
        "The token was not used in time: ask the admin to reprovision this ICE and start it with the new token.",
    )
    KEY_MISMATCH = (
        "key-mismatch",
        403,
        "This token is registered to another machine",
        "The token is registered to another key, so to another machine: if the ICE has moved or lost its key, ask the admin to reregister it.",
    )


class EnrolmentCode(_Refusal):
    """Why the gateway refuses an enrolment, beside the codes of a handshake (docs/protocol.md)."""

    KEY_INVALID = (
        "enrolment-key-invalid",
        401,
        "Unknown enrolment key",
        "This enrolment key is unknown, revoked, expired or used up: ask the admin for a new one.",
    )
    MALFORMED_JSON = (
        "malformed-json",
        400,
        "Not JSON",
        "Send a JSON object in UTF-8.",
    )
    INVALID = (
        "invalid",
        422,
        "Not valid",
        "Correct what the enrolment asks for, or ask the admin for a key that allows it.",
    )
    REFUSED = (
        "enrolment-refused",
        403,
        "The enrolment was refused",
        "The admin has not allowed this machine to enrol: ask the admin.",
    )
    NOT_FOUND = (
        "not-found",
        404,
        "No such enrolment",
        "The enrolment has ended, or was made with another key: enrol again.",
    )
    ICE_EXISTS = (
        "ice-exists",
        409,
        "The ICE exists",
        "Enrol under another name, or ask the admin to reregister this ICE.",
    )
    QUEUE_FULL = (
        "queue-full",
        429,
        "Too many enrolments wait",
        "Too many machines wait for the admin's approval: ask the admin to decide on them.",
        True,
    )


REFUSALS: Final = {code.value: code for code in RefusalCode}
"""The refusals by their codes as sent."""
RETRIED_ONCE_ADMITTED: Final = frozenset(
    {RefusalCode.TOKEN_INVALID, RefusalCode.PROOF_INVALID, RefusalCode.BAD_HANDSHAKE}
)
"""Refusals that an ICE retries slowly if its token was admitted before: the fault may be the gateway's."""
SLOW_RETRY: Final = (300.0, 600.0)
"""The range of seconds between those retries; each is random."""


# --- close codes -------------------------------------------------------------------------------


class Then(enum.StrEnum):
    """What an ICE does after its connection was closed."""

    STOP = "stop"
    RECONNECT = "reconnect"
    WAIT = "wait, then reconnect"
    AFTER = "reconnect after retry_after"


class CloseCode(enum.IntEnum):
    """Why the gateway closes a connection: code and reason are sent, `then` is what the ICE does."""

    reason: str
    sentence: str
    then: Then

    def __new__(cls, code: int, reason: str, sentence: str, then: Then) -> Self:
        """Make a member that is its number."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.reason, member.sentence, member.then = reason, sentence, then
        return member

    DEREGISTERED = (
        4101,
        "deregistered",
        "The admin has deregistered this ICE; a person must act.",
        Then.STOP,
    )
    TOKEN_REPLACED = (
        4102,
        "token-replaced",
        "The admin has reregistered this ICE; it needs the new token.",
        Then.STOP,
    )
    SUPERSEDED = 4103, "superseded", "A newer session of this ICE has taken over.", Then.WAIT
    DISCONNECTED = 4201, "disconnected", "The admin has closed this connection.", Then.RECONNECT
    SLOW_CONSUMER = 4202, "slow-consumer", "The ICE read too slowly.", Then.RECONNECT
    HEARTBEAT_TIMEOUT = 4203, "heartbeat-timeout", "The ICE did not answer pings.", Then.RECONNECT
    PROTOCOL_ERROR = 1002, "protocol-error", "A frame broke RFC 6455.", Then.RECONNECT
    TEXT_ONLY = 1003, "text-only", "The ICE sent a binary frame; messages are text.", Then.RECONNECT
    INVALID_UTF_8 = 1007, "invalid-utf-8", "A text frame was not UTF-8.", Then.RECONNECT
    POLICY_VIOLATION = 1008, "not-json-rpc", "A message was not JSON-RPC 2.0.", Then.RECONNECT
    TOO_BIG = 1009, "too-big", "A message was larger than 1 MiB.", Then.RECONNECT
    RESTART = 1012, "restart", "The gateway is restarting or has lost its database.", Then.AFTER


CLOSINGS: Final = {code.value: code for code in CloseCode}
"""The close codes by number; a peer may send others."""
_UNKNOWN_REASONS_TO_WAIT: Final = range(4101, 4200)
"""Close codes with which a newer gateway ends what an admin or another session has ended."""


def after_close(code: int) -> Then:
    """What an ICE does after its connection was closed with this code, which may be unknown."""
    known = CLOSINGS.get(code)
    if known is not None:
        return known.then
    return Then.WAIT if code in _UNKNOWN_REASONS_TO_WAIT else Then.RECONNECT


SUPERSEDED_WAIT: Final = (60.0, 120.0)
"""The range of seconds that a superseded ICE waits; each wait is random."""
SUPERSEDED_LIMIT: Final = (3, 900.0)
"""An ICE that is superseded so many times within so many seconds stops: another process runs as this ICE."""
