"""Registration tokens: compact JWE (RFC 7516), `dir` with `A256GCM`, sealed by keys that only we have.

Pure: the key file is read and written by `keyfile`. Source: contract section 4. The protected header
carries `iat` beside `kid` (RFC 7519 section 5.3 allows such a copy), so that a client can tell which of
two tokens is the newer without being able to open either.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.protocol import MAX_TOKEN
from gateway.core import base64url
from gateway.core.ice import IceType
from gateway.core.secret import Secret

KEY_BYTES: Final = 32
_IV_BYTES: Final = 12  # RFC 7518 section 5.3: a 96 bit IV
_TAG_BYTES: Final = 16
_JTI_BYTES: Final = 16  # 128 random bits: two tokens of one generation never look alike


class _Header(msgspec.Struct, frozen=True):
    alg: str
    enc: str
    kid: str
    iat: float


class _Claims(msgspec.Struct, frozen=True):
    ice_name: str
    ice_type: IceType
    generation: int
    jti: str
    iat: float


class Opened(msgspec.Struct, frozen=True, gc=False):
    """What a genuine token says, and the SHA-256 under which the table knows it."""

    ice_name: str
    ice_type: IceType
    generation: int
    digest: str


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """The envelope names a key that is not in the ring: the key file may have grown."""

    kid: str


class Key:
    """One 256 bit key, its `kid`, and when it was made if that is known; its bytes stay inside."""

    __slots__ = ("_secret", "cipher", "kid", "made")

    def __init__(self, kid: str, secret: bytes, made: datetime | None = None) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a token key has {KEY_BYTES} bytes")
        self.kid = kid
        self.made = made
        self.cipher = AESGCM(secret)
        self._secret = secret

    @classmethod
    def generate(cls, now: datetime) -> Key:
        """A new random key. Its id is typed as an argument: it does not look like an option."""
        kid = "-"
        while kid.startswith("-"):
            kid = base64url.encode(secrets.token_bytes(6))
        return cls(kid, secrets.token_bytes(KEY_BYTES), now)

    def reveal(self) -> bytes:
        """The key's bytes, for the key file."""
        return self._secret

    def __repr__(self) -> str:
        return f"Key({self.kid!r}, ***)"


class KeyRing:
    """The keys that open tokens, and the one of them that seals."""

    __slots__ = ("_keys", "_seals")

    def __init__(self, keys: Iterable[Key], seals: str) -> None:
        self._keys = {key.kid: key for key in keys}
        self._seals = self._keys[seals]

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, the oldest first."""
        return tuple(self._keys.values())

    @property
    def seals(self) -> str:
        """The id of the key that seals."""
        return self._seals.kid

    def with_key(self, key: Key) -> KeyRing:
        """One more key, which only opens."""
        return KeyRing((*self.keys, key), self.seals)

    def sealing_with(self, kid: str) -> KeyRing:
        """The same keys, of which `kid` seals. Raises KeyError."""
        return KeyRing(self.keys, kid)

    def without(self, kid: str) -> KeyRing:
        """One key less. Raises KeyError for the one that seals."""
        return KeyRing((key for key in self.keys if key.kid != kid), self.seals)

    def joined(self, other: KeyRing) -> KeyRing:
        """The keys of both; what seals here goes on sealing. Raises ValueError where they clash."""
        for kid in self._keys.keys() & other._keys.keys():
            if self._keys[kid].reveal() != other._keys[kid].reveal():
                raise ValueError(f"there are two keys of the id {kid}")
        return KeyRing((other._keys | self._keys).values(), self.seals)

    def derived(self, purpose: bytes) -> bytes:
        """A key of 32 bytes for another purpose, which all have who have these: of the oldest of them."""
        return hmac.digest(self.keys[0].reveal(), purpose, "sha256")

    def seal(self, ice_name: str, ice_type: IceType, generation: int, now: datetime) -> Secret:
        """A new token for this ICE and generation."""
        key = self._seals
        iat = round(now.timestamp(), 6)
        header = base64url.encode(msgspec.json.encode(_Header("dir", "A256GCM", key.kid, iat)))
        claims = msgspec.json.encode(
            _Claims(
                ice_name,
                ice_type,
                generation,
                base64url.encode(secrets.token_bytes(_JTI_BYTES)),
                iat,
            )
        )
        iv = secrets.token_bytes(_IV_BYTES)
        # RFC 7516 section 5.1: the additional authenticated data is the encoded header.
        sealed = key.cipher.encrypt(iv, claims, header.encode())
        text = ".".join(
            (
                header,
                "",  # section 5.1, step 5: with `dir` the encrypted key is empty
                base64url.encode(iv),
                base64url.encode(sealed[:-_TAG_BYTES]),
                base64url.encode(sealed[-_TAG_BYTES:]),
            )
        )
        assert len(text) <= MAX_TOKEN, "a token outgrew the contract"  # noqa: S101 - cannot happen: names have 64 characters
        return Secret(text)

    def open(self, token: Secret) -> Opened | UnknownKey | None:
        """What the token says, or None when it is not one of ours."""
        return open_with(self._keys, token)


def open_with(keys: dict[str, Key], token: Secret) -> Opened | UnknownKey | None:
    """Open `token` with the key that its header names. Costs no I/O and never raises."""
    text = token.reveal()
    if len(text) > MAX_TOKEN or not text.isascii():
        return None
    parts = text.split(".")
    if len(parts) != 5 or parts[1]:  # noqa: PLR2004 - RFC 7516 section 7.1
        return None
    try:
        header = msgspec.json.decode(base64url.decode(parts[0]), type=_Header)
        iv, body, tag = (base64url.decode(part) for part in parts[2:])
        if (header.alg, header.enc) != ("dir", "A256GCM") or len(iv) != _IV_BYTES:
            return None
        if len(tag) != _TAG_BYTES:
            return None
        key = keys.get(header.kid)
        if key is None:
            return UnknownKey(header.kid)
        plain = key.cipher.decrypt(iv, body + tag, parts[0].encode())
        claims = msgspec.json.decode(plain, type=_Claims)
    except (ValueError, InvalidTag, RecursionError):
        return None
    return Opened(claims.ice_name, claims.ice_type, claims.generation, token.digest())
