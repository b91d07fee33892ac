"""base64url without padding, strictly (RFC 7515 section 2). Pure.

The standard library skips characters that are not of the alphabet and takes several texts for the
same bytes; a credential has one spelling only.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(data: bytes) -> str:
    """The one spelling of `data`."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes of `text`. Raises ValueError for every spelling that `encode` would not give."""
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(data) != text:
        raise ValueError("not base64url")
    return data
