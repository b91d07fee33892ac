"""Everything that differs between operating systems: folders, private files, locks, processes, signals.

It imports on each of them, and no other module of the client knows that there are several. On
Windows modes mean nothing: what keeps a file private there is the access list of the user's profile, in
which the default state folder lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
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
_BINARY: Final[int] = getattr(os, "O_BINARY", 0)  # Windows' own: newlines are left as they are

_T = TypeVar("_T")


# --- where -------------------------------------------------------------------------------------


def default_state_dir(
    environ: Mapping[str, str] = os.environ,
    system: str = sys.platform,
    home: Callable[[], Path] = Path.home,
) -> Path:
    """The folder for an ICE's key and token when none is named. Raises RuntimeError without a home."""
    if system == "win32":
        local = environ.get("LOCALAPPDATA")
        return (Path(local) if local else home() / "AppData" / "Local") / "ice-client"
    if system == "darwin":
        return home() / "Library" / "Application Support" / "ice-client"
    # XDG Base Directory Specification: a relative path is invalid and is ignored.
    state = environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else home() / ".local" / "state") / "ice-client"


def describe() -> str:
    """The operating system in a few words, for `ice.hello`."""
    return encodable(f"{_standard.system()} {_standard.release()} {_standard.machine()}")


def hostname() -> str:
    """The machine's name, for `ice.hello`."""
    return encodable(socket.gethostname())


def open_standard_streams() -> None:
    """Open the null device in place of each of stdin, stdout and stderr that the parent has closed.

    The next file or socket would else have its number, and get what a library or a child writes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Those below are open: it gets just this number.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - as children expect it
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


# --- private files -----------------------------------------------------------------------------


def make_private_folder(folder: Path, *, ours: str) -> None:
    """Make `folder` with mode 0700. Raises OSError.

    A folder that is there already is closed to others if it is empty or holds the file `ours`:
    whoever names a folder with other things in it does not want its mode changed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sync_names(folder.parent)
    if folder.stat().st_mode & _OTHERS:
        names = [entry.name for entry in folder.iterdir()]
        if not names or ours in names:
            with contextlib.suppress(PermissionError):  # another's folder: `exposure` says so
                folder.chmod(0o700)


def exposure(folder: Path, names: Iterable[str]) -> str | None:
    """Why another user could change what is in `folder`, or may have laid it there; None if none could.

    `names` are the files that matter. Raises OSError. On Windows nothing is found.
    """
    if not hasattr(os, "geteuid"):
        return None
    trusted = (os.geteuid(), 0)
    if not {folder.stat().st_uid, folder.lstat().st_uid} <= {*trusted}:
        return f"{folder} belongs to another user"
    if open_to_others(folder, OTHERS_WRITE):
        return f"others may write to {folder}"
    for path in (folder / name for name in names):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                return f"{path} is a link"
            if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
                return f"{path} is no file"
            if found.st_uid not in trusted:
                return f"{path} belongs to another user"
    return None


def open_to_others(path: Path, bits: int = _OTHERS) -> bool:
    """Whether a file or folder is there with some of these mode bits; never on Windows. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return hasattr(os, "geteuid") and bool(path.stat().st_mode & bits)
    return False


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by a file of mode 0600, wholly or not at all, and durably. Raises OSError.

    Only who holds the folder's lock writes, so one name for the new file is enough: what a killed process
    has left under it is taken away by the next.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    # O_EXCL: a link that a stranger lays there meanwhile is not followed.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _patiently(lambda: new.replace(path))
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync_names(path.parent)


def touch_private(path: Path) -> None:
    """Make an empty file of mode 0600 if there is none; close one to others that is there. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.close(descriptor)
    _close_to_others(path)


def read_private(path: Path) -> bytes:
    """The content of one of our files, which is closed to others if it was open. Raises OSError."""
    data = _patiently(path.read_bytes)
    _close_to_others(path)
    return data


def _close_to_others(path: Path) -> None:
    if path.stat().st_mode & _OTHERS:
        with contextlib.suppress(PermissionError):
            path.chmod(0o600)


def _sync_names(folder: Path) -> None:
    """Make durable which names `folder` holds; Windows, which opens no folder, sees to it by itself."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _patiently(action: Callable[[], _T]) -> _T:
    """Windows refuses while another process has the file open: `status` or a virus scanner, for a moment."""
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


_not_inherited: Final[weakref.WeakSet[FileLock | socket.socket]] = weakref.WeakSet()
"""What a process forked off this one closes."""


class FileLock:
    """A lock that the system takes away when its process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        _not_inherited.add(self)

    def acquire(self) -> bool:
        """Take the lock, or tell that another has it. Raises OSError."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        # `is_locked` of another process holds the lock for a moment: that is no reason to give up.
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE)
            if _try_lock(descriptor):
                self._descriptor = descriptor
                return True
        os.close(descriptor)
        return False

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor is not None:
            # By closing alone Windows gives it back only when it finds the time.
            _unlock(self._descriptor)
            self.close()

    def close(self) -> None:
        """Close the file; the lock is held for as long as another process has it open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(descriptor):
            return True
        _unlock(descriptor)
        return False
    finally:
        os.close(descriptor)


