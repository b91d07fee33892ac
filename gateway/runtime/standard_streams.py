"""stdin, stdout and stderr of the process: always open, discarded if they cannot be written, or decoupled.

If the parent closed a descriptor, the next socket or database file would get its number, and a stray line
would be written into it. At exit Python retries what a stream could not write, and fails with status 120
whatever the result of the command. A server must not wait for the reader of its output: a pipe takes 64 KiB
and then blocks the writer.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TextIO, cast

_FLAGS: Final = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)
"""How descriptors 0, 1 and 2 are opened."""

MAX_WAITING: Final = 4 * 1024 * 1024
"""Maximum bytes of lines that wait to be written; further lines are lost and counted."""
LINE: Final = 200
"""Bytes of memory that a waiting line takes in addition to its text."""
_BATCH: Final = select.PIPE_BUF
"""Maximum bytes of one write: larger ones could interleave with those of other writers to the pipe."""
_GAP: Final = b""
"""Marks in the queue where lines were lost."""
EXIT_TIMEOUT: Final = 1.0
"""Seconds to flush at exit; without a limit an unread pipe would block it."""


class Unwritable(Exception):
    """A stream could not be written; the text says why."""


def open_missing() -> None:
    """Open /dev/null for each descriptor that the parent has closed.

    stdin and stderr then exist. stdout stays None: a command that cannot write its output fails.
    """
    for number, flags in enumerate(_FLAGS):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # noqa: FBT003 - as programs expect of 0, 1 and 2
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


@contextlib.contextmanager
def writing(stream: TextIO | None) -> Iterator[None]:
    """Wrap code that writes to a stream and flushes it. If that fails, discard the stream and raise `Unwritable`."""
    if stream is None:
        raise Unwritable(os.strerror(errno.EBADF))
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: closed, or not encodable
        discard(stream)
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unwritable(reason or str(error)) from error


def discard(stream: TextIO) -> None:
    """Send the stream's buffer, and all later output, to /dev/null."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class DecoupledStream(io.TextIOBase):
    """Queues text and returns at once; a thread writes it to the stream's descriptor.

    Text is lost if it cannot be written (a full disk, a reader that exited) or if the queue is full (a reader
    that hangs). After the next successful write, a line says how many lines were lost.

    Args:
        stream: only this object may write to its descriptor.
        describe: the line that says how many were lost.
        max_waiting: bytes that may wait.
    """

    def __init__(
        self,
        stream: TextIO,
        describe: Callable[[int], str] | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        super().__init__()
        self.stream = stream
        self._number = stream.fileno()
        self.describe = describe or "ice-gateway: {} lines could not be written here".format
        self._max_waiting = max_waiting
        self.lost = 0
        """Lines lost since the start."""
        self._unreported = 0
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._gap = False
        self._writing = False
        self._broken = False
        self._changed = threading.Condition()
        # A daemon, so that the process can exit while the thread hangs in a write.
        self._thread = threading.Thread(
            target=self._run, name=f"stream {self._number}", daemon=True
        )
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has it as an attribute
        """The stream's encoding; click reads it."""
        return self.stream.encoding

    @property
    def errors(self) -> str:  # type: ignore[override] # likewise
        """Characters that cannot be encoded are escaped."""
        return "backslashreplace"

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return self.stream.isatty()

    def writable(self) -> bool:
        """Always true."""
        return True

    def write(self, text: str) -> int:
        """Queue `text`; its line feeds count as lines."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            if self._size + len(data) + LINE > self._max_waiting:
                self._lose(data)
                if not self._gap:
                    self._gap = True
                    self._waiting.append(_GAP)
            elif data:
                self._waiting.append(data)
                self._size += len(data) + LINE
                self._changed.notify_all()
        return len(text)

    def drain(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until the queue is empty; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._writing), timeout)

    def _lose(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.lost += lines
        self._unreported += lines

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._writing = True
                data = self._take()
            rest = self._write(data)
            with self._changed:
                if rest:
                    self._lose(rest)
                    continue
                reported = 0
                if not self._gap:
                    reported, self._unreported = self._unreported, 0
            if reported and self._write(f"{self.describe(reported)}\n".encode()):
                with self._changed:
                    self._unreported += reported

    def _take(self) -> bytes:
        """Remove the next batch from the queue."""
        taken = [self._waiting.popleft()]
        if taken == [_GAP]:
            self._gap = False
            return b""
        size = len(taken[0])
        while self._waiting and size + len(self._waiting[0]) <= _BATCH:
            if self._waiting[0] == _GAP:
                break
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        self._size -= size + len(taken) * LINE
        return b"".join(taken)

    def _write(self, data: bytes) -> bytes:
        """Write `data`; returns the rest that could not be written."""
        done = 0
        try:
            if self._broken:  # the last line was cut off
                os.write(self._number, b"\n")
                self._broken = False
            while done < len(data):
                try:
                    done += os.write(self._number, data[done:])
                except BlockingIOError:
                    # Another process that shares the pipe or terminal may have made it non-blocking.
                    select.select([], [self._number], [])
        except OSError:
            if done:
                self._broken = not data[:done].endswith(b"\n")
        return data[done:]


def decouple() -> None:
    """Make writes to stdout and stderr never block from now on; a second call does nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, DecoupledStream):
            continue
        with contextlib.suppress(Unwritable), writing(stream):
            stream.flush()
        with contextlib.suppress(OSError):  # a stream without a descriptor: a test's capture
            setattr(sys, name, cast("TextIO", DecoupledStream(stream)))
            if name == "stderr":
                atexit.register(_drain)


@contextlib.contextmanager
def coupled() -> Iterator[None]:
    """Write stdout and stderr directly for a while, so that a person sees a prompt before it waits."""
    decoupled = sys.stdout, sys.stderr
    _drain()
    sys.stdout, sys.stderr = (
        stream.stream if isinstance(stream, DecoupledStream) else stream for stream in decoupled
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = decoupled


def _drain() -> None:
    until = time.monotonic() + EXIT_TIMEOUT
    for stream in (sys.stderr, sys.stdout):
        if isinstance(stream, DecoupledStream):
            stream.drain(max(0.0, until - time.monotonic()))


def lost_lines() -> int:
    """Lines that stdout and stderr could not write since they were decoupled."""
    streams = (sys.stdout, sys.stderr)
    return sum(stream.lost for stream in streams if isinstance(stream, DecoupledStream))
