"""Registration tokens: compact JWE (RFC 7516), `dir` with `A256GCM`, sealed with keys that only the gateway has.

Pure: `store.key_file` reads and writes the key file. Source: docs/protocol.md. The protected header repeats
`iat` (RFC 7519 section 5.3 allows this), so that a client can tell which of two tokens is newer without
opening either.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.protocol import MAX_TOKEN
from gateway.core import base64url
from gateway.core.enrolment import MAC_PURPOSE
from gateway.core.ice import IceType
from gateway.core.secret import Secret

KEY_BYTES: Final = 32
_IV_BYTES: Final = 12  # RFC 7518 section 5.3: a 96 bit IV
_TAG_BYTES: Final = 16
_JTI_BYTES: Final = 16  # 128 random bits: two tokens of one generation always differ


class _Header(msgspec.Struct, frozen=True):
    alg: str
    enc: str
    kid: str
    iat: float


class _Confirmation(msgspec.Struct, frozen=True):
    jkt: str  # RFC 7800 section 3, RFC 9449 section 6.1: the thumbprint of a key


class _Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    ice_name: str
    ice_type: IceType
    generation: int
    jti: str
    iat: float
    cnf: _Confirmation | None = None


_HEADER: Final = msgspec.json.Decoder(_Header)
_CLAIMS: Final = msgspec.json.Decoder(_Claims)


class OpenedToken(msgspec.Struct, frozen=True, gc=False):
    """The claims of a genuine token, and its SHA-256, which the table stores.

    `thumbprint` is that of the key for which the token was made; None: for whichever key registers.
    """

    ice_name: str
    ice_type: IceType
    generation: int
    digest: str
    thumbprint: str | None = None


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """The header names a key that is not in the ring: another node may have added one to the key file."""

    kid: str


class RetiredToken(msgspec.Struct, frozen=True, gc=False):
    """A token whose header names a retired key: nothing opens it, so only its SHA-256 may be known."""

    digest: str


class Key:
    """A 256 bit key, its `kid`, and when it was made if known; only `reveal` returns its bytes."""

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
        """A new random key. Its id never begins with `-`: people type it as a command argument."""
        kid = "-"
        while kid.startswith("-"):
            kid = base64url.encode(secrets.token_bytes(6))
        return cls(kid, secrets.token_bytes(KEY_BYTES), now)

    def reveal(self) -> bytes:
        """The key's bytes, for the key file."""
        return self._secret

    def derived(self, purpose: bytes) -> bytes:
        """A key of 32 bytes for another purpose."""
        return hmac.digest(self._secret, purpose, "sha256")

    def __repr__(self) -> str:
        return f"Key({self.kid!r}, ***)"


