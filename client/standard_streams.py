"""Writes stdout and stderr of a running client in threads, so that output never blocks its event loop.

A pipe without a reader holds 64 KiB and then blocks its writer. Lines that cannot be written (a full disk, a
reader that has gone) and lines beyond `MAX_WAITING` are dropped and counted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, Protocol, TextIO, cast

MAX_WAITING: Final = 1024 * 1024
"""Bytes that may wait to be written."""
EXIT_TIMEOUT: Final = 1.0
"""Seconds for writing the waiting lines when the client ends."""
_PAUSE: Final = 0.05
"""Seconds before a full non-blocking descriptor is tried again."""


def timed(line: str) -> str:
    """`line` after the current time in RFC 3339."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}"


class _Described(Protocol):
    """What a stream says of itself."""

    @property
    def encoding(self) -> str: ...
    def fileno(self) -> int: ...
    def isatty(self) -> bool: ...


class StandIn(io.TextIOBase):
    """A writable text stream in place of `stream`, which says the same of itself."""

    errors = "backslashreplace"  # for characters outside the encoding

    def __init__(self, stream: _Described) -> None:
        super().__init__()
        self._described = stream

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has it as an attribute
        """The stream's encoding, which click needs."""
        return self._described.encoding

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._described.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._described.isatty()

    def writable(self) -> bool:
        """Always true."""
        return True


class DecoupledStream(StandIn):
    """Accepts text without blocking; a thread writes it to `raw`, the unbuffered layer of `stream`.

    After the next successful write, a line says how many lines were lost. At most `max_waiting` bytes wait.
    """

    def __init__(
        self, stream: _Described, raw: io.RawIOBase, *, max_waiting: int = MAX_WAITING
    ) -> None:
        super().__init__(stream)
        self._raw = raw
        self._max_waiting = max_waiting
        self._waiting = bytearray()
        self._lost = 0
        self._writing = self._cut = False
        self._changed = threading.Condition()
        # A daemon thread, so that a blocked write does not keep the process alive.
        threading.Thread(target=self._run, daemon=True).start()

    def write(self, text: str) -> int:
        """Queue `text`, or drop it if too much waits."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            if len(self._waiting) + len(data) > self._max_waiting:
                self._lost += data.count(b"\n")
            else:
                self._waiting += data
                self._changed.notify_all()
        return len(text)

    def drain(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until all lines are written or dropped."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._writing = True
                data = bytes(self._waiting)
                self._waiting.clear()
                lost, self._lost = self._lost, 0
            lost_now = self._write(data)
            if lost and not lost_now:
                notice = timed(f"ice-client: {lost} lines could not be written here\n")
                lost = lost if self._write(notice.encode()) else 0
            with self._changed:
                self._lost += lost + lost_now

    def _write(self, data: bytes) -> int:
        """Write `data` and return how many of its lines could not be written."""
        # If the last line was cut off, begin a new one.
        whole = b"\n" + data if self._cut else data
        rest = memoryview(whole)
        try:
            while rest:
                done = self._raw.write(rest)
                if done is None:
                    time.sleep(_PAUSE)
                else:
                    rest = rest[done:]
        except (OSError, ValueError):  # ValueError: the stream is closed
            done = len(whole) - len(rest)
            if done:
                self._cut = not whole[:done].endswith(b"\n")
            return bytes(rest[-len(data) :]).count(b"\n")
        self._cut = False
        return 0


def log_to_stderr() -> None:
    """Log to stderr, with a time, what libraries and handlers log, unless a handler has configured logging."""
    formatter = logging.Formatter(
        "%(asctime)s ice-client: %(levelname)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler])


@contextlib.contextmanager
def decoupled() -> Iterator[None]:
    """Make writing to stdout and stderr non-blocking."""
    before = sys.stdout, sys.stderr
    streams: list[DecoupledStream | TextIO] = []
    for stream in before:
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer
        if isinstance(raw, io.RawIOBase):
            streams.append(DecoupledStream(stream, raw))
        else:
            streams.append(stream)  # a stream of a test, which does not block
    sys.stdout, sys.stderr = cast("list[TextIO]", streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        until = time.monotonic() + EXIT_TIMEOUT
        for stream in streams:
            if isinstance(stream, DecoupledStream):
                stream.drain(max(0.0, until - time.monotonic()))