# --- processes of ours -------------------------------------------------------------------------

if sys.platform == "win32":
    import subprocess

    OWN_GROUP: Final[dict[str, Any]] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    """What starts a process so that `end_group` ends what it has started, too."""

    def _ask_group(process: asyncio.subprocess.Process) -> None:
        _kill_group(process)  # there is no way to ask that each would hear

    def _kill_group(process: asyncio.subprocess.Process) -> None:
        subprocess.run(  # noqa: S603 - the system's own program, and a number
            ["taskkill", "/F", "/T", "/PID", str(process.pid)],  # noqa: S607 - on every Windows
            capture_output=True,
            check=False,
        )

else:
    OWN_GROUP: Final[dict[str, Any]] = {"start_new_session": True}
    """What starts a process so that `end_group` ends what it has started, too."""

    def _ask_group(process: asyncio.subprocess.Process) -> None:
        _signal_group(process, signal.SIGTERM)

    def _kill_group(process: asyncio.subprocess.Process) -> None:
        _signal_group(process, signal.SIGKILL)

    def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


_MARK: Final = "ICE_CLIENT_OPERATION"


def environment(operation: str, **more: str) -> dict[str, str]:
    """This process' environment for one of ours that works on an operation, with `more`."""
    return {**os.environ, _MARK: _mark(operation), **more}


def _mark(operation: str) -> str:
    return hashlib.sha256(operation.encode(errors="replace")).hexdigest()


def end_processes_of(operations: Iterable[str]) -> None:
    """Kill what has the `environment` of these operations, whichever process started it; on Linux alone.

    A process that begins a session of its own leaves its group, and keeps its environment.
    """
    marks = {f"{_MARK}={_mark(operation)}".encode() for operation in operations}
    for _ in range(_ATTEMPTS if marks else 0):  # they may start others meanwhile
        if not [pid for pid in _process_ids() if _kill_marked(pid, marks)]:
            return
        time.sleep(_PAUSE)  # until they are gone


def _process_ids() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return []


def _kill_marked(pid: int, marks: set[bytes]) -> bool:
    """Kill a process that has one of the marks; not one that has got its id meanwhile."""
    if sys.platform != "linux" or pid == os.getpid():
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        found = not marks.isdisjoint(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        if found:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    else:
        return found
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for this user alone, which is gone afterwards with all that is in it. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="ice-client-") as name:
        yield Path(name)


async def ended(process: asyncio.subprocess.Process) -> int:
    """Wait for the end of a process; its exit status. `Process.wait` waits for its pipes, too."""
    while process.returncode is None:  # noqa: ASYNC110 - asyncio has no event for it
        await asyncio.sleep(_PAUSE)
    return process.returncode


async def end_group(process: asyncio.subprocess.Process, patience: float = 3.0) -> None:
    """End a process and its group: ask, and after `patience` seconds do not ask."""
    try:
        if process.returncode is None:
            _ask_group(process)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await ended(process)
    finally:
        _kill_group(process)  # whatever is left of it, also if we are not let wait
    await ended(process)


# --- forks -------------------------------------------------------------------------------------

_heard: Final[set[int]] = set()
"""The signals that stop the client."""


def new_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an item of `getaddrinfo` that a process forked off this one does not keep open."""
    made = socket.socket(*address[:3])
    _not_inherited.add(made)
    return made


if sys.platform != "win32":
    _forking: Final = threading.local()

    def _before_fork() -> None:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _heard)

    def _after_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)

    def _in_forked() -> None:
        # Otherwise the child would hold the lock and the connection of a client that was killed, and a signal
        # to the child would stop the client: the two share the pipe by which asyncio hears of signals.
        for own in list(_not_inherited):
            own.close()
        if _heard:
            signal.set_wakeup_fd(-1)
        for number in _heard:
            ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if ctrl_c else signal.SIG_DFL)
        _after_fork()

    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_forked)


# --- being asked to stop -----------------------------------------------------------------------


@contextlib.contextmanager
def stop_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Have `stop` called in the loop on Ctrl-C and on the service manager's request."""
    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    with contextlib.ExitStack() as undo:
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            _heard.add(number)
            undo.callback(_heard.discard, number)
            try:
                loop.add_signal_handler(number, stop)
                undo.callback(loop.remove_signal_handler, number)
            except NotImplementedError:  # loops on Windows
                before = signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
                undo.callback(signal.signal, number, before)
        yield


def exit_within(seconds: float, status: int) -> None:
    """End this process with `status` even if a thread of a handler does not let Python end it."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
