"""The file of `--log-file`: what the client prints and logs, each line with its time, in files of bounded size."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, cast

import click

from client import platform
from client.output import warn
from client.standard_streams import EXIT_TIMEOUT, DecoupledStream, StandIn, decoupled, timed

MAX_SIZE: Final = 10 * 1024 * 1024
"""Bytes of the file; then it is renamed to FILE.1, and so on."""
KEPT: Final = 5
"""The number of renamed files."""
_MAX_LINE: Final = 64 * 1024
"""Characters of a line without an end that wait for it."""
_TIMED: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


class RotatingFile(io.RawIOBase):
    """Appends to `path`, and renames it before it becomes larger than `max_size`.

    It follows the name: if the file was moved away or deleted, a new one is made. If the file cannot be renamed, it
    grows to twice the size, and takes no more then.

    Args:
        path: a new file gets mode 0600.
        complain: called with a sentence for a person when the file cannot be written any more.
        max_size: bytes.
        kept: the number of renamed files.
    """

    encoding = "utf-8"

    def __init__(
        self,
        path: Path,
        complain: Callable[[str], None],
        *,
        max_size: int = MAX_SIZE,
        kept: int = KEPT,
    ) -> None:
        super().__init__()
        self._path = path.absolute()
        self._complain = complain
        self._max_size = max_size
        self._kept = kept
        self._file: io.FileIO | None = None
        self._failing = False

    def write(self, data: Any) -> int:
        """Write some of `data` and return how many bytes; raises OSError."""
        try:
            done = self._append(data)
        except OSError as error:
            self._close()
            if not self._failing:
                self._failing = True
                self._complain(
                    f"the log file {self._path} cannot be written: {error.strerror or error}"
                )
            raise
        self._failing = False
        return done

    def _append(self, data: Any) -> int:
        file = self._opened()
        size = self._path.stat().st_size
        if size and size + len(data) > self._max_size:
            try:
                self._rotate()
            except OSError:
                if size + len(data) > 2 * self._max_size:
                    raise
            file = self._opened()
        return file.write(data)

    def _opened(self) -> io.FileIO:
        if self._file is None or not platform.leads_to(self._path, self._file):
            self._close()
            self._file = platform.open_log(self._path)
        return self._file

    def _rotate(self) -> None:
        self._close()  # Windows renames no open file
        names = [self._path, *(Path(f"{self._path}.{n}") for n in range(1, self._kept + 1))]
        for older, newer in reversed(list(zip(names[1:], names[:-1], strict=True))):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        """Close the file."""
        self._close()
        super().close()


class _Copied(StandIn):
    """A stream whose lines also go to the log file, each with its time."""

    def __init__(self, stream: TextIO, file: DecoupledStream) -> None:
        super().__init__(stream)
        self._stream = stream
        self._file = file
        self._rest = ""
        self._lock = threading.Lock()  # handlers may print in threads

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def write(self, text: str) -> int:
        """Write to both."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > _MAX_LINE:
                lines.append(self._rest)
                self._rest = ""
            write_lines(self._file, lines)
        return self._stream.write(text)

    def end(self) -> None:
        """Write what stands after the last line."""
        with self._lock:
            write_lines(self._file, [self._rest] if self._rest else [])
            self._rest = ""


def write_lines(file: DecoupledStream, lines: list[str]) -> None:
    """Write lines to the log file; those that have no time get one."""
    whole = (line if _TIMED.match(line) else timed(line) for line in lines)
    file.write("".join(f"{line}\n" for line in whole))


@contextlib.contextmanager
def copied_to(path: Path | None) -> Iterator[None]:
    """Write what goes to stdout and stderr also to a log file, and why the command failed; None for none."""
    if path is None:
        yield
        return
    raw = RotatingFile(path, warn)
    file = DecoupledStream(raw, raw)
    before = sys.stdout, sys.stderr
    copies = [_Copied(stream, file) for stream in before]
    sys.stdout, sys.stderr = cast("list[TextIO]", copies)
    try:
        yield
    except click.ClickException as error:  # which is printed later
        write_lines(file, [f"ice-client: {error.format_message()}"])
        raise
    except Exception:
        write_lines(file, traceback.format_exc().splitlines())
        raise
    finally:
        sys.stdout, sys.stderr = before
        for copy in copies:
            copy.end()
        file.drain(EXIT_TIMEOUT)


def with_log_file(command: Callable[..., None]) -> Callable[..., None]:
    """A command with an option `--log-file`, whose output never blocks it."""

    @functools.wraps(command)
    def logged(*, log_file: Path | None, **options: Any) -> None:
        with decoupled(), copied_to(log_file):
            command(log_file=log_file, **options)

    return logged
