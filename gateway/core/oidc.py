"""What OpenID Connect requires of an issuer's metadata and claims, and what the gateway makes of them. Pure.

Source: OpenID Connect Core 1.0, Discovery 1.0, Back-Channel Logout 1.0; RFC 8414, RFC 9207.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from gateway.core import json_input
from gateway.core.addresses import is_loopback
from gateway.core.jwks import ALGORITHMS, BadToken
from gateway.core.login_rules import SUBJECT_RULE, is_subject
from gateway.core.login_state import LoginState
from gateway.core.roles import Role

LEEWAY: Final = 60.0
"""Seconds by which the clocks of issuer and gateway may differ."""
LOGOUT_LIFETIME: Final = 600.0
"""Seconds in which an issuer may repeat a logout token that did not arrive."""
LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
_RANK: Final = (Role.ADMIN, Role.AUDITOR, Role.MEMBER)
"""From the highest."""


class BadMetadata(ValueError):
    """The issuer's metadata cannot be used; the text says why."""


class Metadata(
    msgspec.Struct,
    frozen=True,
    rename={"iss_parameter": "authorization_response_iss_parameter_supported"},
):
    """What the gateway needs of an issuer's metadata (OpenID Connect Discovery 1.0 section 3).

    `iss_parameter` says whether the issuer names itself where it sends the browser back (RFC 9207 section 3).
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    scopes_supported: list[str] | None = None
    token_endpoint_auth_methods_supported: list[str] | None = None
    id_token_signing_alg_values_supported: list[str] | None = None
    code_challenge_methods_supported: list[str] | None = None
    backchannel_logout_supported: bool = False
    iss_parameter: bool = False

    @classmethod
    def parse(cls, data: bytes, issuer: str) -> Metadata:
        """Parse the metadata of `issuer`. Raises `BadMetadata`."""
        try:
            found = json_input.decode(data, cls)
        except ValueError:
            raise BadMetadata("its metadata is not that of an OpenID Connect issuer") from None
        # Exactly, or another issuer could answer for this one (section 4.3).
        if found.issuer != issuer:
            raise BadMetadata("its metadata names another issuer")
        plain = is_loopback(urlsplit(issuer).hostname or "")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
            url = getattr(found, name)
            if url is not None and not _is_safe(url, plain=plain):
                raise BadMetadata(f"its {name} is not an https URL")
        offered = found.id_token_signing_alg_values_supported
        if offered is not None and not set(ALGORITHMS) & set(offered):
            raise BadMetadata(f"it signs ID tokens with none of {', '.join(ALGORITHMS)}")
        methods = found.code_challenge_methods_supported
        if methods and "S256" not in methods:
            raise BadMetadata("it does not know PKCE with S256")
        return found

    def scopes(self, wanted: tuple[str, ...], groups_claim: str) -> tuple[str, ...]:
        """The scopes to ask for: those of the settings, else what the issuer offers of the usual ones."""
        offered = self.scopes_supported or ()
        usual = [scope for scope in ("email", "groups", groups_claim) if scope in offered]
        return tuple(dict.fromkeys(("openid", *(wanted or ("profile", *usual)))))

    def authentication(self, *, has_secret: bool) -> str:
        """How the gateway proves who it is at the token endpoint (Core section 9). Raises `BadMetadata`."""
        if not has_secret:
            return "none"
        offered = self.token_endpoint_auth_methods_supported or ["client_secret_basic"]
        for method in ("client_secret_basic", "client_secret_post"):
            if method in offered:
                return method
        raise BadMetadata("it accepts no client secret")

    def authorization_url(
        self, login: LoginState, *, client_id: str, redirect_url: str, scopes: Iterable[str]
    ) -> str:
        """Where the browser goes to log in (Core section 3.1.2.1, RFC 7636 section 4.3)."""
        query = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": redirect_url,
            "scope": " ".join(scopes),
            "state": login.state,
            "nonce": login.nonce,
            "code_challenge": login.challenge,
            "code_challenge_method": "S256",
        }
        # The endpoint may have a query of its own (RFC 6749 section 3.1).
        joint = "&" if "?" in self.authorization_endpoint else "?"
        return f"{self.authorization_endpoint}{joint}{urlencode(query)}"


def discovery_url(issuer: str) -> str:
    """Where an issuer publishes its metadata (Discovery section 4.1)."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def _is_safe(url: str, *, plain: bool) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if (
        not host
        or "@" in parts.netloc
        or parts.fragment
        or not (url.isascii() and url.isprintable())
        or " " in url  # `urlsplit` would pass over one at the beginning
    ):
        return False
    return parts.scheme == "https" or (plain and parts.scheme == "http" and is_loopback(host))


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an ID token is about, and the issuer's session; `claims` are all that it says."""

    subject: str
    sid: str | None
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Logout:
    """Whose logins end: those of the session `sid`, or all of `subject`.

    It is valid once, by its `jti`, until `until` (Unix time in seconds).
    """

    subject: str | None
    sid: str | None
    jti: str
    until: float


def check_id_token(
    claims: Mapping[str, Any], *, issuer: str, client_id: str, nonce: str, now: datetime
) -> Identity:
    """Check the claims of an ID token whose signature is right (Core section 3.1.3.7). Raises `BadToken`."""
    _check_parties(claims, issuer, client_id)
    _check_times(claims, now, LEEWAY)
    if claims.get("nonce") != nonce:
        raise BadToken("it has the nonce of another login")
    subject = _text(claims, "sub")
    if subject is None:
        raise BadToken("it has no sub")
    return Identity(subject, _text(claims, "sid"), claims)


def check_logout_token(
    claims: Mapping[str, Any], *, issuer: str, client_id: str, now: datetime
) -> Logout:
    """Check the claims of a logout token whose signature is right (Back-Channel Logout section 2.6).

    Raises `BadToken`.
    """
    _check_parties(claims, issuer, client_id)
    _check_times(claims, now, LOGOUT_LIFETIME)
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
        raise BadToken("it is no logout token")
    if "nonce" in claims:  # or an ID token could be taken for one
        raise BadToken("it has a nonce")
    jti, subject, sid = (_text(claims, name) for name in ("jti", "sub", "sid"))
    if jti is None:
        raise BadToken("it has no jti")
    if subject is None and sid is None:
        raise BadToken("it names neither sub nor sid")
    return Logout(subject, sid, jti, claims["iat"] + LOGOUT_LIFETIME + LEEWAY)


def _check_parties(claims: Mapping[str, Any], issuer: str, client_id: str) -> None:
    """Check who issued a token, and for whom."""
    if claims.get("iss") != issuer:
        raise BadToken("it is of another issuer")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences:
        raise BadToken("it is for another client")
    authorized = claims.get("azp")
    if authorized != client_id and (authorized is not None or len(audiences) > 1):
        raise BadToken("it is for several clients and was issued to another one")


def _check_times(claims: Mapping[str, Any], now: datetime, age: float) -> None:
    """Check that a token has not expired, and was issued in the last `age` seconds."""
    present = now.timestamp()
    expires, issued = _number(claims, "exp"), _number(claims, "iat")
    if expires is None or issued is None:
        raise BadToken("it has no exp or no iat")
    if present >= expires + LEEWAY:
        raise BadToken("it has expired")
    if not -LEEWAY <= present - issued <= age:
        raise BadToken(
            "it was not issued just now: compare the clocks of the gateway and the issuer"
        )
    begins = _number(claims, "nbf")
    if begins is not None and begins > present + LEEWAY:
        raise BadToken("it is not valid yet")


def _number(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return value
    except OverflowError:  # an integer beyond all floats
        pass
    raise BadToken(f"its {name} is no number")


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """A claim that is stored: `sub`, `sid` or `jti`; None if there is none. Raises `BadToken` if it cannot be stored."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not is_subject(value):
        raise BadToken(f"its {name} does not have {SUBJECT_RULE}")
    return value


def groups_of(value: object) -> frozenset[str]:
    """The groups in a claim: a list of texts, or one text where an issuer writes a single group so.

    Anything else has no group.
    """
    if isinstance(value, str):
        return frozenset((value,))
    if not isinstance(value, list):
        return frozenset()
    return frozenset(group for group in value if isinstance(group, str))


def role_of(groups: frozenset[str], roles: Mapping[str, Role]) -> Role | None:
    """The highest role of these groups; None if none of them has one."""
    held = {role for group, role in roles.items() if group in groups}
    return next((role for role in _RANK if role in held), None)