class KeyRing:
    """The keys that open tokens; one of them also seals.

    Of retired keys only the ids are kept, and `id_keys`: what authenticates the ids of enrolment keys.
    """

    __slots__ = ("_all_id_keys", "_id_keys", "_keys", "_retired", "_seals")

    def __init__(
        self,
        keys: Iterable[Key],
        seals: str,
        retired: Iterable[str] = (),
        id_keys: Iterable[bytes] = (),
    ) -> None:
        self._keys = {key.kid: key for key in keys}
        self._seals = self._keys[seals]
        # A key that was put back into the file is not retired any more.
        self._retired = dict.fromkeys(kid for kid in retired if kid not in self._keys)
        self._id_keys = dict.fromkeys(id_keys)
        self._all_id_keys: tuple[bytes, ...] | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, oldest first."""
        return tuple(self._keys.values())

    @property
    def seals(self) -> str:
        """The id of the key that seals."""
        return self._seals.kid

    @property
    def sealing_key(self) -> Key:
        """The key that seals."""
        return self._seals

    @property
    def retired(self) -> tuple[str, ...]:
        """The ids of the retired keys, in the order of their retirement."""
        return tuple(self._retired)

    @property
    def retired_id_keys(self) -> tuple[bytes, ...]:
        """What the retired keys authenticated ids with."""
        return tuple(self._id_keys)

    @property
    def id_keys(self) -> tuple[bytes, ...]:
        """What authenticates the ids of enrolment keys: make them with the first, verify with any."""
        if self._all_id_keys is None:  # each machine that enrols needs them
            self._all_id_keys = (*self.derived(MAC_PURPOSE), *self._id_keys)
        return self._all_id_keys

    def with_key(self, key: Key) -> KeyRing:
        """This ring with one more key, which only opens."""
        return KeyRing((*self.keys, key), self.seals, self._retired, self._id_keys)

    def sealing_with(self, kid: str) -> KeyRing:
        """This ring with `kid` as the key that seals. Raises KeyError."""
        return KeyRing(self.keys, kid, self._retired, self._id_keys)

    def retiring(self, kid: str) -> KeyRing:
        """This ring without `kid`, but for its id and id key. Raises KeyError for the key that seals, or none."""
        kept = (key for key in self.keys if key.kid != kid)
        id_keys = (*self._id_keys, self._keys[kid].derived(MAC_PURPOSE))
        return KeyRing(kept, self.seals, (*self._retired, kid), id_keys)

    def merged(self, other: KeyRing) -> KeyRing:
        """The keys of both rings, without those that this ring has retired; this ring's key seals.

        Raises ValueError if two keys have the same id.
        """
        for kid in self._keys.keys() & other._keys.keys():
            if self._keys[kid].reveal() != other._keys[kid].reveal():
                raise ValueError(f"there are two keys of the id {kid}")
        keys = (other._keys | self._keys).values()
        return KeyRing(
            (key for key in keys if key.kid not in self._retired),
            self.seals,
            (*self._retired, *other.retired),
            (*self._id_keys, *other.retired_id_keys),
        )

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """Keys of 32 bytes for another purpose, one derived from each key: sign with the first, verify with any.

        The first comes from the key that seals. All copies of the key file have that key before one seals
        with it, and until none does.
        """
        others = (key for key in self.keys if key is not self._seals)
        return tuple(key.derived(purpose) for key in (self._seals, *others))

    def seal(
        self,
        ice_name: str,
        ice_type: IceType,
        generation: int,
        now: datetime,
        thumbprint: str | None = None,
    ) -> Secret:
        """A new token for this ICE and generation, and for the key of `thumbprint` alone, if it is given."""
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
                None if thumbprint is None else _Confirmation(thumbprint),
            )
        )
        iv = secrets.token_bytes(_IV_BYTES)
        # RFC 7516 section 5.1: the additional authenticated data is the encoded header.
        sealed = key.cipher.encrypt(iv, claims, header.encode())
        text = ".".join(
            (
                header,
                "",  # section 5.1, step 5: `dir` has no encrypted key
                base64url.encode(iv),
                base64url.encode(sealed[:-_TAG_BYTES]),
                base64url.encode(sealed[-_TAG_BYTES:]),
            )
        )
        assert len(text) <= MAX_TOKEN, "a token outgrew its bound"  # noqa: S101 - cannot happen: names have 64 characters
        return Secret(text)

    def open(self, token: Secret) -> OpenedToken | RetiredToken | UnknownKey | None:
        """The claims of the token; None if this gateway did not issue it."""
        return open_with(self._keys, token, self._retired)


def open_with(
    keys: Mapping[str, Key], token: Secret, retired: Container[str] = ()
) -> OpenedToken | RetiredToken | UnknownKey | None:
    """Open `token` with the key that its header names; never raises."""
    text = token.reveal()
    if len(text) > MAX_TOKEN or not text.isascii():
        return None
    parts = text.split(".")
    if len(parts) != 5 or parts[1]:  # noqa: PLR2004 - RFC 7516 section 7.1
        return None
    try:
        header = _HEADER.decode(base64url.decode_text(parts[0]))
        iv, body, tag = map(base64url.decode, parts[2:])
        if (header.alg, header.enc) != ("dir", "A256GCM") or len(iv) != _IV_BYTES:
            return None
        if len(tag) != _TAG_BYTES:
            return None
        key = keys.get(header.kid)
        if key is None:
            return RetiredToken(token.digest()) if header.kid in retired else UnknownKey(header.kid)
        plain = key.cipher.decrypt(iv, body + tag, parts[0].encode())
        claims = _CLAIMS.decode(plain.decode())
    except (ValueError, InvalidTag, RecursionError):
        return None
    return OpenedToken(
        claims.ice_name,
        claims.ice_type,
        claims.generation,
        token.digest(),
        None if claims.cnf is None else claims.cnf.jkt,
    )
