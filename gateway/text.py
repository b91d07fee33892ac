"""Text of a person's files, and text and JSON of strangers, made fit for a terminal, a log, a page."""

from __future__ import annotations

import codecs
import json
from typing import Final

import msgspec

UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How a text in UTF-16 begins."""


def decoded(data: bytes) -> str:
    """The text of a person's file: UTF-8, or what Windows' editors and shells write with a byte order mark.

    Raises `UnicodeDecodeError`.
    """
    return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")


def printable(text: str) -> str:
    """`text` with an escape for each character that could steer a terminal or begin a line of its own."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def pretty(value: bytes) -> str:
    """JSON indented for people, still JSON: what could steer a terminal is written as an escape."""
    try:
        text = msgspec.json.format(value, indent=2).decode()
    except RecursionError:  # it was parsed once, but not so far down the stack
        text = value.decode()
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )
