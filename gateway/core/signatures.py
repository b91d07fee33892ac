"""Checks the signatures of proofs: ES256 (RFC 7518 section 3.4) and Ed25519 (RFC 8037 section 3.1). Pure.

It imports only `cryptography`, so that a process that does nothing else stays small.

Tested in tests/unit/core/test_dpop.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

COORDINATE_BYTES: Final = 32
"""Bytes of a coordinate on P-256, and of a point on edwards25519."""
_SIGNATURE_BYTES: Final = 64  # of both: R and S, 32 bytes each
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_P256: Final = ec.SECP256R1()


class Signature(NamedTuple):
    """A signature to check. `key` has the two coordinates of an ES256 key, or the one point of an Ed25519 key."""

    key: bytes
    signature: bytes
    signed: bytes

    def fault(self) -> str | None:
        """Why it is invalid, in a text for the ICE; None if it is valid."""
        try:
            self._verify()
        except InvalidSignature:
            return "the signature does not hold"
        except ValueError as error:
            return f"the key cannot be used: {error}"
        return None

    def _verify(self) -> None:
        if len(self.signature) != _SIGNATURE_BYTES:
            raise InvalidSignature
        if len(self.key) == COORDINATE_BYTES:
            Ed25519PublicKey.from_public_bytes(self.key).verify(self.signature, self.signed)
            return
        # Rejects points that are not on the curve.
        public = ec.EllipticCurvePublicKey.from_encoded_point(_P256, b"\x04" + self.key)
        r = int.from_bytes(self.signature[:COORDINATE_BYTES])
        s = int.from_bytes(self.signature[COORDINATE_BYTES:])
        public.verify(encode_dss_signature(r, s), self.signed, _ECDSA)
