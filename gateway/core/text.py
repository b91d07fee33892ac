"""Decodes people's files, and makes untrusted text and JSON safe for a terminal, a log or a page."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}:,]|[^\s\[\]{}:,"]+')
"""A string, a punctuation character, or a number or literal of JSON."""

_WITHIN_LINES: Final = re.compile(r"[^\n\t]+")

UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""The byte order marks of UTF-16."""


def decoded(data: bytes) -> str:
    """Decode a person's file: UTF-8, or UTF-16 with the byte order mark that Windows tools write.

    Raises `UnicodeDecodeError`.
    """
    return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")


def printable(text: str) -> str:
    """`text` with an escape for each character that could control a terminal or begin a new line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def printable_line(text: str) -> str:
    """`text`, such as the message of a database, on one printable line."""
    return printable(" ".join(text.split()))


def printable_lines(text: str) -> str:
    """As `printable`, but line breaks and tabs stay."""
    return _WITHIN_LINES.sub(lambda found: printable(found[0]), text.replace("\r\n", "\n"))


def pretty(value: bytes, at_most: int) -> tuple[str, bool]:
    """JSON indented for people, cut at `at_most` characters, and whether it is complete.

    Characters that could control a terminal are written as JSON escapes. `at_most` bounds time and memory,
    however deep the JSON is.
    """
    text = io.StringIO()
    for piece in _indented(value.decode(), at_most):
        if text.tell() + len(piece) > at_most:
            text.write(piece[: at_most - text.tell()])
            return text.getvalue(), False
        text.write(piece)
    return text.getvalue(), True


def compact(value: bytes) -> str:
    """JSON as it is, with characters that could control a terminal written as escapes."""
    return _escaped(value.decode())


def _indented(json_text: str, longest: int) -> Iterator[str]:
    depth, opened = 0, False
    for found in _TOKEN.finditer(json_text):
        part = found[0]
        closes = part in "]}"
        depth -= closes
        # A new line after an opening bracket and before a closing one, but not within an empty pair.
        if opened != closes:
            yield _new_line(depth, longest)
        opened = part in "[{"
        depth += opened
        if part == ",":
            yield part
            yield _new_line(depth, longest)
        else:
            yield ": " if part == ":" else _escaped(part[: longest + 1])


def _new_line(depth: int, longest: int) -> str:
    return "\n" + "  " * min(depth, longest)


def _escaped(json_text: str) -> str:
    if json_text.isprintable():
        return json_text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in json_text)
