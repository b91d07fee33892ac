"""What a browser keeps of a login that it began at an issuer: sealed, so that any node can finish the login. Pure.

The cookie holds a sealed JSON object (`core.sealing`). Its keys are derived from the token keys, which all nodes share.
Source: OpenID Connect Core 1.0 section 3.1.2.1 (state, nonce), RFC 7636 (PKCE), RFC 9700 section 4.7.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec

from gateway.core import base64url, sealing
from gateway.core.secret import Secret

PURPOSE: Final = b"login state"
"""What the sealing keys are derived for; see `KeyRing.derived`."""
LIFETIME: Final = 600.0
"""Seconds in which a person can log in at the issuer."""
_MAX_SEALED: Final = 4096
"""Characters; browsers keep no longer cookies."""


class LoginState(msgspec.Struct, frozen=True):
    """A login that has begun. Only the browser that began it has `state` and `verifier`.

    Attributes:
        state: comes back with the code.
        nonce: comes back in the ID token.
        verifier: proves to the token endpoint that this gateway asked for the code.
        to: the address below `/admin/` to go to after the login.
        began: when, in seconds since 1970.
    """

    state: str
    nonce: str
    verifier: str
    to: str
    began: float

    @classmethod
    def new(cls, to: str, now: datetime) -> LoginState:
        """A login that begins now, with values that nobody can guess (256 bits each)."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(state, nonce, verifier, to, now.timestamp())

    def __repr__(self) -> str:
        return "LoginState(***)"

    @property
    def challenge(self) -> str:
        """The code challenge of the method S256 (RFC 7636 section 4.2)."""
        return base64url.encode(hashlib.sha256(self.verifier.encode()).digest())

    def seal(self, key: bytes) -> Secret:
        """The value of its cookie."""
        return Secret(sealing.seal(key, msgspec.json.encode(self)))


def open_state(sealed: Secret, keys: Iterable[bytes], now: datetime) -> LoginState | None:
    """The login in a cookie; None if no key opens it, or if it began more than `LIFETIME` ago."""
    text = sealed.reveal()
    if len(text) > _MAX_SEALED or not text.isascii():
        return None
    for key in keys:
        plain = sealing.open_sealed(key, text)
        if plain is None:
            continue
        try:
            found = msgspec.json.decode(plain, type=LoginState)
        except msgspec.DecodeError:  # a node of another version has sealed it
            return None
        # A node whose clock is behind may read it before it began.
        return found if abs(now.timestamp() - found.began) <= LIFETIME else None
    return None
