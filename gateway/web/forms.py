"""Parses HTML forms (application/x-www-form-urlencoded) in linear time. Pure.

Python's `parse_qsl` takes 2.3 s for 3 MB of `%` and 1.3 s for a million and a half empty fields.
"""

from __future__ import annotations

import re
from typing import Final

_ESCAPES: Final = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
_PLUS: Final = bytes(32 if char == ord("+") else char for char in range(256))
_PIECE: Final = 16 * 1024
"""Bytes decoded in one step; between two steps another thread can take the interpreter lock."""


class TooManyFields(ValueError):
    """The form has more fields than allowed."""


def parse_form(data: bytes, max_fields: int) -> list[tuple[str, str]]:
    """The fields of a form in order, including empty values.

    Source: URL Standard section 5.1. A `%` that begins no escape is kept, as in browsers.

    Raises:
        TooManyFields: there are more than `max_fields`; nothing was decoded.
        ValueError: a name or value is not UTF-8.
    """
    if data.count(b"&") >= max_fields:
        raise TooManyFields
    pairs = (part.partition(b"=") for part in data.translate(_PLUS).split(b"&") if part)
    return [(_unescape(name), _unescape(value)) for name, _, value in pairs]


def _unescape(text: bytes) -> str:
    if b"%" not in text:
        return text.decode()
    pieces, start = [], 0
    while start < len(text):
        end = start + _PIECE
        begun = text.rfind(b"%", end - 2, end)  # an escape that would be split
        end = end if begun < 0 else begun
        pieces.append(_ESCAPES.sub(_bytes_of, text[start:end]))
        start = end
    return b"".join(pieces).decode()


def _bytes_of(escapes: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escapes[0].replace(b"%", b"").decode())
