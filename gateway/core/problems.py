"""The catalogue of refusals of the admin API and the commands: code, HTTP status, title, sentence.

The codes that an ICE may meet are in `client.protocol`; `refusal` makes them HTTP answers. Problem documents follow
RFC 9457. Source: docs/protocol.md and docs/api.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from client.protocol import EnrolmentCode, RefusalCode

MAX_QUOTED: Final = 200
"""Maximum characters of the input that a refusal quotes."""
_MAX_DETAIL: Final = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal: `detail` says what a person should do, `more` holds further members of the document."""

    code: str
    status: int
    title: str
    detail: str
    more: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "status": self.status,
            "title": self.title,
            "detail": self.detail,
            "code": self.code,
            **self.more,
        }


# Sentences that the product's owner has fixed word for word.
ALREADY_EXISTS: Final = "ICE Provision Failed! ICE Name or User already exists"
NAME_IS_FINAL: Final = "ICE Names cannot be changed or deleted"

_CATALOGUE: Final = {
    "malformed-json": (400, "Not JSON", "Send a JSON object in UTF-8."),
    "bad-request": (400, "Bad request", "The request is not valid HTTP."),
    "unauthenticated": (
        401,
        "Not authenticated",
        "Send `Authorization: Bearer <API token>` with a token that is neither expired nor revoked.",
    ),
    "forbidden": (403, "Not allowed", "Your role does not allow this."),
    "not-found": (404, "Not found", "There is nothing at this address."),
    "not-registered": (
        404,
        "Not registered",
        "Not registered: no token has been provisioned for an ICE of this name.",
    ),
    "method-not-allowed": (405, "Method not allowed", "Use a method that the Allow header names."),
    "timeout": (408, "Too slow", "The request did not arrive in time."),
    "ice-exists": (409, "The ICE exists", ALREADY_EXISTS),
    "wrong-status": (409, "Not possible in this status", "The ICE has another status."),
    "owner-disabled": (
        409,
        "The user is disabled",
        "The user of this ICE is disabled: name another user, or enable this one.",
    ),
    "last-admin": (
        409,
        "The last admin",
        "Nobody could administer any more: give another user the role and a password first.",
    ),
    "last-node": (
        409,
        "The last node that serves",
        "No node would admit ICEs any more: start or resume another one, or force it.",
    ),
    "kind-not-allowed": (
        409,
        "Not for this type of ICE",
        "An ICE of this type does not accept operations of this kind.",
    ),
    "already-finished": (409, "Already finished", "The operation has already finished."),
    "already-decided": (
        409,
        "Not waiting any more",
        "The enrolment was decided on, or has ended, since you read it.",
    ),
    "in-use": (409, "In use", "Something still needs it: end that first."),
    "too-many-schedules": (
        409,
        "Too many schedules",
        "This ICE or pool has too many schedules, or there are too many in all: delete one first.",
    ),
    "user-exists": (409, "The user exists", "Choose another user name."),
    "subject-in-use": (
        409,
        "The subject is of another user",
        "The issuer's subject belongs to another user: make that one local first.",
    ),
    "no-password": (
        409,
        "Not by password",
        "This user does not log in by password.",
    ),
    "reset": (
        409,
        "The log ends before",
        "The audit log ends before this event, as after a restore: start again from the beginning.",
    ),
    "stale": (
        412,
        "Somebody else was first",
        "The entry has changed since you read it: read it again and decide again.",
    ),
    "too-large": (413, "Too large", "Send less than 1 MiB."),
    "uri-too-long": (414, "Too long", "Ask for a shorter address."),
    "unsupported-media-type": (415, "Not JSON", "Send the body as application/json."),
    "expectation-failed": (417, "Not expected", "Omit Expect, or send `Expect: 100-continue`."),
    "invalid": (422, "Not valid", "A field is not valid."),
    "headers-too-large": (431, "Headers too large", "Send fewer, or shorter, headers."),
    "internal": (500, "Fault of the gateway", "The gateway's log says more."),
    "keys-unavailable": (503, "No key to seal with", "The file of the token keys cannot be used."),
    "too-many-attempts": (429, "Too many attempts", "Too many failed attempts. Try again later."),
    "too-many-streams": (
        429,
        "Too many event streams",
        "This user already reads 32 event streams: close one.",
    ),
    "too-many-exports": (
        429,
        "Too many exports",
        "This user already reads 4 exports of the audit log: wait until one has ended.",
    ),
    "queue-full": (
        429,
        "Too much waits for this ICE",
        "It has too many unfinished operations, or they are too large: wait until some finish, or cancel some.",
    ),
    "unavailable": (503, "Not available", "Try again later."),
    "store-unavailable": (
        503,
        "The table cannot be read or written",
        "Nothing was changed. Try again; if it lasts, /readyz and the gateway's log say why.",
    ),
}
CODES: Final = frozenset(_CATALOGUE)
"""Every code of the catalogue."""


def problem(code: str, detail: str | None = None, **more: Any) -> Problem:
    """A refusal from the catalogue; `detail` replaces its sentence if that is too general."""
    status, title, sentence = _CATALOGUE[code]
    return Problem(code, status, title, _cut(detail or sentence, _MAX_DETAIL), more)


def invalid(field_name: str, reason: str) -> Problem:
    """The refusal of an invalid field. Both texts may quote the input and are cut."""
    name = quoted(field_name)
    return problem("invalid", f"{name}: {quoted(reason)}", field=name)


def quoted(text: str) -> str:
    """The input, cut to `MAX_QUOTED` characters."""
    return _cut(text, MAX_QUOTED)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


_CHALLENGES: Final[dict[str, str]] = {
    RefusalCode.TOKEN_MISSING: 'DPoP algs="ES256 Ed25519 EdDSA"',
    RefusalCode.PROOF_INVALID: 'DPoP error="invalid_dpop_proof"',
    RefusalCode.USE_DPOP_NONCE: 'DPoP error="use_dpop_nonce"',
    EnrolmentCode.KEY_INVALID: 'Bearer error="invalid_token"',  # RFC 6750 section 3
}


def refusal(
    code: RefusalCode | EnrolmentCode,
    *,
    detail: str | None = None,
    retry: bool | None = None,
    retry_after: int | None = None,
    nonce: str | None = None,
    field: str | None = None,
) -> Problem:
    """A refusal of a handshake or an enrolment; `retry` tells the ICE whether it may try again by itself."""
    headers = {}
    if code.status == 401:  # noqa: PLR2004 - RFC 9110 section 15.5.2: a 401 has a challenge
        headers["WWW-Authenticate"] = _CHALLENGES.get(code, 'DPoP error="invalid_token"')
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if nonce is not None:
        headers["DPoP-Nonce"] = nonce
    return Problem(
        code.value,
        code.status,
        code.summary,
        code.detail if detail is None else f"{_cut(detail, _MAX_DETAIL)}. {code.detail}",
        {"retry": code.retry if retry is None else retry} | ({"field": field} if field else {}),
        headers,
    )
