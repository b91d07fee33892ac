"""DPoP proofs: none is valid whose header and claims were not signed, as they are, by a key of this target.

Whoever fuzzes has no key, so a proof of another key would be a key by which everything is signed. PyJWT is a second
opinion on each valid one. The first byte of an input says what the rest is: `r` a proof, `e` edits of a genuine one,
`s` and `d` a header and claims, with a line feed between, that are signed by ES256 and Ed25519.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.core.dpop import Invalid, Proof, normalise
from tests.fuzz.target import Target, require
from tests.fuzz.targets.tokens import edited
from tests.support.ice import Key, b64
from tests.support.proof import verify

_URL = "https://gateway.example/ice/v1"
_URLS = frozenset({normalise(_URL)})
_TOKEN = "a-token"
_EC = Key(ec.derive_private_key(7, ec.SECP256R1()))
_ED = Key(Ed25519PrivateKey.from_private_bytes(bytes(32)))
_CLAIMS = json.dumps(
    {
        "jti": "one",
        "htm": "GET",
        "htu": _URL,
        "iat": 1_800_000_000.5,
        "ath": b64(hashlib.sha256(_TOKEN.encode()).digest()),
        "nonce": "n",
    }
).encode()


def _header(key: Key, alg: str) -> bytes:
    return json.dumps({"typ": "dpop+jwt", "alg": alg, "jwk": key.jwk}).encode()


def _signed(key: Key, header: bytes, claims: bytes) -> str:
    text = f"{b64(header)}.{b64(claims)}"
    return f"{text}.{b64(key.sign(text.encode()))}"


# By Ed25519: its signatures are the same each time, and so are the inputs.
_GENUINE = _signed(_ED, _header(_ED, "Ed25519"), _CLAIMS)


def check(data: bytes, product: Any) -> None:
    """See the module."""
    kind, rest = data[:1], data[1:]
    signed = _GENUINE.rpartition(".")[0]
    if kind in (b"s", b"d"):
        header, _, claims = rest.partition(b"\n")
        text = _signed(_EC if kind == b"s" else _ED, header, claims)
        signed = text.rpartition(".")[0]
    else:
        text = edited(_GENUINE, rest) if kind == b"e" else rest.decode("latin-1")
    found = product(text, token=_TOKEN, urls=_URLS, expected=_URL)
    if isinstance(found, Proof):
        require(text.rpartition(".")[0] == signed, f"nobody signed {text!r}")
        _is_valid(found, text)
        return
    require(isinstance(found, Invalid), f"{found!r}")
    require(text != _GENUINE, f"a genuine proof was refused: {found}")
    require(0 < len(found.detail) < 1000, f"{len(found.detail)} characters of detail")
    require(_TOKEN not in found.detail, "the detail shows the token")


def _is_valid(found: Proof, text: str) -> None:
    head = jwt.get_unverified_header(text)
    jwk = {name: head["jwk"][name] for name in ("kty", "crv", "x", "y") if name in head["jwk"]}
    known = _EC if jwk["kty"] == "EC" else _ED
    require(jwk == known.jwk, f"{jwk} is no key of ours")
    alg = "ES256" if known is _EC else "EdDSA"
    require(head["alg"] == alg or (alg, head["alg"]) == ("EdDSA", "Ed25519"), f"{head['alg']}")
    require("crit" not in head, "it has a critical header")
    require(head["typ"].lower().removeprefix("application/") == "dpop+jwt", f"{head['typ']}")
    start, _, signature = text.rpartition(".")
    algorithm = jwt.get_algorithm_by_name(alg)
    require(
        algorithm.verify(
            start.encode(),
            algorithm.from_jwk({"alg": alg, **jwk}),
            jwt.utils.base64url_decode(signature),
        ),
        "PyJWT finds the signature wrong",
    )
    claims = json.loads(jwt.utils.base64url_decode(start.partition(".")[2]))
    canonical = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    require(found.thumbprint == b64(hashlib.sha256(canonical).digest()), "another thumbprint")
    require((found.jti, found.nonce) == (claims["jti"], claims.get("nonce")), f"{found} {claims}")
    require(found.iat == claims["iat"], f"{found} {claims}")
    require(claims["htm"] == "GET", f"{claims}")
    require(claims["ath"] == b64(hashlib.sha256(_TOKEN.encode()).digest()), f"{claims}")
    url = claims["htu"].lower().replace("wss:", "https:").replace(":443/", "/")
    require(url.startswith("https://gateway.example/"), f"{claims['htu']}")


_HOSTILE = b'{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"%s"}}'
TARGET = Target(
    verify,
    check,
    (
        b"r" + _GENUINE.encode(),
        b"r..",
        b"r"
        + f"{b64(_HOSTILE % b64(bytes([1]) + bytes(31)).encode())}.{b64(_CLAIMS)}.".encode()
        + b64(bytes([1]) + bytes(63)).encode(),
        b"e",
        b"e\0\x09B",
        b"s" + _header(_EC, "ES256") + b"\n" + _CLAIMS,
        b"s" + _header(_ED, "ES256") + b"\n" + _CLAIMS,
        b"s" + _header(_EC, "HS256") + b"\n" + _CLAIMS,
        b"d" + _header(_ED, "EdDSA") + b"\n" + _CLAIMS,
        b"d" + _header(_ED, "EdDSA").replace(b"}}", b'},"crit":["exp"]}') + b"\n" + _CLAIMS,
        b"d" + _header(_ED, "EdDSA") + b"\n" + _CLAIMS.replace(b"GET", b"PUT"),
        b"d" + _header(_ED, "EdDSA") + b"\n" + _CLAIMS.replace(b"https:", b"wss:"),
        b"d" + _header(_ED, "EdDSA") + b"\n" + _CLAIMS.replace(b"gateway.", b"other."),
        b"d" + _header(_ED, "EdDSA").replace(b'"kty"', b'"d":"AA","kty"') + b"\n" + _CLAIMS,
    ),
    (
        b'"typ"',
        b'"alg"',
        b'"none"',
        b'"jwk"',
        b'"crit"',
        b'"d"',
        b'"k"',
        b":443",
        b"%2f",
        b"@",
        b"[::1]",
    ),
)
