"""base64url without padding, strictly (RFC 7515 section 2). Pure.

The standard library skips characters that are not of the alphabet and takes several texts for the
same bytes; a credential has one spelling only.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Final

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/***")  # what is not of this alphabet is of none
_LAST: Final = ("", "", "AQgw", "AEIMQUYcgkosw048")
"""The last character of a text that is no multiple of four long: the bits it does not need are 0."""


def encode(data: bytes) -> str:
    """The one spelling of `data`."""
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes of `text`. Raises ValueError for every spelling that `encode` would not give."""
    rest = len(text) % 4
    if rest and text[-1] not in _LAST[rest]:
        raise ValueError("not base64url")
    padded = text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4)
    return a2b_base64(padded, strict_mode=True)
