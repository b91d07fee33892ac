"""An ICE's token, its key, the secret of an enrolment key, and the proofs made with them. Pure: `identity` stores them.

`proof` also serves as a reference for ICEs in other languages. Source: docs/protocol.md.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import secrets
from typing import Any, ClassVar, Final, NoReturn, Self

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from client import protocol
from client.exceptions import IceClientError
from client.text import decoded

_COORDINATE: Final = 32  # bytes: RFC 7518 section 6.2.1.2 for P-256
_PART: Final = r"[A-Za-z0-9_-]+"
_ENROLMENT: Final = re.compile(r"iceek_[A-Za-z0-9]{1,64}_[A-Za-z0-9_-]{43}", re.ASCII)
# RFC 7516 section 7.1. With `dir` the second part, the encrypted key, is empty. A256GCM has 12 bytes of IV and 16
# of tag, so the pattern detects a truncated token.
_JWE: Final = re.compile(rf"{_PART}\.\.[A-Za-z0-9_-]{{16}}\.{_PART}\.[A-Za-z0-9_-]{{22}}", re.ASCII)


class IdentityProblem(IceClientError):
    """This ICE cannot try to connect until a person acts; the text is one line."""


class NotAToken(IdentityProblem):
    """The text is not a registration token."""


class NotAnEnrolmentKey(IdentityProblem):
    """The text is not the secret of an enrolment key."""


# --- secrets -----------------------------------------------------------------------------------


class Secret:
    """A text that only `reveal()` returns; `noun` is what people call it, `problem` what is raised for another."""

    noun: ClassVar[str]
    problem: ClassVar[type[IdentityProblem]]
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        # Mail programs and editors wrap lines and add white space; a secret contains none.
        self._text = "".join(text.replace("\ufeff", "").split())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The secret in a file, in any encoding that `text.decoded` knows. Raises as the constructor."""
        return cls(decoded(data, errors="replace"))

    def reveal(self) -> str:
        """The text, for the gateway and the token file."""
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


class EnrolmentSecret(Secret):
    """The secret of an enrolment key. Raises `NotAnEnrolmentKey`."""

    noun = "enrolment key"
    problem = NotAnEnrolmentKey
    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if not _ENROLMENT.fullmatch(self._text):
            raise NotAnEnrolmentKey(
                "this is not the secret of an enrolment key: copy it whole; it begins with iceek_"
            )


class Token(Secret):
    """A registration token. Raises `NotAToken`."""

    noun = "registration token"
    problem = NotAToken
    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        text = self._text
        if len(text) > protocol.MAX_TOKEN or not _JWE.fullmatch(text):
            raise NotAToken(
                "this is not a registration token: copy it whole, five parts with dots between them"
            )

    def digest(self) -> str:
        """Lowercase hex SHA-256 of the text."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    @property
    def issued(self) -> float | None:
        """When the gateway issued it (Unix time, from the protected header); None if unknown."""
        part = self._text.partition(".")[0]
        try:
            header = msgspec.json.decode(base64.urlsafe_b64decode(f"{part}=="), type=_JweHeader)
        except (ValueError, RecursionError):
            return None
        return header.iat if header.iat is not None and math.isfinite(header.iat) else None

    def supersedes(self, stored: Token) -> bool:
        """Whether this token was certainly issued after `stored`."""
        mine, theirs = self.issued, stored.issued
        return mine is not None and (theirs is None or mine > theirs)


class _JweHeader(msgspec.Struct):
    iat: float | None = None


# --- the key and its proofs --------------------------------------------------------------------


class Key:
    """The ICE's own P-256 key pair, which never leaves this machine."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> Key:
        """A new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Key:
        """Parse a private P-256 key without a password. Raises ValueError."""
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (
            TypeError,
            UnsupportedAlgorithm,
        ) as error:  # the key has a password, or another curve
            raise ValueError(str(error)) from None
        match private:
            case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
                return cls(private)
        raise ValueError("not a P-256 key")

    def to_pem(self) -> bytes:
        """PKCS #8, for the key file."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def jwk(self) -> dict[str, str]:
        """The public key as a JWK (RFC 7517)."""
        numbers = self._private.public_key().public_numbers()
        x, y = (_base64(number.to_bytes(_COORDINATE)) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y}

    def thumbprint(self) -> str:
        """The thumbprint of the public key (RFC 7638), as the gateway shows it to the admin."""
        members = dict(sorted(self.jwk().items()))
        return _base64(hashlib.sha256(msgspec.json.encode(members)).digest())

    def sign(self, data: bytes) -> bytes:
        """ES256 (RFC 7518 section 3.4): r and s, 32 bytes each, not the DER of `cryptography`."""
        r, s = decode_dss_signature(self._private.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_COORDINATE) + s.to_bytes(_COORDINATE)

    def __repr__(self) -> str:
        return "Key(***)"


def proof(
    key: Key,
    htu: str,
    secret: Secret,
    *,
    now: float,
    htm: str = "GET",
    nonce: str | None = None,
    jti: str | None = None,
) -> str:
    """The value of the `DPoP` header of one request: a proof (RFC 9449 section 4.2).

    It is a JWT of three base64url parts, `header.claims.signature`:

        header     {"typ": "dpop+jwt", "alg": "ES256", "jwk": {"kty": "EC", "crv": "P-256", "x", "y"}}
        claims     {"jti", "htm", "htu", "iat", "ath"}, and "nonce" if the gateway asked for one
        signature  ES256 over the ASCII bytes of `header.claims`

    All parts follow from the arguments, but for the signature: ECDSA uses a random number.

    Args:
        key: the ICE's own key; the header carries its public half.
        htu: the URL of the request, without query and fragment.
        secret: the token, or the secret of an enrolment; `ath` is the base64url SHA-256 of its text.
        now: Unix time; `iat` is its whole seconds.
        htm: the method of the request; GET for a handshake.
        nonce: the `DPoP-Nonce` of the last answer, if the gateway asked for one (section 8).
        jti: an id never used before with this key; random by default. A proof is valid once.
    """
    header = {"typ": protocol.PROOF_TYPE, "alg": "ES256", "jwk": key.jwk()}
    claims: dict[str, Any] = {
        "jti": jti or secrets.token_urlsafe(16),
        "htm": htm,
        "htu": htu,
        "iat": int(now),
        "ath": _base64(hashlib.sha256(secret.reveal().encode()).digest()),
    }
    if nonce is not None:
        claims["nonce"] = nonce
    signed = ".".join(_base64(msgspec.json.encode(part)) for part in (header, claims))
    return f"{signed}.{_base64(key.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
