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
"""Maximum lines of one kind, each minute, that name no ICE: anyone who reaches the port can cause them."""
NAMED_A_MINUTE: Final = 3000
"""Maximum lines of one kind, each minute, that name ICEs."""
ICE_LINES_A_MINUTE: Final = 10
"""Maximum lines of one kind, each minute, that name the same ICE."""
TRACEBACKS_A_MINUTE: Final = 10
"""Maximum lines of one kind, each minute, with a traceback, which is a hundred times as long."""
MAX_KINDS: Final = 200
"""Maximum kinds that are counted; further kinds are counted together."""
_OTHER: Final = "other"
_JSON: Final = msgspec.json.Encoder(enc_hook=str)
MAX_VALUE: Final = 1000
"""Maximum characters of one value in a line."""
MAX_TRACEBACK: Final = 20_000
"""Maximum characters of a traceback; its end is kept."""


def configure_command() -> None:
    """Have what a command does logged on stderr, as text: stdout has its answer, such as JSON.

    A program that calls the command and has set up its own logging keeps it.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            _stamp,
            _plain,
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


def configure(form: str, level: str) -> None:
    """Set up logging for this process; `form` is auto, json or text. Decouple stderr first."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        # structlog's rich tracebacks would show local variables, such as a caller's token.
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
    # Libraries log through the standard library; format their lines alike. Their debug output could quote
    # headers, so it is never shown.
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
    """Add the level and the time."""
    line["level"] = level
    if "timestamp" not in line:  # otherwise it happened earlier
        line["timestamp"] = to_text(utc_now())
    return line


def _plain(logger: Any, level: str, line: EventDict) -> EventDict:
    """Escape and cut untrusted text, so that it cannot control a terminal, fake a line or fill the log."""
    if "exc_info" in line:
        line = structlog.processors.format_exc_info(logger, level, line)
    for name, value in line.items():
        # Nearly every value is short and plain.
        if not isinstance(value, str) or (len(value) <= MAX_VALUE and value.isprintable()):
            continue
        if name == "exception":
            # Indent all but the first line, so that none of them looks like a log line.
            lines = value[-MAX_TRACEBACK:].split("\n")
            line[name] = "\n  ".join(map(printable, lines))
        else:
            line[name] = printable(value[:MAX_VALUE])
    return line


class LineLimit:
    """Keeps clients from filling the disk: limits log lines per minute, kind and ICE.

    The limits apply to every line; lines that no client causes stay far below them. The next written line of a
    kind says how many were suppressed (`unsaid`).
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._minute = -1
        self._written: Counter[tuple[str, str]] = Counter()
        self._suppressed: Counter[str] = Counter()

    def admit(
        self, kind: str, ice_name: str | None = None, *, traceback: bool = False
    ) -> int | None:
        """The number of lines of this kind suppressed since the last one; None to suppress this one too."""
        minute = int(self._monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._written.clear()
            self._suppressed = +self._suppressed  # keeps kinds with suppressed lines to report
        # Separate budgets: strangers cannot use up that of the ICEs, and no ICE that of all ICEs.
        most = LINES_A_MINUTE
        if traceback:
            kind, most = f"{kind}, with a traceback", TRACEBACKS_A_MINUTE
        elif ice_name is not None:
            kind, most = f"{kind}, of an ICE", NAMED_A_MINUTE
        if kind not in self._suppressed:
            if len(self._suppressed) >= MAX_KINDS:
                kind = _OTHER
            self._suppressed[kind] += 0
        of_ice = self._written[kind, ice_name] if ice_name else 0
        if self._written[kind, ""] >= most or of_ice >= ICE_LINES_A_MINUTE:
            self._suppressed[kind] += 1
            return None
        self._written[kind, ""] += 1
        if ice_name:
            self._written[kind, ice_name] += 1
        suppressed, self._suppressed[kind] = self._suppressed[kind], 0
        return suppressed

    def __call__(self, _: Any, __: str, line: EventDict) -> EventDict:
        """Run as a processor of structlog. Raises `DropEvent` to suppress a line."""
        unsaid = self.admit(line["event"], line.get("ice"), traceback=bool(line.get("exc_info")))
        if unsaid is None:
            raise structlog.DropEvent
        return {**line, "unsaid": unsaid} if unsaid else line

    def filter(self, record: logging.LogRecord) -> bool:
        """Run as a filter of the standard library; the kind is the name of the logger."""
        unsaid = self.admit(record.name, traceback=bool(record.exc_info))
        record.unsaid = unsaid
        return unsaid is not None


def _unsaid(_: Any, __: str, line: EventDict) -> EventDict:
    """Add what `LineLimit.filter` found to a line of the standard library."""
    unsaid = line["_record"].unsaid
    return {**line, "unsaid": unsaid} if unsaid else line


def _encode(_: Any, __: str, line: EventDict) -> str:
    try:
        text = _JSON.encode(line).decode("ascii")
    except UnicodeError:
        text = json.dumps(line, default=str, separators=(",", ":"))
    # JSON escapes every control character but DEL.
    return text.replace("\x7f", "\\u007f")
