"""A stranger's text and JSON, made fit for a terminal, a log, a page."""

from __future__ import annotations

import json

import msgspec


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
