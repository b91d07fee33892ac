"""Judges the request of a handshake and its proof. Pure; source: docs/protocol.md, sections 1 and 2, and RFC 9449.

Tested in tests/client/test_client_conformance_rules.py.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from client import protocol
from client.conformance.report import Finding
from client.conformance.sentences import Sentence

_MAX_PROOF: Final = 4096
_MAX_JTI: Final = 256
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_HALF: Final = 32
_PUBLIC: Final = {"EC": {"kty", "crv", "x", "y"}, "OKP": {"kty", "crv", "x"}}
_PRIVATE: Final = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
_TYPES: Final = ("dpop+jwt", "application/dpop+jwt")
_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class BadProof(ValueError):
    """The proof cannot be read; the text says why, `sentence` names what it breaks."""

    def __init__(self, sentence: Sentence, why: str) -> None:
        super().__init__(why)
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof whose signature is right; `thumbprint` is that of its key (RFC 7638)."""

    thumbprint: str
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nonce(self) -> object:
        """The nonce that it carries."""
        return self.claims.get("nonce")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived; `headers` in order, with their names as sent."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value.strip() for found, value in self.headers if found.lower() == name.lower()]

    def tokens(self, name: str) -> set[str]:
        """The items of a list header, in lower case."""
        return {item.strip().lower() for value in self.all(name) for item in value.split(",")}


def read_proof(text: str) -> Proof:
    """The proof in a `DPoP` header. Raises `BadProof`."""
    form, parts = Sentence.PROOF_FORM, text.split(".")
    if len(text) > _MAX_PROOF:
        raise BadProof(form, f"the proof has {len(text)} characters")
    if len(parts) != 3 or not all(map(_BASE64URL.fullmatch, parts)):  # noqa: PLR2004 - RFC 7515
        raise BadProof(form, "the proof is not three parts of base64url without padding")
    header, claims = (_object(part) for part in parts[:2])
    if str(header.get("typ")).lower() not in _TYPES:
        raise BadProof(form, f"typ is {header.get('typ')!r}")
    jwk, alg = header.get("jwk"), header.get("alg")
    if not isinstance(jwk, dict):
        raise BadProof(Sentence.PROOF_KEY, "the header has no jwk")
    if _PRIVATE & jwk.keys():
        raise BadProof(Sentence.PROOF_KEY, "jwk has a private member")
    _verify(jwk, alg, f"{parts[0]}.{parts[1]}".encode(), _bytes(parts[2]))
    members = {name: jwk[name] for name in sorted(_PUBLIC[jwk["kty"]])}
    digest = hashlib.sha256(msgspec.json.encode(members)).digest()
    return Proof(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), claims)


def _verify(jwk: Mapping[str, Any], alg: object, signed: bytes, signature: bytes) -> None:
    curve = (jwk.get("kty"), jwk.get("crv"))
    try:
        if curve == ("EC", "P-256") and alg == "ES256":
            if len(signature) != 2 * _HALF:
                raise BadProof(
                    Sentence.PROOF_KEY,
                    f"the signature has {len(signature)} bytes, not R and S of 32 each",
                )
            x, y = (int.from_bytes(_bytes(jwk[name])) for name in "xy")
            key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            r, s = (int.from_bytes(half) for half in (signature[:_HALF], signature[_HALF:]))
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        elif curve == ("OKP", "Ed25519") and alg in ("Ed25519", "EdDSA"):
            Ed25519PublicKey.from_public_bytes(_bytes(jwk["x"])).verify(signature, signed)
        else:
            raise BadProof(
                Sentence.PROOF_FORM, f"alg is {alg!r} with a key of {curve[0]!r} {curve[1]!r}"
            )
    except InvalidSignature:
        raise BadProof(Sentence.PROOF_KEY, "the signature is not by the key in jwk") from None
    except (KeyError, TypeError) as error:
        raise BadProof(Sentence.PROOF_KEY, f"jwk cannot be read: {error!r}") from None
    except ValueError as error:
        if isinstance(error, BadProof):
            raise
        raise BadProof(Sentence.PROOF_KEY, f"jwk is no key: {error}") from None


