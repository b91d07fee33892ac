"""Structured logs on stderr: JSON unless on a terminal. No event carries a token, proof or password."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import msgspec
import structlog


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
