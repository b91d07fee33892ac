"""The sentences of docs/protocol.md that the kit tries, and those that it cannot try.

Tested in tests/client/test_client_conformance_rules.py.
"""

from __future__ import annotations

import enum
from typing import Final, Self


class Sentence(enum.StrEnum):
    """A sentence, by its stable id; `section` is that of docs/protocol.md, `text` what an ICE does."""

    section: str
    text: str

    def __new__(cls, name: str, section: str, text: str) -> Self:
        """Make a member that is its id."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.section, member.text = section, text
        return member

    TOKEN_TRIMMED = (
        "token-trimmed",
        "1",
        "It strips white space and a byte order mark around the token.",
    )
    KEY_KEPT = (
        "key-kept",
        "1",
        "It stores its key before its first attempt, and keeps it over restarts.",
    )
    KEY_PRIVATE = "key-private", "1", "Only its user can read what it stores."
    NEW_TOKEN = "new-token", "1", "Started with a newer token, it uses that one."

    HANDSHAKE = (
        "handshake",
        "2",
        "It asks `GET <gateway>/ice/v1` for a WebSocket of version 13 with the subprotocol `ice.v1`.",
    )
    PREFIX = "prefix", "2", "The gateway's URL may have a path; the token is not in the URL."
    AUTHORIZATION = "authorization", "2", "It sends `Authorization: DPoP <token>`."
    PROOF_FORM = (
        "proof-form",
        "2",
        "The proof is a compact JWS of at most 4,096 characters, with the right `typ` and `alg`.",
    )
    PROOF_KEY = (
        "proof-key",
        "2",
        "`jwk` is its public key without a private member, and the signature is made with it.",
    )
    PROOF_CLAIMS = (
        "proof-claims",
        "2",
        "`htm`, `htu` and `ath` are those of the request and the token.",
    )
    PROOF_TIME = "proof-time", "2", "`iat` is now, in seconds."
    PROOF_FRESH = "proof-fresh", "2", "Each attempt has a proof with another `jti`."
    NONCE = "nonce", "2", "It answers the first `use-dpop-nonce` with a proof that has the nonce."
    NONCE_AGAIN = "nonce-again", "2", "It answers another `use-dpop-nonce` with that nonce."
    NO_SUBPROTOCOL = (
        "no-subprotocol",
        "2",
        "It closes a connection whose 101 does not name `ice.v1`, and tries again.",
    )

    RETRIED = "retried", "3", "It tries again after a refusal with `retry` true."
    RETRY_AFTER = "retry-after", "3", "It does not try again before `Retry-After`."
    RETRY_AFTER_LEAST = "retry-after-least", "3", "`Retry-After` below 1 counts as 1."
    FINAL = "final", "3", "It stops after a refusal with `retry` false."
    UNKNOWN_REFUSAL = "unknown-refusal", "3", "It obeys `retry` of a code that it does not know."
    RETRY_DECIDES = (
        "retry-decides",
        "3",
        "`retry` counts, also for a code that has usually another one.",
    )
    NO_PROBLEM = "no-problem", "3", "It tries again after an answer without such a body."
    NO_ANSWER = "no-answer", "3", "It tries again when there is no answer."
    REDIRECT = "redirect", "3", "It does not follow a redirect, but tries again."
    ADMITTED_BEFORE = (
        "admitted-before",
        "3",
        "Once admitted, it does not stop for `token-invalid`, `proof-invalid` and `bad-handshake`, nor try at once.",
    )
    FINAL_ADMITTED = (
        "final-admitted",
        "3",
        "Once admitted, it still stops for the other refusals with `retry` false.",
    )
    BACKOFF_BOUND = "backoff-bound", "3", "It comes back within the bounds of the backoff."
    BACKOFF_JITTER = "backoff-jitter", "3", "Its waits are random."
    BACKOFF_GROWS = "backoff-grows", "3", "Its waits grow from refusal to refusal."
    BACKOFF_SESSIONS = "backoff-sessions", "3", "An admission alone does not reset the backoff."

    MESSAGES = "messages", "4", "Each frame is text, and one JSON-RPC 2.0 message of this page."
    UNKNOWN_NOTIFICATION = "unknown-notification", "4", "It ignores an unknown notification."
    UNKNOWN_REQUEST = "unknown-request", "4", "It answers an unknown request with -32601."
    UNKNOWN_MEMBER = "unknown-member", "4", "It ignores members that it does not know."
    UNEXPECTED_RESPONSE = (
        "unexpected-response",
        "4",
        "It ignores a response that it does not expect.",
    )
    FRAGMENTS = "fragments", "4", "It takes a message in fragments, with a ping between them."
    LARGEST = "largest", "4", "It takes a message of 1 MiB."
    HELLO = (
        "hello",
        "4",
        "It sends `ice.hello` on each connection, with members of the right types.",
    )
    INSTANCE = (
        "instance",
        "4",
        "`instance` stays while the client runs, and differs after a restart.",
    )
    PONG = "pong", "4", "It answers a ping with a pong of the same content."
    PINGS_COUNT = "pings-count", "4", "It stays connected while nothing but pings arrives."
    SILENCE = "silence", "4", "It reconnects after a silence of two heartbeats, and not before."
    DEEPEST = "deepest", "4", "It takes JSON of 100 levels and numbers of 30 digits."
    TOO_COMPLEX = (
        "too-complex",
        "4",
        "It answers an `operation.run` beyond these bounds with an error, and stays connected.",
    )

    ACCEPTED = "accepted", "5", "It accepts an operation at once, before the work is done."
    UNKNOWN_KIND = "unknown-kind", "5", "It answers a kind without a handler with -32601."
    FINISH = "finish", "5", "It finishes an operation once, with its result."
    FINISH_FAILED = (
        "finish-failed",
        "5",
        "It finishes a failed operation with `error` of `code` and `message`.",
    )
    LARGEST_VALUE = "largest-value", "5", "It takes and sends a value of 1,000,000 bytes."
    TOO_LARGE = "too-large", "5", "It finishes an operation whose result is larger as failed."
    PROGRESS = (
        "progress",
        "5",
        "`operation.progress` has a `fraction` from 0 to 1, and comes before the finish.",
    )
    LOG = "log", "5", "`operation.log` comes in pieces of at most 65,536 bytes, before the finish."
    ID_ONCE = "id-once", "5", "It accepts a known id and does not run it again."
    ID_ONCE_RESTARTED = "id-once-restarted", "5", "Nor after a restart."
    FINISH_REPEATED = (
        "finish-repeated",
        "5",
        "It repeats an unanswered finish on the next connection.",
    )
    FINISH_DURABLE = "finish-durable", "5", "It repeats an unanswered finish after it was killed."
    FINISH_ANSWERED = "finish-answered", "5", "It does not repeat a finish that was answered."
    FINISH_REFUSED = "finish-refused", "5", "It does not repeat a finish that was refused."
    FINISH_LATER = (
        "finish-later",
        "5",
        "Work goes on without a connection; its finish comes on the next one.",
    )
    EIGHT_FINISHES = (
        "eight-finishes",
        "5",
        "It has at most 8 finishes unanswered, and sends all of them in the end.",
    )
    RUNNING = "running", "5", "`running` lists what it still works on."
    INTERRUPTED = (
        "interrupted",
        "5",
        "After a restart it goes on with an accepted operation, or finishes it as failed.",
    )
    CANCEL = "cancel", "5", "It finishes a cancelled operation as failed within 5 s."
    CANCEL_DEADLINE = (
        "cancel-deadline",
        "5",
        "It finishes one that is cancelled at its deadline with `deadline` or `cancelled`.",
    )
    CANCEL_OTHER = (
        "cancel-other",
        "5",
        "It obeys a cancel without a reason, or with one that it does not know.",
    )
    CANCEL_UNKNOWN = (
        "cancel-unknown",
        "5",
        "It ignores a cancel of an operation that it does not work on.",
    )

    CLOSE_STOPS = "close-stops", "6", "It stops after 4101 and 4102."
    CLOSE_SUPERSEDED = (
        "close-superseded",
        "6",
        "After 4103 it neither stops nor comes back at once.",
    )
    CLOSE_UNKNOWN = (
        "close-unknown",
        "6",
        "After an unknown code of 4101 to 4199 it waits in the same way.",
    )
    CLOSE_RECONNECTS = "close-reconnects", "6", "It reconnects after 4201, 4202 and 4203."
    CLOSE_VIOLATION = "close-violation", "6", "It reconnects after 1002, 1003, 1007, 1008 and 1009."
    CLOSE_OTHER = "close-other", "6", "It reconnects after any other code, or none."
    CLOSE_LOST = "close-lost", "6", "It reconnects when the connection is lost."
    CLOSE_ANSWERED = "close-answered", "6", "It answers a close frame."
    RESTART = "restart", "6", "After 1012 it comes back after `retry_after` seconds, not before."
    RESTART_LEAST = (
        "restart-least",
        "6",
        "After 1012 less than 1, or a reason that cannot be read, counts as 1 at the least.",
    )

    ONE_PROCESS = "one-process", "7", "A second process with the same state does not connect."
    CERTIFICATE = (
        "certificate",
        "7",
        "It sends nothing to a server whose certificate is not trusted.",
    )
    PLAIN_HTTP = "plain-http", "7", "It sends nothing over plain `http` beyond loopback."
    TOKEN_SECRET = "token-secret", "7", "It does not print its token or a proof."

    ENROL_REQUEST = (
        "enrol-request",
        "Enrolment",
        "It asks by `POST <gateway>/ice/v1/enrolments` with a JSON object of the right members.",
    )
    ENROL_SECRET = (
        "enrol-secret",
        "Enrolment",
        "It sends `Authorization: Bearer <secret>`, and the secret nowhere else.",
    )
    ENROL_PROOF = (
        "enrol-proof",
        "Enrolment",
        "Each request has a new proof, made for its method and URL and for the secret, and with the nonce that was asked for.",
    )
    ENROL_KEY = (
        "enrol-key",
        "Enrolment",
        "Each request, and the handshake after it, is signed by one key, also after a lost answer or a restart.",
    )
    ENROL_TOKEN = (
        "enrol-token",
        "Enrolment",
        "It stores the token, connects with it, and does not enrol again.",
    )
    ENROL_WAIT = (
        "enrol-wait",
        "Enrolment",
        "After 202 it asks by `GET` for its enrolment, not before `retry_after` seconds.",
    )
    ENROL_WAIT_KEPT = (
        "enrol-wait-kept",
        "Enrolment",
        "After a restart it goes on with the enrolment that waits.",
    )
    ENROL_ANEW = "enrol-anew", "Enrolment", "It asks anew when its enrolment is not found."
    ENROL_RETRIED = (
        "enrol-retried",
        "Enrolment",
        "It tries again after a refusal with `retry` true, not before `Retry-After`, and after any other answer.",
    )
    ENROL_FINAL = "enrol-final", "Enrolment", "It stops after a refusal with `retry` false."
    ENROL_SECRET_KEPT = (
        "enrol-secret-kept",
        "Enrolment",
        "It neither stores nor prints the secret of the enrolment key.",
    )


ENROLMENT: Final = frozenset(one for one in Sentence if one.section == "Enrolment")
"""The sentences of an ICE that gets its token by enrolment."""
CONNECTION: Final = frozenset(Sentence) - ENROLMENT
"""The sentences of every ICE."""
CANNOT_TRY: Final = {
    "that it waits 60 to 120 s after 4103, and stops at the third within 15 minutes": "it takes minutes",
    "that it tries again 5 to 10 minutes after a refusal that may be the gateway's fault": "it takes minutes",
    "that the backoff ends at 60 s, and starts anew after a session of 60 s": "it takes minutes",
    "that it gives up a handshake, or a connection without a welcome, after 30 s": "these are its own times",
    "that it ignores 4103 on a connection that it has itself replaced": "the kit cannot make it replace one",
    "`ice.accepts`, and `accepts` of the hello beyond its type": "its user decides; the kit has no such command",
    "that its work has ended after 4101 and 4102": "nothing shows it on the wire",
    "a right certificate, proxies": "they are set up in each program in its own way",
    "RFC 6455 in all depth (masking, reserved bits, wrong frames)": "the Autobahn test suite does that",
}
"""What the kit cannot try, and why."""