def _bytes(part: object) -> bytes:
    if not isinstance(part, str) or not _BASE64URL.fullmatch(part):
        raise BadProof(Sentence.PROOF_FORM, f"{part!r} is not base64url without padding")
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        raise BadProof(Sentence.PROOF_FORM, f"{part!r} is not base64url") from None


def _object(part: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(_bytes(part), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadProof(Sentence.PROOF_FORM, f"a part is not a JSON object: {error}") from None


def judge_request(request: Request, url: str, token: str) -> Iterator[Finding]:
    """Judge what is not the proof. `url` is the endpoint that the ICE should have asked."""
    faults = list(_faults_of_handshake(request, url))
    yield Finding(Sentence.HANDSHAKE, not faults, ", ".join(faults))
    wrong = [] if request.target == urlsplit(url).path else [f"it asked for {request.target}"]
    if token in request.target:
        wrong = ["the token is in the URL"]
    yield Finding(Sentence.PREFIX, not wrong, "".join(wrong))
    sent = request.all("Authorization")
    scheme, _, value = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    good = scheme.lower() == "dpop" and value.strip() == token
    seen = f"scheme {scheme!r}, {'another' if value.strip() != token else 'this'} token"
    yield Finding(Sentence.AUTHORIZATION, good, f"{len(sent)} Authorization headers: {seen}")


def _faults_of_handshake(request: Request, url: str) -> Iterator[str]:
    if request.method != "GET":
        yield f"its method is {request.method}"
    if urlsplit(request.target).path != urlsplit(url).path:
        yield f"it asked for {urlsplit(request.target).path}"
    if "websocket" not in request.tokens("Upgrade"):
        yield "no Upgrade: websocket"
    if "upgrade" not in request.tokens("Connection"):
        yield "no Connection: Upgrade"
    if request.all("Sec-WebSocket-Version") != ["13"]:
        yield f"Sec-WebSocket-Version is {request.all('Sec-WebSocket-Version')}"
    if protocol.SUBPROTOCOL not in request.tokens("Sec-WebSocket-Protocol"):
        yield f"Sec-WebSocket-Protocol is {request.all('Sec-WebSocket-Protocol')}"


def judge_proof(request: Request, url: str, token: str, now: float) -> tuple[Proof, list[Finding]]:
    """Judge the proof of a request at the time `now` (Unix time); the proof is an empty one if it cannot be read."""
    sent = request.all("DPoP")
    if len(sent) != 1:
        return Proof(""), [Finding(Sentence.PROOF_FORM, ok=False, seen=f"{len(sent)} DPoP headers")]
    try:
        proof = read_proof(sent[0])
    except BadProof as problem:
        return Proof(""), [Finding(problem.sentence, ok=False, seen=str(problem))]
    faults = list(_faults_of_claims(proof.claims, request.method, url, token))
    iat = proof.claims.get("iat")
    timely = isinstance(iat, int | float) and abs(iat - now) <= protocol.PROOF_WINDOW
    return proof, [
        Finding(Sentence.PROOF_FORM, ok=True),
        Finding(Sentence.PROOF_KEY, ok=True),
        Finding(Sentence.PROOF_CLAIMS, not faults, ", ".join(faults)),
        Finding(Sentence.PROOF_TIME, timely, f"iat is {iat!r}, and it is {now:.0f}"),
    ]


def _faults_of_claims(
    claims: Mapping[str, Any], method: str, url: str, token: str
) -> Iterator[str]:
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 1 <= len(jti) <= _MAX_JTI:
        yield f"jti is {jti!r}"
    if claims.get("htm") != method:
        yield f"htm is {claims.get('htm')!r}"
    htu = claims.get("htu")
    if not isinstance(htu, str) or _place(htu) != _place(url):
        yield f"htu is {htu!r}, not {url}"
    digest = hashlib.sha256(token.encode()).digest()
    if claims.get("ath") != base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
        yield f"ath is {claims.get('ath')!r}"


def _place(url: str) -> tuple[object, ...] | None:
    """What of a URL the gateway compares; None for what is no URL of an endpoint."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError):
        return None
    if parts.query or parts.fragment:
        return None
    return (parts.hostname, port, parts.path)
