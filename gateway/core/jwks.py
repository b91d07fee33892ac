"""The public keys of an issuer, and the signatures that they verify. Pure.

Only asymmetric signatures count: a symmetric one could be made with the client secret, or with a public key that is
taken for a secret. Keys come from the issuer's JWK Set alone, never from the header of what they verify.
Source: RFC 7515, RFC 7517, RFC 8725 section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from gateway.core import base64url, json_input
from gateway.core.secret import Secret

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
"""The algorithms that are accepted."""
_KIND: Final[dict[str, type]] = {
    "RS256": RSAKey,
    "PS256": RSAKey,
    "ES256": ECKey,
    "EdDSA": OKPKey,
}
_CURVES: Final = {ECKey.key_type: ("P-256",), OKPKey.key_type: ("Ed25519", "Ed448")}
_RSA_BITS: Final = range(2048, 8193)
"""RFC 7518 section 3.3 wants 2048 at least; a longer key than 8192 takes long to verify with."""
_EXPONENT_BITS: Final = 32
"""Issuers use 65537. An exponent as long as the modulus makes a verification 100 times as slow."""
MAX_TOKEN: Final = 32 * 1024
"""Characters of a signed token: some 600 groups. JSON of that size with the slowest numbers takes 40 ms to read."""
_MAX_KEYS: Final = 32
"""Keys of a set that are used: a token without `kid` is tried with each of them."""

_Key = RSAKey | ECKey | OKPKey


class BadToken(ValueError):
    """A token is not what it should be; the text says why, and quotes nothing of it."""


class UnknownKey(BadToken):
    """No key of the set can have signed the token: the issuer may have a new one."""


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None
    crit: msgspec.Raw | None = None


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


class _Jwk(msgspec.Struct, frozen=True, omit_defaults=True):
    """The public members of a key (RFC 7517 section 4, RFC 7518 section 6); others, and private ones, are not read."""

    kty: str
    use: str | None = None
    key_ops: list[str] | None = None
    alg: str | None = None
    kid: str | None = None
    n: str = ""
    e: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of an issuer that can sign."""

    keys: tuple[_Key, ...]

    @classmethod
    def parse(cls, data: bytes) -> KeySet:
        """The signing keys of a JWK Set (RFC 7517 section 5). Others are left out.

        Raises ValueError if it is no JWK Set, or has no key that can be used.
        """
        given = json_input.decode(data, _KeySet).keys
        keys = tuple(key for key in map(_signing_key, given[:_MAX_KEYS]) if key is not None)
        if not keys:
            raise ValueError(f"it has no key for {', '.join(ALGORITHMS)}")
        return cls(keys)

    def verify(self, token: Secret) -> dict[str, Any]:
        """The claims of a signed token in compact form (RFC 7519 section 7.2).

        Raises:
            UnknownKey: no key of the set has its `kid`.
            BadToken: it is malformed, its algorithm is none of `ALGORITHMS`, or its signature is wrong.
        """
        text = token.reveal()
        header = _header(text)
        if header.alg not in ALGORITHMS:
            raise BadToken("its algorithm is not accepted")
        if header.crit is not None:  # RFC 7515 section 4.1.11: this understands no extension
            raise BadToken("it has a critical header")
        fitting = [key for key in self.keys if _fits(key, header)]
        if not fitting:
            raise UnknownKey("no key of the issuer has signed it")
        signed, _, signature = text.rpartition(".")
        # Without a `kid` every key is tried (OpenID Connect Core 1.0 section 10.1 requires one of several keys).
        if not any(_verifies(key, header.alg, signed, signature) for key in fitting):
            raise BadToken("its signature is wrong")
        return _claims(signed.partition(".")[2])


def _verifies(key: _Key, algorithm: str, signed: str, signature: str) -> bool:
    try:
        return JWSRegistry.algorithms[algorithm].verify(
            signed.encode(), base64url.decode(signature), key
        )
    except (JoseError, ValueError):
        return False


def _header(text: str) -> _Header:
    if len(text) > MAX_TOKEN or not text.isascii() or text.count(".") != 2:  # noqa: PLR2004 - RFC 7515 section 7.1
        raise BadToken("it is no signed token")
    try:
        return json_input.decode(base64url.decode(text.partition(".")[0]), _Header)
    except ValueError:
        raise BadToken("it is no signed token") from None


def _claims(payload: str) -> dict[str, Any]:
    try:
        return json_input.decode(base64url.decode(payload), dict[str, Any])
    except ValueError:
        raise BadToken("its claims cannot be read") from None


def _fits(key: _Key, header: _Header) -> bool:
    """Whether the key may have signed a token with this header."""
    if not isinstance(key, _KIND[header.alg]):
        return False
    if key.get("alg") not in (None, header.alg):
        return False
    return header.kid is None or key.get("kid") == header.kid


def _signing_key(given: msgspec.Raw) -> _Key | None:
    """The key, if it can verify signatures of one of `ALGORITHMS`; otherwise None."""
    try:
        jwk = msgspec.json.decode(given, type=_Jwk)
        if jwk.use not in (None, "sig") or not (jwk.key_ops is None or "verify" in jwk.key_ops):
            return None
        if jwk.kty != RSAKey.key_type:
            if jwk.crv not in _CURVES[jwk.kty]:
                return None
        elif _bits(jwk.n) not in _RSA_BITS or _bits(jwk.e) > _EXPONENT_BITS:
            return None
        key = JWKRegistry.import_key(msgspec.to_builtins(jwk))
        key.public_key  # noqa: B018 - it is made here, and fails if the members are no key
    except (JoseError, ValueError, KeyError):
        return None
    return None if isinstance(key, OctKey) else key


def _bits(number: str) -> int:
    """The length of a number in base64url (RFC 7518 section 6.3.1.1)."""
    return int.from_bytes(base64url.decode(number)).bit_length()
