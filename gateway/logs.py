"""Structured logs on stderr: JSON unless on a terminal. No event carries a token, proof or password."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict

STRANGERS: Final = ("malformed request", "refused")
"""What anybody can cause who reaches the port."""
LINES_A_MINUTE: Final = 120


def configure(form: str, level: str) -> None:
    """Set up logging for this process; `form` is auto, json or text."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        # Its own tracebacks would show local variables, a caller's token among them.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if text
        else structlog.processors.JSONRenderer(_encode)
    )
    processors: list[Any] = [
        Sparing(),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not text:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Patient(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; their debug output could quote headers.
    logging.basicConfig(stream=sys.stderr, level=max(number, logging.WARNING))


class Sparing:
    """Keeps what strangers cause from filling the disk: so many lines a minute of each kind.

    The first line of the next minute says how many were `unsaid`. What names an ICE is always said.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._minute = -1
        self._said: Counter[str] = Counter()
        self._unsaid: Counter[str] = Counter()

    def __call__(self, _: Any, __: str, line: EventDict) -> EventDict:
        """A processor of structlog. Raises `DropEvent` for what is not to be said."""
        event = line["event"]
        if event not in STRANGERS or line.get("ice") is not None:
            return line
        minute = int(self._monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._said.clear()
        if self._said[event] >= LINES_A_MINUTE:
            self._unsaid[event] += 1
            raise structlog.DropEvent
        self._said[event] += 1
        unsaid = self._unsaid.pop(event, 0)
        return {**line, "unsaid": unsaid} if unsaid else line


class _Patient:
    """A stream whose faults are not the gateway's: a log on a full disk must not stop it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _encode(value: Any, **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
