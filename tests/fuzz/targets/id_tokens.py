"""ID tokens and logout tokens: accepted only as a key of the issuer signed them, with all claims right.

The first byte of an input says what the rest is: `r` a token, `e` edits of a genuine one, a digit a header and claims,
with a line feed between, that are signed by the issuer's key of this number; `k` a set of keys, `m` an issuer's
metadata, and `c` the cookie of a login that has begun.
"""

from __future__ import annotations

import base64
import functools
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from gateway.core.jwks import ALGORITHMS, BadToken, KeySet
from gateway.core.login_state import LoginState, open_state
from gateway.core.oidc import (
    LOGOUT_EVENT,
    BadMetadata,
    Metadata,
    check_id_token,
    check_logout_token,
)
from gateway.core.secret import Secret
from tests.fuzz.target import Target, require
from tests.fuzz.targets.tokens import edited
from tests.support.ice import Key, b64

_NOW = datetime(2026, 11, 29, tzinfo=UTC)
_ISSUER, _CLIENT, _NONCE = "https://id.example", "ice-gateway", "n"
_AT = _NOW.timestamp()
_CLAIMS = {
    "iss": _ISSUER,
    "aud": _CLIENT,
    "exp": _AT + 60,
    "iat": _AT,
    "nonce": _NONCE,
    "sub": "a-1",
}
_LOGOUT = {**_CLAIMS, "jti": "j", "sid": "s", "events": {LOGOUT_EVENT: {}}}
del _LOGOUT["nonce"]


@functools.cache
def _keys() -> tuple[Any, ...]:
    """The issuer's keys. To make one of RSA takes some time, so only a check makes them."""
    edwards = Ed25519PrivateKey.from_private_bytes(bytes(32))
    elliptic = ec.derive_private_key(7, ec.SECP256R1())
    return (
        OKPKey.import_key(
            {**Key(edwards).jwk, "d": b64(bytes(32)), "kid": "ed", "alg": "EdDSA", "use": "sig"}
        ),
        ECKey.import_key({**Key(elliptic).jwk, "d": b64((7).to_bytes(32)), "kid": "ec"}),
        RSAKey.generate_key(2048, {"kid": "rs"}),
    )


@functools.cache
def _set() -> KeySet:
    return KeySet.parse(
        json.dumps({"keys": [key.as_dict(private=False) for key in _keys()]}).encode()
    )


_SIGN = (("EdDSA",), ("ES256",), ("RS256", "PS256"))


def _signed(number: int, header: bytes, payload: bytes) -> str:
    """A token of a header and claims as they are given."""
    try:
        wanted = json.loads(header)["alg"]
    except (ValueError, RecursionError, KeyError, TypeError):
        wanted = None
    algs = _SIGN[number]
    alg = wanted if wanted in algs else algs[0]
    start = f"{b64(header)}.{b64(payload)}"
    return f"{start}.{b64(JWSRegistry.algorithms[alg].sign(start.encode(), _keys()[number]))}"


_HEADER = b'{"alg":"EdDSA","kid":"ed"}'


@functools.cache
def _genuine() -> str:
    return _signed(0, _HEADER, json.dumps(_CLAIMS).encode())


class Issuer:
    """The product's rules, one after the other."""

    @staticmethod
    def identify(text: str) -> Any:
        """Whom an ID token is about. Raises `BadToken`."""
        claims = _set().verify(Secret(text))
        return check_id_token(claims, issuer=_ISSUER, client_id=_CLIENT, nonce=_NONCE, now=_NOW)

    @staticmethod
    def log_out(text: str) -> Any:
        """Whose logins end. Raises `BadToken`."""
        claims = _set().verify(Secret(text))
        return check_logout_token(claims, issuer=_ISSUER, client_id=_CLIENT, now=_NOW)

    @staticmethod
    def keys(data: bytes) -> KeySet:
        """A set of keys. Raises `ValueError`."""
        return KeySet.parse(data)

    @staticmethod
    def metadata(data: bytes) -> Metadata:
        """An issuer's metadata. Raises `BadMetadata`."""
        return Metadata.parse(data, _ISSUER)

    @staticmethod
    def login(text: str) -> LoginState | None:
        """A login that has begun."""
        return open_state(Secret(text), (bytes(32), bytes(range(32))), _NOW)


def call(name: str, given: Any) -> Any:
    """One of the product's rules."""
    return getattr(Issuer, name)(given)


def check(data: bytes, product: Any) -> None:
    """See the module."""
    kind, rest = data[:1], data[1:]
    other = {b"k": _check_keys, b"m": _check_metadata, b"c": _check_login}.get(kind)
    if other is not None:
        other(rest, product)
        return
    signed: str | None = None
    if kind in (b"0", b"1", b"2"):
        header, _, claims = rest.partition(b"\n")
        signed = text = _signed(int(kind), header, claims)
    else:
        text = edited(_genuine(), rest) if kind == b"e" else rest.decode("latin-1")
    for name, is_right in (("identify", _is_identity), ("log_out", _is_logout)):
        try:
            found = product(name, text)
        except BadToken as error:
            require(0 < len(str(error)) < 200, f"{len(str(error))} characters of reason")
            require(
                name != "identify" or text != _genuine(), f"a genuine token is refused: {error}"
            )
            continue
        require(text in (signed, _genuine()), f"nobody signed {text!r}")
        head, claims = (json.loads(_decoded(part)) for part in text.split(".")[:2])
        key = 0 if text == _genuine() else int(kind)
        require(head["alg"] in _SIGN[key] and head["alg"] in ALGORITHMS, f"{head}")
        require(head.get("kid") in (None, _keys()[key].kid), f"{head}")
        require(head.get("crit") is None, f"{head}")
        is_right(found, claims)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _is_of_these(claims: Any, age: float) -> None:
    """The claims are of the issuer, for this client, and of now."""
    require(claims["iss"] == _ISSUER, f"{claims}")
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    require(_CLIENT in audiences, f"{claims}")
    require(claims.get("azp") in (None, _CLIENT), f"{claims}")
    require(len(audiences) == 1 or claims.get("azp") == _CLIENT, f"{claims}")
    require(claims["exp"] > _AT - 60, f"{claims}")
    require(_AT - age <= claims["iat"] <= _AT + 60, f"{claims}")
    require((claims.get("nbf") or 0) <= _AT + 60, f"{claims}")


