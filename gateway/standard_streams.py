"""stdin, stdout and stderr of the process: never closed, and given up where nobody takes what is written.

A descriptor that the parent has closed would be the number of the next socket or database file, into which
a stray line would then be written. What Python still holds for a stream that cannot be written it tries again
at its exit, and ends with status 120 whatever the command came to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Final, TextIO

_FLAGS: Final = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)
"""How descriptors 0, 1 and 2 are opened."""


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
