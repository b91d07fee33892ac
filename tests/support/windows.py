"""Lays over this system what is otherwise on Windows, for a client that is imported after this module.

The libraries beneath the client are imported first and keep the real system; what they do on Windows is
theirs to test. `msvcrt.locking` locks by handle, as on Windows, and knows what it has locked.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import getpass
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import aiohttp
import click
import cryptography.hazmat.primitives.asymmetric.ec
import msgspec

BENEATH = (aiohttp, click, cryptography, getpass, msgspec, tempfile)

# --- what is not there -------------------------------------------------------------------------

sys.platform = "win32"
for _name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios"):
    sys.modules[_name] = None
for _name in (
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
    *("chown", "chroot", "fchdir", "fchmod", "fchown", "fdatasync", "fork", "getegid", "geteuid"),
    *(
        "getgid",
        "getpgid",
        "getuid",
        "killpg",
        "lchown",
        "link",
        "mkfifo",
        "openpty",
        "posix_spawn",
    ),
    *("setegid", "seteuid", "setgid", "setsid", "setuid", "sync", "uname", "wait"),
):
    delattr(os, _name)
subprocess.CREATE_NEW_PROCESS_GROUP = 0x200  # winbase.h
for _name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "alarm", "pause", "sigwait"):
    delattr(signal, _name)


def _no_signal_handlers(*_: Any) -> NoReturn:
    raise NotImplementedError


for _loop in (asyncio.SelectorEventLoop, asyncio.BaseEventLoop):
    _loop.add_signal_handler = _no_signal_handlers
    _loop.remove_signal_handler = _no_signal_handlers


# --- what is otherwise -------------------------------------------------------------------------

os.O_BINARY = 0x8000
signal.SIGBREAK = signal.Signals(10)  # SIGUSR1 plays Ctrl-Break
_HEARD = {signal.SIGINT, signal.SIGTERM, signal.SIGBREAK, signal.SIGABRT}
_open, _stat, _chmod, _replace, _signal = os.open, os.stat, os.chmod, os.replace, signal.signal


def _refused(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, "Access is denied", str(path))


def open_(path: Any, flags: int, mode: int = 0o777, **how: Any) -> int:
    """Folders cannot be opened."""
    if Path(path).is_dir():
        raise _refused(path)
    return _open(path, flags, mode, **how)


def stat_(path: Any, **how: Any) -> os.stat_result:
    """The modes are made up: everything is open to everybody."""
    found = _stat(path, **how)
    everybody = 0o777 if stat.S_ISDIR(found.st_mode) else 0o666
    return os.stat_result((found.st_mode | everybody, *tuple(found)[1:]))


def chmod(path: Any, mode: int, **how: Any) -> None:
    """Only sets whether a file may be written."""
    _chmod(path, 0o777 if Path(path).is_dir() else 0o666 if mode & stat.S_IWRITE else 0o444, **how)


def replace(source: Any, target: Any, **how: Any) -> None:
    """Neither of the two may be open; of this process that can be seen."""
    for entry in os.scandir("/proc/self/fd"):
        for path in (source, target):
            if os.path.realpath(entry.path) == os.path.realpath(path):
                raise _refused(path)
    _replace(source, target, **how)


def signal_(number: int, handler: Any) -> Any:
    """Other signals are unknown."""
    if number not in _HEARD:
        raise ValueError("signal.signal: unknown signal")
    return _signal(number, handler)


os.open, os.stat, os.chmod, os.replace, signal.signal = open_, stat_, chmod, replace, signal_


# --- what is there instead ---------------------------------------------------------------------


class Msvcrt(ModuleType):
    """The locks of the C runtime."""

    LK_UNLCK, LK_LOCK, LK_NBLCK, LK_RLCK, LK_NBRLCK = range(5)

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self._locked: dict[int, tuple[int, int]] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        """Lock or free `count` bytes from the present position on."""
        where = (os.lseek(descriptor, 0, os.SEEK_CUR), count)
        if mode == self.LK_UNLCK:
            if self._locked.pop(descriptor, None) != where:
                raise _refused(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return
        assert mode == self.LK_NBLCK, "the others wait for up to ten seconds"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(descriptor) from None
        self._locked[descriptor] = where


sys.modules["msvcrt"] = Msvcrt()
