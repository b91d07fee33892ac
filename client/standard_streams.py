"""stdout and stderr of a client that runs: what it says there never keeps its connection waiting.

A pipe without a reader takes 64 KiB and then blocks its writer. So a thread writes. Lines that cannot be written
(a full disk, a reader that has gone) and lines beyond `MAX_WAITING` are lost, and counted.
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
from typing import Final, TextIO, cast

MAX_WAITING: Final = 1024 * 1024
"""Bytes that wait to be written."""
EXIT_PATIENCE: Final = 1.0
"""Seconds for what waits when the client ends."""
_PAUSE: Final = 0.05
"""Seconds until a descriptor that never blocks, and is full, is tried again."""


def timed(line: str) -> str:
    """`line` behind the present, in RFC 3339."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}"


class DecoupledStream(io.TextIOBase):
    """Takes text and returns at once; a thread writes it to `raw`, which is beneath `stream`.

    Once something could be written again, a line says how many lines were lost.
    """

    def __init__(self, stream: TextIO, raw: io.RawIOBase) -> None:
        super().__init__()
        self._stream = stream
        self._raw = raw
        self._waiting = bytearray()
        self._lost = 0
        self._writing = self._cut = False
        self._changed = threading.Condition()
        # A daemon: where it hangs in a write, the process ends all the same.
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has it as an attribute
        """That of the stream; click asks for it."""
        return self._stream.encoding

    @property
    def errors(self) -> str:  # type: ignore[override] # likewise
        """A character that the encoding lacks is written as an escape."""
        return "backslashreplace"

    def fileno(self) -> int:
        """The descriptor."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def write(self, text: str) -> int:
        """Have `text` written soon, or never."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            if len(self._waiting) + len(data) > MAX_WAITING:
                self._lost += data.count(b"\n")
            else:
                self._waiting += data
                self._changed.notify_all()
        return len(text)

    def drain(self, patience: float) -> None:
        """Wait until everything was tried, for `patience` seconds at the most."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), patience)

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
            lost_now = self._written(data)
            if lost and not lost_now:
                told = timed(f"ice-client: {lost} lines could not be written here\n")
                lost = lost if self._written(told.encode()) else 0
            with self._changed:
                self._lost += lost + lost_now

    def _written(self, data: bytes) -> int:
        """Write `data`; how many lines of it could not be written."""
        # Where the last line was cut off, this begins a new one.
        whole = b"\n" + data if self._cut else data
        rest = memoryview(whole)
        try:
            while rest:
                done = self._raw.write(rest)
                if done is None:
                    time.sleep(_PAUSE)
                else:
                    rest = rest[done:]
        except (OSError, ValueError):  # ValueError: somebody has closed it
            done = len(whole) - len(rest)
            if done:
                self._cut = not whole[:done].endswith(b"\n")
            return bytes(rest[-len(data) :]).count(b"\n")
        self._cut = False
        return 0


def log_to_stderr() -> None:
    """Give what libraries and handlers log a time, too, unless the handlers have set up logging already."""
    formatter = logging.Formatter(
        "%(asctime)s ice-client: %(levelname)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler])


@contextlib.contextmanager
def decoupled() -> Iterator[None]:
    """Let nothing that is written to stdout and stderr hold up its writer."""
    before = sys.stdout, sys.stderr
    streams: list[DecoupledStream | TextIO] = []
    for stream in before:
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer
        if isinstance(raw, io.RawIOBase):
            streams.append(DecoupledStream(stream, raw))
        else:
            streams.append(stream)  # a test's, which takes everything
    sys.stdout, sys.stderr = cast("list[TextIO]", streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        until = time.monotonic() + EXIT_PATIENCE
        for stream in streams:
            if isinstance(stream, DecoupledStream):
                stream.drain(max(0.0, until - time.monotonic()))
