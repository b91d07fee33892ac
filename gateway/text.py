"""A stranger's text, made fit for a terminal's line or a log's."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with an escape for each character that could steer a terminal or begin a line of its own."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
