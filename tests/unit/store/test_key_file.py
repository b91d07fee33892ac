"""The file of the token keys: made once, kept private, read again only for a `kid` not known."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest

from gateway.core.ice import IceType
from gateway.core.secret import Secret
from gateway.core.tokens import Key, KeyRing, OpenedToken, RetiredToken
from gateway.store import key_file
from gateway.store.key_file import KeyFileUnusable, KeyStore
from tests.support.clock import StandingClock
from tests.support.ice import b64

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ice.keys.json"


def write(path, *keys):
    """A key file made by hand, as when keys are rotated; the last key seals."""
    jwks = [{"kty": "oct", "kid": key.kid, "k": b64(key.reveal())} for key in keys]
    path.write_text(json.dumps({"keys": jwks, "seals": keys[-1].kid}))
    path.chmod(0o600)


def seal(ring):
    return ring.seal("lab-1", IceType.NORMAL, 1, NOW)


@pytest.fixture
def clock():
    return StandingClock()


def started(path, clock):
    """The keys of a gateway that has just started."""
    store = KeyStore(path, clock.monotonic)
    store.load()
    return store


@pytest.fixture
def readings(monkeypatch):
    """Counts how often the file is read."""
    seen = []
    really_open = Path.open

    def seen_open(path, mode="r", *args, **options):
        if mode == "rb":
            seen.append(path)
        return really_open(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", seen_open)
    return seen


# --- made --------------------------------------------------------------------------------------


def test_the_first_who_seals_makes_the_file_for_its_owner_alone(path):
    store = KeyStore(path)
    assert not store.load()
    old = os.umask(0)
    try:
        ring = store.for_sealing(may_create=True)
    finally:
        os.umask(old)
    assert store.load()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path], "nothing else is left behind"
    assert isinstance(KeyStore(path).open(seal(ring)), OpenedToken), (
        "the file holds the key that seals"
    )


def test_of_several_who_make_it_at_once_all_get_the_keys_of_the_first(path):
    together = Barrier(8)

    def make(_):
        store = KeyStore(path)
        together.wait()
        return store.for_sealing(may_create=True)

    with ThreadPoolExecutor(8) as threads:
        rings = list(threads.map(make, range(8)))
    assert {ring.seals for ring in rings} == {key_file.read(path).seals}
    assert list(path.parent.iterdir()) == [path]


def test_whoever_comes_second_never_replaces_the_file(path):
    write(path, Key.generate(NOW))
    before = path.read_bytes()
    assert key_file.create(path).seals == key_file.read(path).seals
    assert path.read_bytes() == before


def test_a_lost_file_is_not_made_anew_once_ices_exist(path):
    with pytest.raises(KeyFileUnusable, match=r"is missing; .* put it back from a backup"):
        KeyStore(path).for_sealing(may_create=False)
    assert not path.exists()


def test_a_file_that_cannot_be_made_leaves_nothing_behind(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(KeyFileUnusable, match="cannot be written: Operation not permitted"):
        key_file.create(path)
    assert list(path.parent.iterdir()) == []


def test_no_folder_to_make_it_in(path):
    with pytest.raises(KeyFileUnusable, match="cannot be written: No such file"):
        key_file.create(path.parent / "missing" / "keys.json")


# --- read --------------------------------------------------------------------------------------


ROOT, GATEWAY, STRANGER = 0, 4711, 4712


@pytest.fixture
def owned(path, monkeypatch):
    """Reads a good file that belongs to `owner` and has `mode`, as the user `me`."""
    write(path, Key.generate(NOW))
    fstat = os.fstat

    def read_as(me, owner, mode):
        def changed(descriptor):
            found = fstat(descriptor)
            return os.stat_result([stat.S_IFREG | mode, *found[1:4], owner, *found[5:]])

        monkeypatch.setattr(os, "fstat", changed)
        monkeypatch.setattr(os, "geteuid", lambda: me)
        return key_file.read(path)

    return read_as


@pytest.mark.parametrize(
    ("me", "owner", "mode"),
    [
        (GATEWAY, GATEWAY, 0o600),
        (GATEWAY, GATEWAY, 0o400),
        (GATEWAY, ROOT, 0o440),
        (GATEWAY, ROOT, 0o640),
        (ROOT, ROOT, 0o640),
        (ROOT, GATEWAY, 0o600),
    ],
)
def test_a_file_of_the_gateway_or_of_root_and_its_group(owned, me, owner, mode):
    assert owned(me, owner, mode) is not None


@pytest.mark.parametrize("mode", [0o640, 0o440, 0o620, 0o610, 0o604, 0o602, 0o601, 0o666])
@pytest.mark.parametrize("me", [GATEWAY, ROOT])
def test_a_file_open_to_others_is_refused(owned, path, me, mode):
    with pytest.raises(KeyFileUnusable) as refused:
        owned(me, GATEWAY, mode)
    assert str(refused.value) == (
        f"the key file {path} can be read by others: run `chmod 600 {path}` as its owner"
    )


@pytest.mark.parametrize("mode", [0o660, 0o650, 0o644, 0o642, 0o641, 0o444])
def test_a_file_of_root_open_to_more_than_reading_by_its_group_is_refused(owned, path, mode):
    with pytest.raises(KeyFileUnusable, match=r"can be read by others: .*\(or 640, for the group"):
        owned(GATEWAY, ROOT, mode)


def test_a_file_of_a_stranger_is_refused_by_its_owner(owned, path):
    with pytest.raises(KeyFileUnusable) as refused:
        owned(GATEWAY, STRANGER, 0o600)
    assert str(refused.value) == (
        f"the key file {path} belongs to the user id 4712, and not to the user id 4711 who runs this: run"
        f" `chown 4711 {path}` as root"
    )


K = b64(bytes(32))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[" * 5000,
        b"[]",
        b"{}",
        b'{"keys": [], "seals": "a"}',
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "%s"}]}' % K.encode(),
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "%s"}], "seals": "b"}' % K.encode(),
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}], "seals": "a"}',
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "%s="}], "seals": "a"}' % K.encode(),
        b'{"keys": [{"kty": "oct", "kid": "a"}], "seals": "a"}',
    ],
)
def test_garbage_is_no_key_file(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileUnusable) as refused:
        key_file.read(path)
    assert str(refused.value) == f"{path} is not a key file of the gateway"


def test_what_cannot_be_read_is_said(path):
    path.mkdir(mode=0o700)
    with pytest.raises(KeyFileUnusable, match="cannot be read: Is a directory"):
        key_file.read(path)


# --- read again --------------------------------------------------------------------------------


def test_a_file_that_another_process_made_is_found_at_once(path, clock):
    store = started(path, clock)
    token = seal(KeyStore(path).for_sealing(may_create=True))
    assert isinstance(store.open(token), OpenedToken)


def test_an_unknown_key_has_the_file_read_at_most_once_a_second(path, clock, readings):
    old, unknown = Key.generate(NOW), Key.generate(NOW)
    write(path, old)
    store = started(path, clock)
    stranger = seal(KeyRing([unknown], unknown.kid))
    assert store.open(stranger) is None
    readings.clear()

    clock.passed += 0.999
    assert [store.open(stranger) for _ in range(100)] == [None] * 100
    assert readings == [], "within the second garbage must not cost a reading"

    clock.passed += 0.001
    assert store.open(stranger) is None
    assert len(readings) == 1


def test_a_file_that_has_changed_is_read_at_once(path, clock, readings):
    """Garbage a moment ago must not cost an ICE its admission with a key that has just been made."""
    old, new, unknown = Key.generate(NOW), Key.generate(NOW), Key.generate(NOW)
    write(path, old)
    store = started(path, clock)
    assert store.open(seal(KeyRing([unknown], unknown.kid))) is None
    path.unlink()
    write(path, old, new)
    assert isinstance(store.open(seal(key_file.KeyRing([new], new.kid))), OpenedToken)


def test_garbage_and_known_keys_never_have_the_file_read(path, clock, readings):
    ring = KeyStore(path).for_sealing(may_create=True)
    store = started(path, clock)
    readings.clear()
    clock.passed += 10
    assert store.open(Secret("garbage")) is None
    assert isinstance(store.open(seal(ring)), OpenedToken)
    assert readings == []


@pytest.mark.parametrize("harm", ["unlink", "garble", "expose"])
def test_a_file_lost_or_gone_bad_takes_no_key_from_a_running_gateway(path, clock, harm):
    ring = KeyStore(path).for_sealing(may_create=True)
    store = started(path, clock)
    if harm == "unlink":
        path.unlink()
    elif harm == "garble":
        path.write_bytes(b"garbage")
    else:
        path.chmod(0o644)
    unknown = Key.generate(NOW)
    for _ in range(3):
        clock.passed += 10
        assert store.open(seal(KeyRing([unknown], unknown.kid))) is None
        assert isinstance(store.open(seal(ring)), OpenedToken)
    with pytest.raises(KeyFileUnusable):
        store.for_sealing(may_create=False)


def test_sealing_uses_the_key_that_the_file_names_now(path):
    old, new = Key.generate(NOW), Key.generate(NOW)
    write(path, old)
    store = KeyStore(path)
    before = seal(store.for_sealing(may_create=False))
    write(path, old, new)
    after = seal(store.for_sealing(may_create=False))
    assert isinstance(store.open(before), OpenedToken), "tokens of the older key go on"
    assert isinstance(KeyRing([new], new.kid).open(after), OpenedToken)


# --- retired ---------------------------------------------------------------------------------------


def test_the_file_keeps_the_ids_of_retired_keys(path, clock, readings):
    old, new = Key.generate(NOW), Key.generate(NOW)
    write(path, old, new)
    store = started(path, clock)
    token = seal(KeyRing([old], old.kid))
    assert isinstance(store.open(token), OpenedToken)
    key_file.replace(path, key_file.read(path).retiring(old.kid))
    store.reload()
    readings.clear()
    clock.passed += 10
    assert store.open(token) == RetiredToken(token.digest())
    assert (store.kids(), store.retired()) == ({new.kid}, {old.kid})
    assert readings == [], "the key is known: its tokens never have the file read"


def test_a_file_without_retired_keys_is_as_the_version_before_wrote_it(path):
    key_file.create(path)
    assert set(json.loads(path.read_bytes())) == {"keys", "seals", "sha256"}
    assert key_file.read(path).retired == ()


# --- changed ---------------------------------------------------------------------------------------


def test_keys_of_an_older_file_have_no_date_and_those_of_a_new_one_do(path):
    write(path, Key.generate(NOW))
    assert [key.made for key in key_file.read(path).keys] == [None]
    key_file.replace(path, key_file.read(path).with_key(Key.generate(NOW)))
    assert [key.made for key in key_file.read(path).keys] == [None, NOW]


def test_a_change_is_whole_or_not_at_all(path, monkeypatch):
    before = key_file.create(path)
    content = path.read_bytes()
    for step in ("fsync", "rename"):

        def fail(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, step, fail)
            with pytest.raises(KeyFileUnusable, match="No space left"):
                key_file.replace(path, before.with_key(Key.generate(NOW)))
        assert path.read_bytes() == content, f"a fault of {step} must leave the old keys"
        assert list(path.parent.iterdir()) == [path], f"a fault of {step} must leave nothing else"


CRASHES = """
import os, sys, tempfile
from datetime import UTC, datetime
from pathlib import Path
from gateway.store import key_file
from gateway.core.tokens import Key

