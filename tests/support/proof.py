"""A proof checked at once, without the batches of handshakes."""

from __future__ import annotations

from collections.abc import Container

from gateway.core.dpop import Invalid, Proof, Url, read


def verify(text: str, *, token: str, urls: Container[Url], expected: str) -> Proof | Invalid:
    """Check all of a proof but its age and whether it was used; `urls` are normalised."""
    signed = read(text)
    if isinstance(signed, Invalid):
        return signed
    fault = signed.signature.fault()
    if fault is not None:
        return Invalid(fault)
    return signed.proof(token=token, urls=urls, expected=expected)
