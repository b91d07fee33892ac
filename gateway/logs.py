"""Structured logs on stderr: JSON unless on a terminal. No event carries a token, proof or password."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import EventDict

from gateway.standard_streams import DecoupledStream
from gateway.text import printable
from gateway.times import to_text, utc_now

STRANGERS: Final = ("malformed request", "refused", "credentials refused", "unexpected error")
"""What anybody can cause who reaches the port; the last only by a fault of ours."""
LINES_A_MINUTE: Final = 120
_JSON: Final = msgspec.json.Encoder(enc_hook=str)
MAX_VALUE: Final = 1000
"""Characters of one value in a line,"""
MAX_TRACEBACK: Final = 20_000
"""and of a traceback, from its end."""


def configure(form: str, level: str, node: str | None = None) -> None:
    """Set up logging for this process; `form` is auto, json or text. stderr is to be decoupled already.

    `node` stands in each line where several processes write to one log.
    """
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        # Its own tracebacks would show local variables, a caller's token among them.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if text
        else _encode
    )
    rendering: list[Any] = [_plain, renderer]
    stamp = functools.partial(_stamp, node)
    if isinstance(sys.stderr, DecoupledStream):

        def describe(lines: int) -> str:
            line: EventDict = {"event": "log lines lost", "lines": lines}
            for processor in (stamp, *rendering):
                line = processor(None, "warning", line)
            return str(line)

        sys.stderr.describe = describe
    structlog.configure(
        processors=[Sparing(), stamp, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library: the same lines. Their debug output could quote headers.
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[others], level=max(number, logging.WARNING))
    logging.captureWarnings(capture=True)


def _stamp(node: str | None, _: Any, level: str, line: EventDict) -> EventDict:
    """Say how grave it is, when it happened, and where."""
    line["level"] = level
    if node is not None:
        line.setdefault("node", node)
    if "timestamp" not in line:  # or it is told later
        line["timestamp"] = to_text(utc_now())
    return line


def _plain(logger: Any, level: str, line: EventDict) -> EventDict:
    """Let no text steer a terminal, begin a line of its own, or fill the log: it may be a stranger's."""
    if "exc_info" in line:
        line = structlog.processors.format_exc_info(logger, level, line)
    for name, value in line.items():
        if not isinstance(value, str):
            continue
        if name == "exception":
            # What follows its first line stands further in, so that none of it looks like another's.
            lines = value[-MAX_TRACEBACK:].split("\n")
            line[name] = "\n  ".join(map(printable, lines))
        else:
            line[name] = printable(value[:MAX_VALUE])
    return line


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


def _encode(_: Any, __: str, line: EventDict) -> str:
    try:
        text = _JSON.encode(line).decode("ascii")
    except UnicodeError:
        text = json.dumps(line, default=str, separators=(",", ":"))
    # ASCII alone; DEL is the one control character that JSON would let through.
    return text.replace("\x7f", "\\u007f")
