import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client import platform

HOME = Path("/home/ada")


@pytest.mark.parametrize(
    ("system", "environ", "expected"),
    [
        ("linux", {}, "/home/ada/.local/state/ice-client"),
        ("linux", {"XDG_STATE_HOME": "/var/state"}, "/var/state/ice-client"),
        ("linux", {"XDG_STATE_HOME": "relative"}, "/home/ada/.local/state/ice-client"),
        ("darwin", {}, "/home/ada/Library/Application Support/ice-client"),
        ("win32", {"LOCALAPPDATA": "/c/Local"}, "/c/Local/ice-client"),
        ("win32", {}, "/home/ada/AppData/Local/ice-client"),
    ],
)
def test_each_system_has_its_folder(system, environ, expected):
    assert platform.default_state_dir(environ, system, lambda: HOME) == Path(expected)


def test_a_folder_with_other_things_in_it_keeps_its_mode(tmp_path):
    (tmp_path / "somebody-elses").write_text("")
    tmp_path.chmod(0o755)
    platform.make_private_folder(tmp_path, ours="key.pem")

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755, "`--state-dir /tmp` must not close /tmp"


def test_the_name_of_each_folder_on_the_way_is_on_the_disk(tmp_path, monkeypatch):
    """A power cut that took one of them away would take the key, which the gateway has bound."""
    synced, fsync = set(), os.fsync

    def noted(descriptor):
        found = os.fstat(descriptor)
        synced.add((found.st_dev, found.st_ino))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    folder = tmp_path / "state" / "ice-client"
    platform.make_private_folder(folder, ours="key.pem")

    for path in (tmp_path, tmp_path / "state"):
        found = path.stat()
        assert (found.st_dev, found.st_ino) in synced, f"the names in {path} may be lost"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "token"
    platform.write_private(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        platform.write_private(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file should stay behind"


def test_a_write_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    path, order = tmp_path / "key.pem", []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    platform.write_private(path, b"key")

    assert order == ["sync", "replace", "sync"], "the file, its name, then the folder"


def test_a_file_that_another_process_reads_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    """On Windows a name cannot be replaced while its file is open, nor read while it is replaced."""
    path, tried = tmp_path / "state.json", []

    def refused_at_first(real):
        def attempt(*arguments):
            tried.append(real.__name__)
            if tried.count(real.__name__) < 5:
                raise PermissionError(13, "Access is denied")
            return real(*arguments)

        return attempt

    for name in ("replace", "read_bytes"):
        monkeypatch.setattr(Path, name, refused_at_first(getattr(Path, name)))
    monkeypatch.setattr(platform.time, "sleep", lambda _: None)
    platform.write_private(path, b"new")

    assert platform.read_private(path) == b"new"


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    (tmp_path / "token.new").write_bytes(b"half")
    platform.write_private(tmp_path / "token", b"whole")

    assert [path.name for path in tmp_path.iterdir()] == ["token"]
    assert (tmp_path / "token").read_bytes() == b"whole"


def test_a_link_laid_in_the_way_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "token.new").symlink_to(tmp_path / "theirs")
    platform.write_private(tmp_path / "token", b"secret")

    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert stat.S_IMODE((tmp_path / "token").lstat().st_mode) == 0o600


def test_a_lock_ends_with_its_process(tmp_path):
    script = (
        "import sys, pathlib; from client.platform import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1])); print(lock.acquire(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdout.readline() == b"True\n"
        assert platform.is_locked(tmp_path / "lock")
        assert not platform.FileLock(tmp_path / "lock").acquire()
        other.kill()
        other.wait()

    assert not platform.is_locked(tmp_path / "lock"), "a killed process should hold no lock"


def test_looking_at_a_lock_does_not_keep_a_client_from_it(tmp_path, monkeypatch):
    looker, lock = platform.FileLock(tmp_path / "lock"), platform.FileLock(tmp_path / "lock")
    looker.acquire()
    monkeypatch.setattr(platform.time, "sleep", lambda _: looker.release())

    assert lock.acquire(), "a lock that is held for a moment should be waited for"
    lock.release()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("fallback", [False, True])
async def test_signals_stop(number, fallback, monkeypatch):
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    before = signal.getsignal(number)
    if fallback:

        def not_here(*_):
            raise NotImplementedError

        monkeypatch.setattr(type(loop), "add_signal_handler", not_here)
    with platform.stop_signals(loop, stopped.set):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopped.wait(), 5)

    after = signal.getsignal(number)
    assert after is before or not fallback, "the handler of before should be back"
