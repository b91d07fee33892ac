"""Text of a person's files, and text and JSON of strangers, made fit for a terminal, a log, a page."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}:,]|[^\s\[\]{}:,"]+')
"""A string, a sign of JSON, or a number or word."""

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


def pretty(value: bytes, at_most: int) -> tuple[str, bool]:
    """JSON indented for people, and whether that is all of it: it is cut at `at_most` characters.

    Until then it is still JSON: what could steer a terminal is written as an escape. Time and memory are
    bounded by `at_most`, not by what the indentation of all of it would need.
    """
    text = io.StringIO()
    for piece in _indented(value.decode(), at_most):
        if text.tell() + len(piece) > at_most:
            text.write(piece[: at_most - text.tell()])
            return text.getvalue(), False
        text.write(piece)
    return text.getvalue(), True


def compact(value: bytes) -> str:
    """JSON as it is, but for what could steer a terminal, which is written as an escape."""
    return _escaped(value.decode())


def _indented(json_text: str, longest: int) -> Iterator[str]:
    depth, opened = 0, False
    for found in _TOKEN.finditer(json_text):
        part = found[0]
        closes = part in "]}"
        depth -= closes
        # Before what is first within brackets, and before the end of brackets that hold something.
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
