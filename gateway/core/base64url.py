"""base64url without padding, strictly (RFC 7515 section 2). Pure.

The standard library skips characters outside the alphabet and decodes several texts to the same bytes.
A credential must have exactly one spelling.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Final

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/***")  # strict decoding rejects `*`
_LAST: Final = ("", "", "AQgw", "AEIMQUYcgkosw048")
"""Allowed last characters by length modulo 4: their unused bits are 0."""


def encode(data: bytes) -> str:
    """Encode `data`."""
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Decode `text`. Raises ValueError for every spelling that `encode` would not produce."""
    rest = len(text) % 4
    if rest and text[-1] not in _LAST[rest]:
        raise ValueError("not base64url")
    padded = text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4)
    return a2b_base64(padded, strict_mode=True)


def decode_text(text: str) -> str:
    """Decode `text` to text. Raises ValueError, also for what is not UTF-8.

    `msgspec` checks only the strings that it builds, while RFC 7515 section 5.2 and RFC 7516 section 5.2 want the whole
    of a JSON header in UTF-8.
    """
    return decode(text).decode()
