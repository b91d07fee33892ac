"""Registration tokens: nothing opens but what was sealed with a key of the ring, and it opens as what was sealed.

The first byte of an input says what the rest is: `r` a token, `e` edits of a genuine token (three bytes each: where,
and what to put there), `s` a header and a plaintext, with a line feed between, that are sealed with a key of the ring.
"""

from __future__ import annotations

import json
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.core.secret import Secret
from gateway.core.tokens import Key, OpenedToken, RetiredToken, UnknownKey, open_with
from tests.fuzz.target import Target, require
from tests.support.ice import b64

_BYTES = bytes(range(32))
_KEYS = {"k1": Key("k1", _BYTES)}
_RETIRED = frozenset({"k0"})
_IV = bytes(12)
_HEADER = b'{"alg":"dir","enc":"A256GCM","kid":"k1","iat":1800000000.5}'
_CLAIMS = (
    b'{"ice_name":"lab-1","ice_type":"normal","generation":7,"jti":"AAAAAAAAAAAAAAAAAAAAAA",'
    b'"iat":1800000000.5,"cnf":{"jkt":"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"}}'
)


def sealed(header: bytes, plain: bytes) -> str:
    """A token of a header and claims as they are given."""
    head = b64(header)
    text = AESGCM(_BYTES).encrypt(_IV, plain, head.encode())
    return f"{head}..{b64(_IV)}.{b64(text[:-16])}.{b64(text[-16:])}"


GENUINE = sealed(_HEADER, _CLAIMS)


def edited(genuine: str, edits: bytes) -> str:
    """A genuine text with characters put over others; one of 0 takes the rest away."""
    text = genuine
    for high, low, new in zip(*(edits[start::3] for start in range(3)), strict=False):
        at = (high << 8 | low) % (len(text) + 1)
        text = text[:at] if new == 0 else text[:at] + chr(new) + text[at + 1 :]
    return text


def check(data: bytes, product: Any) -> None:
    """See the module."""
    kind, rest = data[:1], data[1:]
    if kind == b"s":
        header, _, plain = rest.partition(b"\n")
        text = sealed(header, plain)
        found = product(_KEYS, Secret(text), _RETIRED)
        if isinstance(found, OpenedToken):
            _is_what_was_sealed(found, header, plain)
    else:
        text = edited(GENUINE, rest) if kind == b"e" else rest.decode("latin-1")
        found = product(_KEYS, Secret(text), _RETIRED)
        require(
            (text == GENUINE) == isinstance(found, OpenedToken), f"{text!r} was read as {found}"
        )
        if text == GENUINE:
            _is_what_was_sealed(found, _HEADER, _CLAIMS)
    require(
        found is None or isinstance(found, OpenedToken | RetiredToken | UnknownKey), f"{found!r}"
    )
    if isinstance(found, UnknownKey):
        require(found.kid not in _KEYS and found.kid not in _RETIRED, f"{found.kid} is known")
    elif found is not None:
        require(found.digest == Secret(text).digest(), "the digest is of another token")


def _is_what_was_sealed(found: OpenedToken, header: bytes, plain: bytes) -> None:
    head, claims = json.loads(header), json.loads(plain)
    require((head["alg"], head["enc"], head["kid"]) == ("dir", "A256GCM", "k1"), f"{head}")
    require(len(sealed(header, plain)) <= 1024, "it is longer than a token may be")
    wanted = (claims["ice_name"], claims["ice_type"], claims["generation"])
    require((found.ice_name, found.ice_type, found.generation) == wanted, f"{found} {claims}")
    require(found.ice_type in ("normal", "ci-cd"), f"{found.ice_type}")
    cnf = claims.get("cnf")
    require(found.thumbprint == (cnf and cnf["jkt"]), f"{found} {claims}")


TARGET = Target(
    open_with,
    check,
    (
        b"r" + GENUINE.encode(),
        b"r....",
        b"r" + sealed(_HEADER.replace(b"k1", b"k2"), _CLAIMS).encode(),
        b"r" + sealed(_HEADER.replace(b"k1", b"k0"), _CLAIMS).encode(),
        b"e",
        b"e\0\x05A",
        b"e\1\x90\0",
        b"s" + _HEADER + b"\n" + _CLAIMS,
        b"s" + _HEADER + b"\n" + b"[" * 500,
        b"s" + _HEADER + b'\n{"ice_name":"a","ice_type":"ci-cd","generation":1,"jti":"","iat":0}',
    ),
    (
        b'"alg"',
        b'"dir"',
        b'"kid"',
        b'"k1"',
        b'"cnf"',
        b'"jkt"',
        b'"generation"',
        b"\\u0000",
        b"1e9",
    ),
    max_bytes=2048,
)