def _is_identity(found: Any, claims: Any) -> None:
    _is_of_these(claims, 60)
    require(claims["nonce"] == _NONCE, f"{claims}")
    require(found.subject == claims["sub"] and found.subject, f"{found}")
    require(found.sid == claims.get("sid"), f"{found}")
    require(len(found.subject) <= 255, f"{len(found.subject)} characters")


def _is_logout(found: Any, claims: Any) -> None:
    _is_of_these(claims, 600)
    require("nonce" not in claims, f"{claims}")
    require(isinstance(claims["events"][LOGOUT_EVENT], dict), f"{claims}")
    require(found.jti == claims["jti"] and found.jti, f"{found}")
    require((found.subject, found.sid) == (claims.get("sub"), claims.get("sid")), f"{found}")
    require(found.subject or found.sid, f"{found}")


def _check_keys(data: bytes, product: Any) -> None:
    try:
        found: KeySet = product("keys", data)
    except ValueError:
        return
    require(1 <= len(found.keys) <= 32, f"{len(found.keys)} keys")
    json.loads(data)
    for key in found.keys:
        require(not key.is_private, "a private key")
        require(key.key_type in ("RSA", "EC", "OKP"), f"{key.key_type}")
        if key.key_type == "RSA":
            require(2048 <= key.public_key.key_size <= 8192, f"{key.public_key.key_size} bits")


def _check_metadata(data: bytes, product: Any) -> None:
    try:
        found: Metadata = product("metadata", data)
    except BadMetadata as error:
        require(0 < len(str(error)) < 200, f"{len(str(error))} characters of reason")
        return
    require(found.issuer == _ISSUER and json.loads(data)["issuer"] == _ISSUER, f"{found}")
    for url in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
        require(url.isascii() and url.isprintable(), f"{url!r}")
        require(urlsplit(url).scheme == "https" and urlsplit(url).hostname, f"{url!r}")
    login = LoginState("s", "n", "v", "/", _AT)
    asked = found.authorization_url(
        login, client_id=_CLIENT, redirect_url="https://a.example/cb", scopes=found.scopes((), "g")
    )
    require(asked.isprintable() and asked.lower().startswith("https://"), f"{asked!r}")


def _check_login(data: bytes, product: Any) -> None:
    text = data.decode("latin-1")
    found = product("login", text)
    require(found is None or text == _COOKIE, f"{text!r} was opened")


_COOKIE = b64(
    bytes(12)
    + AESGCM(bytes(32)).encrypt(
        bytes(12), msgspec.json.encode(LoginState("s", "n", "v", "/", _AT)), None
    )
)
_METADATA = {
    "issuer": _ISSUER,
    "authorization_endpoint": f"{_ISSUER}/authorize?a=b",
    "token_endpoint": f"{_ISSUER}/token",
    "jwks_uri": f"{_ISSUER}/jwks",
    "scopes_supported": ["openid", "groups"],
    "code_challenge_methods_supported": ["S256"],
    "id_token_signing_alg_values_supported": ["ES256"],
}


def _text(**claims: Any) -> bytes:
    return json.dumps({**_CLAIMS, **claims}).encode()


TARGET = Target(
    call,
    check,
    (
        b"e",
        b"e\0\x05B",
        b"r..",
        b"0" + _HEADER + b"\n" + _text(aud=[_CLIENT, "b"], azp=_CLIENT, sid="s", nbf=_AT),
        b"0" + _HEADER + b"\n" + json.dumps(_LOGOUT).encode(),
        b"0" + _HEADER + b"\n" + _text(exp=_AT - 61),
        b"0" + _HEADER + b"\n" + _text(nonce="other"),
        b"0" + _HEADER + b"\n" + _text(sub="\0"),
        b'1{"alg":"ES256"}\n' + _text(),
        b'2{"alg":"RS256","kid":"rs"}\n' + _text(),
        b'2{"alg":"PS256","kid":"rs"}\n' + _text(iat=True),
        b'0{"alg":"none"}\n' + _text(),
        b'0{"alg":"HS256","kid":"ed"}\n' + _text(),
        b'0{"alg":"EdDSA","crit":["b64"],"b64":false}\n' + _text(),
        b"k" + json.dumps({"keys": [Key(ec.derive_private_key(7, ec.SECP256R1())).jwk]}).encode(),
        b'k{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"oct","k":"AA"},{"kty":"OKP","crv":"Ed25519","x":1}]}',
        b"m" + json.dumps(_METADATA).encode(),
        b"m" + json.dumps({**_METADATA, "jwks_uri": "http://id.example"}).encode(),
        b"c" + _COOKIE.encode(),
        b"cAAAA",
    ),
    (
        *(b'"alg":"none"', b'"HS256"', b'"kid"', b'"crit"', b'"azp"', b'"aud":["ice-gateway"]'),
        *(b'"nonce"', b'"events"', b'"exp"', b"1e999", b'"use":"enc"', b'"key_ops"', b'"n":""'),
    ),
    base_ms=30.0,
)
