"""stdin, stdout and stderr of the process: never closed, given up where they cannot be written, or decoupled.

A descriptor that the parent has closed would be the number of the next socket or database file, into which
a stray line would then be written. What Python still holds for a stream that cannot be written it tries again
at its exit, and ends with status 120 whatever the command came to. A server must not wait for whoever reads
what it says: a pipe that nobody reads takes 64 KiB and then stops the writer.
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
"""Bytes of lines that wait to be written; what comes beyond is lost, and counted."""
_LINE: Final = 200
"""Bytes that a line costs beside its text while it waits."""
_BATCH: Final = select.PIPE_BUF
"""Bytes that are written at once: no more, or lines of others who write to the same pipe get between them."""
_GAP: Final = b""
"""Waits in the place of lines that were lost."""
EXIT_PATIENCE: Final = 1.0
"""Seconds to flush at the exit; without a limit a pipe that nobody reads would block it."""


class Unwritable(Exception):
    """A stream did not take what was written; the text says why, in words."""


def fill() -> None:
    """Open /dev/null in place of each descriptor that the parent has closed.

    stdin and stderr are there then. stdout stays None: a command whose answer goes nowhere has failed.
    """
    for number, flags in enumerate(_FLAGS):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # noqa: FBT003 - as every program expects it
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


@contextlib.contextmanager
def writing(stream: TextIO | None) -> Iterator[None]:
    """For what writes to a stream and flushes it. Raises `Unwritable`, and has then given up the stream."""
    if stream is None:
        raise Unwritable(os.strerror(errno.EBADF))
    try:
        yield
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: closed, or a character that its encoding lacks
        give_up(stream)
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unwritable(reason or str(error)) from error


def give_up(stream: TextIO) -> None:
    """Let what is left in the stream's buffer, and all that follows, go to /dev/null."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class DecoupledStream(io.TextIOBase):
    """Takes text and returns at once; a thread writes it to the stream's descriptor.

    What cannot be written (a full disk, a reader that has gone) or finds too much waiting (a reader that
    hangs) is lost. Once something could be written again, a line says how many lines were lost.

    Args:
        stream: its descriptor is written to; nobody else may.
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
        """Lines, since the start."""
        self._untold = 0
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._gap = False
        self._writing = False
        self._broken = False
        self._changed = threading.Condition()
        # A daemon: where it hangs in a write the process still ends.
        self._thread = threading.Thread(
            target=self._run, name=f"stream {self._number}", daemon=True
        )
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has it as an attribute
        """That of the stream; click asks for it."""
        return self.stream.encoding

    @property
    def errors(self) -> str:  # type: ignore[override] # likewise
        """A character that the encoding lacks is written as an escape."""
        return "backslashreplace"

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return self.stream.isatty()

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def write(self, text: str) -> int:
        """Have `text` written soon, or never; what a line is its line feeds say."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            if self._size + len(data) + _LINE > self._max_waiting:
                self._lose(data)
                if not self._gap:
                    self._gap = True
                    self._waiting.append(_GAP)
            elif data:
                self._waiting.append(data)
                self._size += len(data) + _LINE
                self._changed.notify_all()
        return len(text)

    def drain(self, patience: float) -> bool:
        """Wait until everything was tried, for `patience` seconds at the most; whether that did."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._writing), patience)

    def _lose(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.lost += lines
        self._untold += lines

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._writing = True
                data = self._take()
            rest = self._written(data)
            with self._changed:
                if rest:
                    self._lose(rest)
                    continue
                told = 0
                if not self._gap:
                    told, self._untold = self._untold, 0
            if told and self._written(f"{self.describe(told)}\n".encode()):
                with self._changed:
                    self._untold += told

    def _take(self) -> bytes:
        """What is written next; it counts no longer as waiting."""
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
        self._size -= size + len(taken) * _LINE
        return b"".join(taken)

    def _written(self, data: bytes) -> bytes:
        """Write `data`; what of it could not be written."""
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
    """Let nothing that is written to stdout and stderr from now on hold up its writer; twice is as once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, DecoupledStream):
            continue
        with contextlib.suppress(Unwritable), writing(stream):
            stream.flush()
        with contextlib.suppress(
            OSError
        ):  # without a descriptor it is a test's, and takes everything
            setattr(sys, name, cast("TextIO", DecoupledStream(stream)))
            if name == "stderr":
                atexit.register(_drain)


@contextlib.contextmanager
def coupled() -> Iterator[None]:
    """For a dialogue with a person: who is asked has to see the question first."""
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
    until = time.monotonic() + EXIT_PATIENCE
    for stream in (sys.stderr, sys.stdout):
        if isinstance(stream, DecoupledStream):
            stream.drain(max(0.0, until - time.monotonic()))


def lost_lines() -> int:
    """How many lines for stdout and stderr could not be written since they were decoupled."""
    streams = (sys.stdout, sys.stderr)
    return sum(stream.lost for stream in streams if isinstance(stream, DecoupledStream))
