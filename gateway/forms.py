"""Reads HTML forms (application/x-www-form-urlencoded) in bounded work. Pure.

Python's own `parse_qsl` takes 2.3 s for 3 MB of `%` and 1.3 s for a million and a half empty fields.
"""

from __future__ import annotations

import re
from typing import Final

_ESCAPES: Final = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")


class TooManyFields(ValueError):
    """The form has more fields than its reader takes."""


def parse_form(data: bytes, max_fields: int) -> list[tuple[str, str]]:
    """The fields of a form in their order, empty values included.

    Source: URL Standard section 5.1. As browsers do, `%` that begins no escape stands for itself.

    Raises:
        TooManyFields: there are more than `max_fields`; nothing was decoded.
        ValueError: a name or value is not UTF-8.
    """
    if data.count(b"&") >= max_fields:
        raise TooManyFields
    pairs = (part.partition(b"=") for part in data.replace(b"+", b" ").split(b"&") if part)
    return [(_unescape(name), _unescape(value)) for name, _, value in pairs]


def _unescape(text: bytes) -> str:
    return _ESCAPES.sub(
        lambda found: bytes.fromhex(found[0].decode().replace("%", "")), text
    ).decode()
