"""Everything that differs between operating systems: folders, private files, locks, processes, signals.

It can be imported on all of them, and no other module of the client distinguishes them. On Windows file modes
have no effect: the access list of the user's profile, which contains the default state folder, keeps files
private there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import platform as _standard
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from client.text import encodable

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.02
_BINARY: Final[int] = getattr(os, "O_BINARY", 0)  # Windows only: do not translate newlines

_T = TypeVar("_T")


# --- the machine -------------------------------------------------------------------------------


def default_state_dir(
    environ: Mapping[str, str] = os.environ,
    system: str = sys.platform,
    home: Callable[[], Path] = Path.home,
) -> Path:
    """The default state folder of an ICE. Raises RuntimeError if the user has no home folder."""
    if system == "win32":
        local = environ.get("LOCALAPPDATA")
        return (Path(local) if local else home() / "AppData" / "Local") / "ice-client"
    if system == "darwin":
        return home() / "Library" / "Application Support" / "ice-client"
    # XDG Base Directory Specification: a relative path is invalid and is ignored.
    state = environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else home() / ".local" / "state") / "ice-client"


def describe() -> str:
    """The operating system, its release and the machine type, for `ice.hello`."""
    return encodable(f"{_standard.system()} {_standard.release()} {_standard.machine()}")


def hostname() -> str:
    """The machine's host name, for `ice.hello`."""
    return encodable(socket.gethostname())


def open_standard_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that the parent process closed.

    Otherwise the next file or socket would get its number, and what a library or a child writes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # All lower numbers are open, so the null device gets this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - children need it
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


# --- private files -----------------------------------------------------------------------------


def make_private_folder(folder: Path, *, ours: str) -> None:
    """Create `folder` with mode 0700. Raises OSError.

    An existing folder gets this mode only if it is empty or contains the file `ours`; the mode of a folder with
    other content is left alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Each name on the way may be new. Without one of them a power cut would take the key away.
    for ancestor in folder.absolute().parents:
        _sync_names(ancestor)
    if folder.stat().st_mode & _OTHERS:
        names = [entry.name for entry in folder.iterdir()]
        if not names or ours in names:
            # `exposure` reports another user's folder.
            with contextlib.suppress(PermissionError):
                folder.chmod(0o700)


def exposure(folder: Path, names: Iterable[str]) -> str | None:
    """Why another user could have changed `folder` or the files `names` in it; None if none could.

    Always None on Windows. Raises OSError.
    """
    if not hasattr(os, "geteuid"):
        return None
    trusted = (os.geteuid(), 0)
    if not {folder.stat().st_uid, folder.lstat().st_uid} <= {*trusted}:
        return f"{folder} belongs to another user"
    if open_to_others(folder, OTHERS_WRITE):
        return f"other users may write to {folder}"
    for path in (folder / name for name in names):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                return f"{path} is a symbolic link"
            if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
                return f"{path} is not a regular file"
            if found.st_uid not in trusted:
                return f"{path} belongs to another user"
    return None


def open_to_others(path: Path, bits: int = _OTHERS) -> bool:
    """Whether a path exists and has any of these mode bits; false on Windows. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return hasattr(os, "geteuid") and bool(path.stat().st_mode & bits)
    return False


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by a file of mode 0600, atomically and durably. Raises OSError.

    The caller holds the folder's lock, so the new file has a fixed name, and replaces the leftover of a killed
    process.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    # O_EXCL: never follow a link that another user puts there meanwhile.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _retried(lambda: new.replace(path))
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync_names(path.parent)


def touch_private(path: Path) -> None:
    """Create an empty file of mode 0600, or restrict an existing one to it. Raises OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    _restrict(path)


def read_private(path: Path) -> bytes:
    """The content of a private file, which gets mode 0600 if others had access. Raises OSError."""
    data = _retried(path.read_bytes)
    _restrict(path)
    return data


def open_log(path: Path) -> io.FileIO:
    """Open a file for appending; a new one gets mode 0600. Raises OSError."""
    return io.FileIO(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))


def leads_to(path: Path, file: io.FileIO) -> bool:
    """Whether `path` is still the name of an open file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def _restrict(path: Path) -> None:
    if path.stat().st_mode & _OTHERS:
        with contextlib.suppress(PermissionError):
            path.chmod(0o600)


def _sync_names(folder: Path) -> None:
    """Make the names in `folder` durable. Windows does this by itself, and cannot open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _retried(action: Callable[[], _T]) -> _T:
    """Retry briefly: Windows refuses while another process (`status`, a virus scanner) has the file open."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(PermissionError):
            return action()
        time.sleep(_PAUSE)
    return action()


# --- one process at a time ---------------------------------------------------------------------

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_closed_on_fork: Final[weakref.WeakSet[FileLock | socket.socket]] = weakref.WeakSet()
"""Descriptors that a forked child closes."""