path = Path(sys.argv[1])
before = key_file.create(path)
content = path.read_bytes()
after = before.with_key(Key.generate(datetime.now(UTC)))
crashed = 0
while True:
    path.write_bytes(content)
    child = os.fork()
    if not child:
        left = crashed

        def dying(call):
            def step(*args, **kwargs):
                global left
                if not left:
                    os._exit(9)
                left -= 1
                return call(*args, **kwargs)
            return step

        for module, name in (
            (tempfile, "mkstemp"), (os, "fdopen"), (os, "fsync"), (os, "chown"),
            (os, "rename"), (os, "unlink"), (os, "open"), (os, "close"),
        ):
            setattr(module, name, dying(getattr(module, name)))
        key_file.replace(path, after)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kids = [key.kid for key in key_file.read(path).keys]
    print({1: "old", 2: "new"}[len(kids)] if kids[0] == before.seals else "other")
    if not ended:
        break
    crashed += 1
"""


def test_a_crash_at_any_step_of_a_change_leaves_the_old_keys_or_the_new_ones(path):
    """In a process of its own, which has no threads and may fork."""
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    old = found.count("old")
    assert found == ["old"] * old + ["new"] * (len(found) - old)
    assert old >= 4, "a crash was expected before the rename at each of its steps"
    assert len(found) - old >= 3, "and after it"


def test_a_change_keeps_the_file_private_and_a_link_a_link(path):
    ring = key_file.create(path)
    link = path.with_name("link.json")
    link.symlink_to(path)
    key_file.replace(link, ring.with_key(Key.generate(NOW)))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key_file.read(path).keys) == 2


@pytest.mark.parametrize("member", ["k", "kid", "made"])
def test_a_damaged_key_is_not_taken_for_another_key(path, member):
    """Else every token would be refused, and new ones sealed with a key that no backup has."""
    key_file.create(path)
    document = json.loads(path.read_bytes())
    text = document["keys"][0][member]
    place = 3 if member == "made" else 2
    document["keys"][0][member] = (
        text[:place] + ("7" if text[place] == "6" else "6") + text[place + 1 :]
    )
    path.write_text(json.dumps(document))
    with pytest.raises(
        KeyFileUnusable, match=r"ice\.keys\.json is damaged: put it back from a backup"
    ):
        key_file.read(path)


def test_a_file_of_a_version_that_writes_no_digest_is_read(path):
    ring = key_file.create(path)
    document = json.loads(path.read_bytes())
    del document["sha256"]
    path.write_text(json.dumps(document))
    assert key_file.read(path).seals == ring.seals
