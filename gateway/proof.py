"""DPoP proofs (RFC 9449): what an ICE signs to show that it holds its own key. Pure.

A proof is judged in three steps that `admission` puts together: `verify` (form, signature, URL and
token), `Replays` (used before?) and `fresh_until` (its `iat` or nonce). Source: contract section 5.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import math
import re
import struct
from collections.abc import Callable, Container, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from client.protocol import PROOF_TYPE, PROOF_WINDOW
from gateway import base64url

MAX_PROOF: Final = 4096
"""The longest proof in characters; a proof with every claim has some 600."""
MAX_JTI: Final = 256
_AGREEMENT: Final = 2.0
"""Seconds by which the clocks of two nodes may differ."""
NONCE_LIFETIME: Final = 300.0
"""Seconds for which a nonce is good."""

_P256_BYTES: Final = 32
_ES256_BYTES: Final = 64  # RFC 7518 section 3.4: R and S, 32 bytes each
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 section 6
_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}

Url = tuple[str, int | None, str]
"""A URL reduced to what is compared: host, port (None for its scheme's default), path."""


class _Header(msgspec.Struct, frozen=True):
    typ: str
    alg: str
    jwk: dict[str, object]
    crit: object = msgspec.UNSET


class _Claims(msgspec.Struct, frozen=True):
    jti: str
    htm: str
    htu: str
    iat: float
    ath: str
    nonce: str | None = None


class Proof(msgspec.Struct, frozen=True, gc=False):
    """A proof whose form, signature, URL and token hold."""

    thumbprint: str
    jti: str
    iat: float
    nonce: str | None


class Invalid(msgspec.Struct, frozen=True, gc=False):
    """A proof that does not hold; `detail` says why, for a person."""

    detail: str


@lru_cache(256)
def normalise(url: str) -> Url | None:
    """Reduce a URL for comparison (RFC 9449 section 4.3, RFC 3986 section 6.2); None if it is none.

    The host goes to lower case, the scheme and the default port of its own scheme are dropped, the
    path is percent-decoded, query and fragment are ignored.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.hostname, None if port == _DEFAULT_PORTS[scheme] else port, unquote(parts.path)


def thumbprint_of(jwk: Mapping[str, object]) -> str:
    """RFC 7638: base64url SHA-256 of the required members, sorted, without white space."""
    required = ("crv", "kty", "x", "y") if jwk["kty"] == "EC" else ("crv", "kty", "x")
    # None of the values that get here needs an escape.
    canonical = ",".join([f'"{name}":"{jwk[name]}"' for name in required])
    return base64url.encode(hashlib.sha256(f"{{{canonical}}}".encode()).digest())


_Verify = Callable[[bytes, bytes], None]


def _key(alg: str, jwk: dict[str, object]) -> tuple[_Verify, str]:
    """The verifier and thumbprint of a public key. Raises ValueError, whose text goes to the ICE."""
    if not _PRIVATE.isdisjoint(jwk):
        raise ValueError("jwk holds private members; send the public key alone")
    kind, curve = jwk.get("kty"), jwk.get("crv")
    x = _coordinate(jwk, "x")
    if alg == "ES256":
        if (kind, curve) != ("EC", "P-256"):
            raise ValueError("ES256 needs a key of kty EC on the curve P-256")
        y = _coordinate(jwk, "y")
        # from_encoded_point refuses points that are not on the curve.
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)

        def verify_es256(signature: bytes, signed: bytes) -> None:
            if len(signature) != _ES256_BYTES:
                raise InvalidSignature
            r = int.from_bytes(signature[:_P256_BYTES])
            s = int.from_bytes(signature[_P256_BYTES:])
            public.verify(encode_dss_signature(r, s), signed, _ECDSA)

        return verify_es256, thumbprint_of(jwk)
    if (kind, curve) != ("OKP", "Ed25519"):
        raise ValueError(f"{alg} needs a key of kty OKP on the curve Ed25519")
    return Ed25519PublicKey.from_public_bytes(x).verify, thumbprint_of(jwk)


def _coordinate(jwk: dict[str, object], name: str) -> bytes:
    """The bytes of `x` or `y`, which have only this one spelling."""
    value = jwk.get(name)
    if not isinstance(value, str):
        raise ValueError(f"jwk has no {name}")  # noqa: TRY004 - one kind of error for one kind of fault
    data = base64url.decode(value)
    if len(data) != _P256_BYTES:  # Ed25519 keys have 32 bytes, too (RFC 8037)
        raise ValueError(f"jwk's {name} does not have 32 bytes")
    return data


_ALGORITHMS: Final = frozenset({"ES256", "Ed25519", "EdDSA"})


def verify(text: str, *, token: str, urls: Container[Url], expected: str) -> Proof | Invalid:
    """Check a proof's form, signature, method, URL and token; not its age, and not whether it was used.

    Args:
        text: the value of the DPoP header.
        token: the token of the same handshake.
        urls: the endpoint's URLs, normalised.
        expected: the URL to name in the refusal when another was signed.
    """
    if len(text) > MAX_PROOF or not text.isascii():
        return Invalid(f"the proof is longer than {MAX_PROOF} characters or not ASCII")
    parts = text.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - RFC 7515 section 7.1: three parts
        return Invalid("the proof is not a compact JWS of three parts")
    try:
        header = msgspec.json.decode(base64url.decode(parts[0]), type=_Header)
        claims = msgspec.json.decode(base64url.decode(parts[1]), type=_Claims)
        signature = base64url.decode(parts[2])
    except (ValueError, RecursionError):
        return Invalid(
            "the proof's header needs typ, alg and jwk; its claims need jti, htm, htu, iat and ath"
        )
    if header.typ.lower() != PROOF_TYPE:
        return Invalid(f"typ must be {PROOF_TYPE}")
    if header.crit is not msgspec.UNSET:  # RFC 7515 section 4.1.11: not understood, so refused
        return Invalid("crit is not supported")
    if header.alg not in _ALGORITHMS:
        return Invalid("alg must be ES256 or Ed25519 (EdDSA)")
    try:
        check, thumbprint = _key(header.alg, header.jwk)
        check(signature, f"{parts[0]}.{parts[1]}".encode())
    except InvalidSignature:
        return Invalid("the signature does not hold")
    except ValueError as error:
        return Invalid(f"the key cannot be used: {error}")
    fault = _fault(claims, token, urls, expected)
    if fault is not None:
        return Invalid(fault)
    return Proof(thumbprint, claims.jti, claims.iat, claims.nonce)


def _fault(claims: _Claims, token: str, urls: Container[Url], expected: str) -> str | None:
    """What is wrong with signed claims, if anything."""
    if claims.htm != "GET":
        return "htm must be GET"
    url = normalise(claims.htu)
    if url is None or url not in urls:
        return f"the proof was made for {claims.htu[:200]!r}, this gateway is {expected}: start the ICE with that --gateway"
    ath = base64url.encode(hashlib.sha256(token.encode()).digest())
    if not hmac.compare_digest(claims.ath.encode(), ath.encode()):
        return "ath is not the hash of this token"
    if not 0 < len(claims.jti) <= MAX_JTI:
        return f"jti must have 1 to {MAX_JTI} characters"
    return None


class Nonces:
    """Stateless nonces: the gateway's time and an HMAC over it (RFC 9449 section 8).

    The time is that of a clock which nobody sets, so that five minutes are five minutes. Nodes that have the
    same key, and whose clocks agree to `_AGREEMENT` seconds, take each other's.
    """

    _FORM: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)

    def __init__(self, key: Callable[[], bytes]) -> None:
        """`key` is asked for at each use: where nodes share it, it may be another one day."""
        self._key = key

    def issue(self, now: float) -> str:
        """A nonce good for `NONCE_LIFETIME` seconds from `now`."""
        stamp = struct.pack(">Q", int(now * 1000))
        return base64url.encode(stamp + self._mac(stamp))

    def good_until(self, nonce: str, now: float) -> float | None:
        """When the nonce ends to be good; None when it is not good now."""
        if not self._FORM.fullmatch(nonce):
            return None
        data = base64url.decode(nonce)
        stamp, mac = data[:8], data[8:]
        if not hmac.compare_digest(mac, self._mac(stamp)):
            return None
        issued = struct.unpack(">Q", stamp)[0]
        if issued > int((now + _AGREEMENT) * 1000):  # it would be good for too long
            return None
        until = float(issued) / 1000 + NONCE_LIFETIME
        return until if now < until else None

    def _mac(self, stamp: bytes) -> bytes:
        return hmac.digest(self._key(), stamp, "sha256")[:16]


class Once:
    """Lets each proof through once, while it is fresh, however the clock is set meanwhile.

    A proof with a nonce is judged by it alone, never by `iat`: by `steady`, a clock that nobody sets.
    A proof without is judged by `now`, Unix time; and where the clock was set back to a time at which
    proofs have been forgotten already, the ICE has to bring a nonce until that time has passed again.
    """

    def __init__(self, nonces: Nonces) -> None:
        self._nonces = nonces
        self._by_iat = Replays()
        self._by_nonce = Replays()

    def used(self, proof: Proof, now: float, steady: float) -> bool:
        """Whether a proof of this key with this `jti` was let through, and could be fresh still."""
        return self._by_iat.used(proof, now) or self._by_nonce.used(proof, steady)

    def take(self, proof: Proof, now: float, steady: float) -> bool:
        """Let the proof through, this once; False when the ICE has to bring a new nonce."""
        if proof.nonce is None:
            until = proof.iat + PROOF_WINDOW
            if abs(proof.iat - now) > PROOF_WINDOW or until < self._by_iat.forgot:
                return False
            self._by_iat.remember(proof, until, now)
            return True
        good_until = self._nonces.good_until(proof.nonce, steady)
        if good_until is None:
            return False
        self._by_nonce.remember(proof, good_until, steady)
        return True


class Replays:
    """The proofs that were used, each remembered until it could not be used again.

    A `jti` counts per key (RFC 9449 section 11.1). What is kept is a hash of 16 bytes, so that the
    sender does not choose how much memory a proof takes.
    """

    def __init__(self) -> None:
        self.forgot = -math.inf
        """What could not be used again at this time has been forgotten."""
        self._until: dict[bytes, float] = {}
        self._queue: list[tuple[float, bytes]] = []  # a heap, the first to forget on top

    def __len__(self) -> int:
        return len(self._until)

    def used(self, proof: Proof, now: float) -> bool:
        """Whether a proof of this key with this `jti` is remembered."""
        until = self._until.get(mark(proof.thumbprint, proof.jti))
        return until is not None and now <= until  # at that very moment it is still fresh

    def remember(self, proof: Proof, until: float, now: float) -> None:
        """Remember `proof` until `until`."""
        self._forget(now)
        name = mark(proof.thumbprint, proof.jti)
        self._until[name] = until
        heapq.heappush(self._queue, (until, name))

    def _forget(self, now: float) -> None:
        self.forgot = max(self.forgot, now)
        while self._queue and self._queue[0][0] < now:
            _, name = heapq.heappop(self._queue)
            # Used once more after that, it is remembered for longer.
            if self._until.get(name, now) < now:
                del self._until[name]


@lru_cache(1)  # of each proof it is asked for several times in a row
def mark(thumbprint: str, jti: str) -> bytes:
    """What a proof is remembered by."""
    return hashlib.sha256(f"{thumbprint} {jti}".encode()).digest()[:16]