class FileLock:
    """A lock on a file; the system releases it when the process ends in any way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        _closed_on_fork.add(self)

    def acquire(self) -> bool:
        """Take the lock; false if another process holds it. Raises OSError."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        # Retry, because `is_locked` in another process holds the lock for a moment.
        for _ in range(_ATTEMPTS):
            if _try_lock(descriptor):
                self._descriptor = descriptor
                return True
            time.sleep(_PAUSE)
        os.close(descriptor)
        return False

    def release(self) -> None:
        """Release the lock, if this process holds it."""
        if self._descriptor is not None:
            # Windows releases a lock some time after the file is closed.
            _unlock(self._descriptor)
            self.close()

    def close(self) -> None:
        """Close the file; the lock stays while another process has the same descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        if not _try_lock(file.fileno()):
            return True
        _unlock(file.fileno())
    return False


# --- child processes ---------------------------------------------------------------------------

if sys.platform == "win32":
    import subprocess

    OWN_GROUP: Final[dict[str, Any]] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    """Arguments that start a process in its own group, for `end_group`."""

    def _signal_group(process: asyncio.subprocess.Process, _name: str) -> None:
        # Windows has no request that every program heeds, so each signal ends them.
        subprocess.run(  # noqa: S603 - a program of Windows, and a number
            ["taskkill", "/F", "/T", "/PID", str(process.pid)],  # noqa: S607 - in the PATH of every Windows
            capture_output=True,
            check=False,
        )

else:
    OWN_GROUP: Final[dict[str, Any]] = {"start_new_session": True}

    def _signal_group(process: asyncio.subprocess.Process, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.Signals[name])


_TERMINATE_TIMEOUT: Final = 3.0
_MARK: Final = "ICE_CLIENT_OPERATION"


def environment(operation: str, **more: str) -> dict[str, str]:
    """The environment for a child process that works on an operation: this process's, and `more`."""
    return {**os.environ, _MARK: _mark(operation), **more}


def _mark(operation: str) -> str:
    return hashlib.sha256(operation.encode(errors="replace")).hexdigest()


def end_processes_of(operations: Iterable[str]) -> None:
    """Kill all processes with the `environment` of these operations, on Linux only.

    A process that starts its own session leaves its group, but keeps its environment.
    """
    marks = {f"{_MARK}={_mark(operation)}".encode() for operation in operations}
    for _ in range(_ATTEMPTS if marks else 0):  # they may start more meanwhile
        if not [folder for folder in Path("/proc").glob("[0-9]*") if _kill_marked(folder, marks)]:
            return
        time.sleep(_PAUSE)  # until they are gone


def _kill_marked(process: Path, marks: set[bytes]) -> bool:
    """Kill a process that has one of the marks, but not another one that meanwhile got its id."""
    if sys.platform != "linux" or process.name == str(os.getpid()):
        return False
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        descriptor = os.pidfd_open(int(process.name))
        stack.callback(os.close, descriptor)
        if not marks.isdisjoint((process / "environ").read_bytes().split(b"\0")):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return True
    return False


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that only this user can access. Raises OSError."""
    return tempfile.TemporaryDirectory(prefix="ice-client-")


async def exit_status(process: asyncio.subprocess.Process) -> int:
    """Wait until a process exits. `Process.wait` would wait for its pipes, too."""
    while process.returncode is None:  # noqa: ASYNC110 - asyncio has no event for it
        await asyncio.sleep(_PAUSE)
    return process.returncode


async def end_group(process: asyncio.subprocess.Process) -> None:
    """Terminate a process and its group; kill them after `_TERMINATE_TIMEOUT` seconds."""
    try:
        if process.returncode is None:
            _signal_group(process, "SIGTERM")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERMINATE_TIMEOUT):
                    await exit_status(process)
    finally:
        _signal_group(process, "SIGKILL")  # also if this task is cancelled meanwhile
    await exit_status(process)


async def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill a process and its group at once."""
    _signal_group(process, "SIGKILL")
    await exit_status(process)


# --- forks -------------------------------------------------------------------------------------

_stop_signals: Final[set[int]] = set()
"""The signals that stop the client."""


def new_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an item of `getaddrinfo`, which a forked child closes."""
    made = socket.socket(*address[:3])
    _closed_on_fork.add(made)
    return made


if sys.platform != "win32":
    _forking: Final = threading.local()

    def _before_fork() -> None:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _stop_signals)

    def _after_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)

    def _in_forked() -> None:
        # Otherwise the child would keep the lock and the connection of a killed client, and a signal to the
        # child would stop the client: both share the pipe that wakes asyncio up for signals.
        for own in list(_closed_on_fork):
            own.close()
        if _stop_signals:
            signal.set_wakeup_fd(-1)
        for number in _stop_signals:
            ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if ctrl_c else signal.SIG_DFL)
        _after_fork()

    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_forked)


# --- stopping ----------------------------------------------------------------------------------


@contextlib.contextmanager
def stop_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in the loop on Ctrl-C and when the service manager stops the client."""
    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    with contextlib.ExitStack() as undo:
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            _stop_signals.add(number)
            undo.callback(_stop_signals.discard, number)
            try:
                loop.add_signal_handler(number, stop)
                undo.callback(loop.remove_signal_handler, number)
            except NotImplementedError:  # loops on Windows
                before = signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
                undo.callback(signal.signal, number, before)
        yield


def exit_within(seconds: float, status: int) -> None:
    """Exit with `status` after `seconds` even if a thread of a handler keeps Python from exiting."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
