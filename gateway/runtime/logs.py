"""Structured logs on stderr: JSON unless on a terminal. No event carries a token, proof or password."""

from __future__ import annotations

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

from gateway.core.text import printable
from gateway.core.times import to_text, utc_now
from gateway.runtime.standard_streams import DecoupledStream

LINES_A_MINUTE: Final = 120
"""Lines of one kind, each minute, that name no ICE: anybody who reaches the port may cause them."""
NAMED_A_MINUTE: Final = 3000
"""Lines of one kind, each minute, that name ICEs,"""
ICE_LINES_A_MINUTE: Final = 10
"""and of these so many that name the same."""
TRACEBACKS_A_MINUTE: Final = 10
"""Lines of one kind, each minute, with a traceback, which is a hundred times as long."""
MAX_KINDS: Final = 200
"""Kinds that are counted; what comes beyond is of one kind."""
_OTHER: Final = "other"
_JSON: Final = msgspec.json.Encoder(enc_hook=str)
MAX_VALUE: Final = 1000
"""Characters of one value in a line,"""
MAX_TRACEBACK: Final = 20_000
"""and of a traceback, from its end."""


def configure(form: str, level: str) -> None:
    """Set up logging for this process; `form` is auto, json or text. stderr is to be decoupled already."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        # Its own tracebacks would show local variables, a caller's token among them.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if text
        else _encode
    )
    rendering: list[Any] = [_plain, renderer]
    if isinstance(sys.stderr, DecoupledStream):

        def describe(lines: int) -> str:
            line: EventDict = {"event": "log lines lost", "lines": lines}
            for processor in (_stamp, *rendering):
                line = processor(None, "warning", line)
            return str(line)

        sys.stderr.describe = describe
    limit = LineLimit()
    structlog.configure(
        processors=[limit, _stamp, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library: the same lines. Their debug output could quote headers.
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_unsaid, _stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    others.addFilter(limit)
    logging.basicConfig(handlers=[others], level=max(number, logging.WARNING))
    logging.captureWarnings(capture=True)


def _stamp(_: Any, level: str, line: EventDict) -> EventDict:
    """Say how grave it is, and when it happened."""
    line["level"] = level
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


class LineLimit:
    """Keeps clients from filling the disk with log lines: so many a minute of each kind, and of each ICE.

    The limits hold for every line; the gateway's own stay far below them. The next line of a kind that is written says how many were `unsaid`.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._minute = -1
        self._said: Counter[tuple[str, str]] = Counter()
        self._unsaid: Counter[str] = Counter()

    def admit(
        self, kind: str, ice_name: str | None = None, *, traceback: bool = False
    ) -> int | None:
        """Whether a line is to be written: how many of its kind were not since the last; else None."""
        minute = int(self._monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._said.clear()
            self._unsaid = +self._unsaid  # keep kinds whose dropped lines are not reported yet
        # Each has its own budget: strangers do not use up what ICEs may say, nor one ICE what all may.
        most = LINES_A_MINUTE
        if traceback:
            kind, most = f"{kind}, with a traceback", TRACEBACKS_A_MINUTE
        elif ice_name is not None:
            kind, most = f"{kind}, of an ICE", NAMED_A_MINUTE
        if kind not in self._unsaid:
            if len(self._unsaid) >= MAX_KINDS:
                kind = _OTHER
            self._unsaid[kind] += 0
        said, said_of_ice = self._said[kind, ""], self._said[kind, ice_name] if ice_name else 0
        if said >= most or said_of_ice >= ICE_LINES_A_MINUTE:
            self._unsaid[kind] += 1
            return None
        self._said[kind, ""] += 1
        if ice_name:
            self._said[kind, ice_name] += 1
        unsaid, self._unsaid[kind] = self._unsaid[kind], 0
        return unsaid

    def __call__(self, _: Any, __: str, line: EventDict) -> EventDict:
        """A processor of structlog. Raises `DropEvent` for what is not to be said."""
        unsaid = self.admit(line["event"], line.get("ice"), traceback=bool(line.get("exc_info")))
        if unsaid is None:
            raise structlog.DropEvent
        return {**line, "unsaid": unsaid} if unsaid else line

    def filter(self, record: logging.LogRecord) -> bool:
        """A filter of the standard library: there a kind is a logger."""
        unsaid = self.admit(record.name, traceback=bool(record.exc_info))
        record.unsaid = unsaid
        return unsaid is not None


def _unsaid(_: Any, __: str, line: EventDict) -> EventDict:
    """Of a line of the standard library what `LineLimit.filter` has found."""
    unsaid = line["_record"].unsaid
    return {**line, "unsaid": unsaid} if unsaid else line


def _encode(_: Any, __: str, line: EventDict) -> str:
    try:
        text = _JSON.encode(line).decode("ascii")
    except UnicodeError:
        text = json.dumps(line, default=str, separators=(",", ":"))
    # ASCII alone; DEL is the one control character that JSON would let through.
    return text.replace("\x7f", "\\u007f")
