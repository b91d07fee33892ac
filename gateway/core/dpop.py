"""DPoP proofs (RFC 9449): an ICE signs one to prove that it holds its key. Pure.

`read` checks the form, `Signed.proof` method, URL and token. `replay` checks that a proof is fresh and unused.
Source: docs/protocol.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Container
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from client.protocol import PROOF_TYPE
from gateway.core import base64url
from gateway.core.signatures import COORDINATE_BYTES, Signature

MAX_PROOF: Final = 4096
"""Maximum characters of a proof; a proof with every claim has about 600."""
MAX_JTI: Final = 256

_FIELD: Final = 2**255 - 19
"""The prime of Curve25519 (RFC 7748 section 4.1)."""
_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y coordinates of the points whose order divides 8. A signature by such a key is valid for many
# messages, so it proves nothing.
_SMALL_ORDER: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})
_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}

Url = tuple[str, int | None, str]
"""The compared parts of a URL: host, port (None for its scheme's default), path."""


class Jwk(msgspec.Struct, frozen=True):
    """A public key (RFC 7517) of kty EC or OKP, as it was sent.

    Members of private and symmetric keys (RFC 7518 section 6) are only detected. Other members are not
    decoded, since the sender would decide the cost.
    """

    kty: str = ""
    crv: str = ""
    x: str | msgspec.UnsetType = msgspec.UNSET
    y: str | msgspec.UnsetType = msgspec.UNSET
    d: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    p: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    q: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    dp: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    dq: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    qi: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    oth: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    k: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_private(self) -> bool:
        """Whether it holds secret members."""
        secrets = (self.d, self.p, self.q, self.dp, self.dq, self.qi, self.oth, self.k)
        return secrets.count(msgspec.UNSET) < len(secrets)


class _Header(msgspec.Struct, frozen=True):
    typ: str
    alg: str
    jwk: Jwk
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Claims(msgspec.Struct, frozen=True, gc=False):
    """The claims of a proof (RFC 9449 section 4.2), as they were sent."""

    jti: str
    htm: str
    htu: str
    iat: float
    ath: str
    nonce: str | None = None


_HEADER: Final = msgspec.json.Decoder(_Header)
_CLAIMS: Final = msgspec.json.Decoder(Claims)


class Proof(msgspec.Struct, frozen=True, gc=False):
    """A proof whose form, signature, URL and token are valid."""

    thumbprint: str
    jti: str
    iat: float
    nonce: str | None


class Invalid(msgspec.Struct, frozen=True, gc=False):
    """An invalid proof; `detail` tells a person why."""

    detail: str


@lru_cache(256)
def normalise(url: str) -> Url | None:
    """Reduce a URL for comparison (RFC 9449 section 4.3, RFC 3986 section 6.2); None if it is not a URL.

    The host is lowercased, the scheme and its default port are dropped, the path is percent-decoded,
    query and fragment are ignored.
    """
    if not url.isprintable() or " " in url:  # `urlsplit` would drop some of them
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.hostname, None if port == _DEFAULT_PORTS[scheme] else port, unquote(parts.path)


def thumbprint_of(jwk: Jwk) -> str:
    """The RFC 7638 thumbprint: base64url SHA-256 of the required members, sorted, without white space."""
    # The values were validated; none of them needs escaping.
    canonical = f'{{"crv":"{jwk.crv}","kty":"{jwk.kty}","x":"{jwk.x}"'
    canonical += f',"y":"{jwk.y}"}}' if jwk.kty == "EC" else "}"
    return base64url.encode(hashlib.sha256(canonical.encode()).digest())


def _key(alg: str, jwk: Jwk) -> bytes:
    """The `key` of a `Signature`. Raises ValueError with a text for the ICE."""
    if jwk.is_private:
        raise ValueError("jwk holds private members; send the public key alone")
    x = _coordinate("x", jwk.x)
    if alg == "ES256":
        if (jwk.kty, jwk.crv) != ("EC", "P-256"):
            raise ValueError("ES256 needs a key of kty EC on the curve P-256")
        return x + _coordinate("y", jwk.y)
    if (jwk.kty, jwk.crv) != ("OKP", "Ed25519"):
        raise ValueError(f"{alg} needs a key of kty OKP on the curve Ed25519")
    _check_ed25519(x)
    return x


def _check_ed25519(point: bytes) -> None:
    """Reject what RFC 8032 section 5.1.3 does not decode, and points of small order; OpenSSL accepts both."""
    y = int.from_bytes(point, "little") & (1 << 255) - 1
    if y >= _FIELD:
        raise ValueError("jwk's x is not the canonical encoding of its point")
    # This also rejects the two encodings of x = 0 with a sign bit (section 5.1.3, step 4).
    if y in _SMALL_ORDER:
        raise ValueError("jwk's x is a point of small order")


def _coordinate(name: str, value: str | msgspec.UnsetType) -> bytes:
    """The bytes of the member `x` or `y`."""
    if value is msgspec.UNSET:
        raise ValueError(f"jwk has no {name}")
    data = base64url.decode(value)
    if len(data) != COORDINATE_BYTES:
        raise ValueError(f"jwk's {name} does not have 32 bytes")
    return data


_ALGORITHMS: Final = frozenset({"ES256", "Ed25519", "EdDSA"})


class Signed(msgspec.Struct, frozen=True, gc=False):
    """A proof of a valid form. Its signature comes next, then its claims (`proof`)."""

    signature: Signature
    thumbprint: str
    claims: Claims

    def proof(
        self, *, token: str, urls: Container[Url], expected: str, method: str = "GET"
    ) -> Proof | Invalid:
        """The proof, whose signature the caller has checked, if its claims are valid. Arguments as of `verify`."""
        claims = self.claims
        fault = _fault(claims, token, urls, expected, method)
        if fault is not None:
            return Invalid(fault)
        return Proof(self.thumbprint, claims.jti, claims.iat, claims.nonce)


def read(text: str) -> Signed | Invalid:
    """Read the value of a DPoP header, and check its form and the form of its key."""
    if len(text) > MAX_PROOF or not text.isascii():
        return Invalid(f"the proof is longer than {MAX_PROOF} characters or not ASCII")
    parts = text.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - RFC 7515 section 7.1: three parts
        return Invalid("the proof is not a compact JWS of three parts")
    try:
        header = _HEADER.decode(base64url.decode_text(parts[0]))
        claims = _CLAIMS.decode(base64url.decode_text(parts[1]))
        signature = base64url.decode(parts[2])
    except (ValueError, RecursionError):
        return Invalid(
            "the proof's header needs typ, alg and jwk; its claims need jti, htm, htu, iat and ath"
        )
    # RFC 7515 section 4.1.9: "application/" may be left out.
    if header.typ.lower().removeprefix("application/") != PROOF_TYPE:
        return Invalid(f"typ must be {PROOF_TYPE}")
    if header.crit is not msgspec.UNSET:  # RFC 7515 section 4.1.11: unknown, so reject it
        return Invalid("crit is not supported")
    if header.alg not in _ALGORITHMS:
        return Invalid("alg must be ES256 or Ed25519 (EdDSA)")
    try:
        key = _key(header.alg, header.jwk)
    except ValueError as error:
        return Invalid(f"the key cannot be used: {error}")
    signed = text[: -len(parts[2]) - 1].encode()
    return Signed(Signature(key, signature, signed), thumbprint_of(header.jwk), claims)


def _fault(
    claims: Claims, token: str, urls: Container[Url], expected: str, method: str
) -> str | None:
    """Why signed claims are invalid; None if they are valid."""
    if claims.htm != method:
        return f"htm must be {method}"
    url = normalise(claims.htu)
    if url is None or url not in urls:
        return f"the proof was made for {claims.htu[:200]!r}, this gateway is {expected}: start the ICE with that --gateway"
    ath = base64url.encode(hashlib.sha256(token.encode()).digest())
    if not hmac.compare_digest(claims.ath.encode(), ath.encode()):
        return "ath is not the hash of this token"
    if not 0 < len(claims.jti) <= MAX_JTI:
        return f"jti must have 1 to {MAX_JTI} characters"
    return None
