"""A folder of registration tokens, a file for each ICE: readable by its owner alone, and never half a token.

Tested in tests/gateway/cli/test_fleet.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gateway.runtime.files import make_folder, sync

_LONGEST: Final = 2048
"""Bytes; a token is shorter."""
_AT_ONCE: Final = 8
"""Files at a time: a disk syncs several in the time of one."""


class TokenFolder:
    """Writes the tokens of a fleet. Its methods raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make the folder if it is missing."""
        make_folder(self.path)

    def file(self, ice_name: str) -> Path:
        """The file of an ICE's token."""
        return self.path / f"{ice_name}.token"

    def holds(self, ice_name: str) -> bool:
        """Whether the whole token of this ICE is there; a crash may have left half of one."""
        path = self.file(ice_name)
        try:
            found = path.lstat()
            # A link would show another file's text, and a pipe would make the command wait.
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, f"{path.name} is no regular file")
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_LONGEST).endswith(b"\n")

    def write(self, tokens: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Write tokens of ICEs, so that they survive a power cut; returns why some could not be written, by name."""

        def write(pair: tuple[str, str]) -> tuple[str, str | None]:
            name, token = pair
            try:
                self._write(self.file(name), f"{token}\n".encode())
            except OSError as error:
                return name, error.strerror or str(error)
            return name, None

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            failed = {name: reason for name, reason in threads.map(write, tokens) if reason}
        sync(self.path)
        return failed

    def _write(self, file: Path, data: bytes) -> None:
        if not self.holds(file.stem):
            file.unlink(missing_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                file.unlink()
            raise
