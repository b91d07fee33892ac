"""Backups: of one moment while others write, whole or not there, and true to their manifest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import stat

import pytest

from gateway.cli.common import open_context
from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.core.tokens import Key, KeyRing
from gateway.services import backup as backups
from gateway.services.backup import Backup, BackupRefused, GatewayFiles, back_up
from gateway.services.restore import restore
from gateway.store import key_file
from gateway.store.events import Events
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyFileUnusable
from gateway.store.restore_mark import find_mark, head, standing
from gateway.store.sqlite.snapshot import copy_database, open_read_only
from tests.support.harness import ADMIN, harness, settings_for
from tests.support.ice import PATIENCE


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


async def provision(opened, name):
    issued = await opened.services.provisioning.provision(ADMIN, name, IceType.CI_CD, None)
    return issued.token


async def make(settings, folder, **options):
    async with open_context(settings) as opened:
        place = GatewayFiles.of(settings)
        return await back_up(opened.engine, place, folder, ADMIN, utc_now, **options)


@contextlib.contextmanager
def refused(word, error=BackupRefused):
    with pytest.raises(error) as caught:
        yield
    assert word in str(caught.value), f"expected {word!r} in {caught.value}"


async def test_a_backup_beside_a_busy_gateway_is_of_one_moment(tmp_path):
    """Everything that was acknowledged before is in it, and of what comes later a beginning."""
    tokens = {}
    progress = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def more(count=20):
        """Wait until so many more have been acknowledged."""
        wanted = len(tokens) + count
        async with asyncio.timeout(PATIENCE):
            while len(tokens) < wanted:
                progress.clear()
                await progress.wait()

    def copy_amid_writes(*paths):
        asyncio.run_coroutine_threadsafe(more(), loop).result()
        copy_database(*paths)
        asyncio.run_coroutine_threadsafe(more(), loop).result()

    async with harness(tmp_path) as running:
        gateway = running.gateway

        async def hammer(number):
            for count in range(10_000):
                name = f"ice-{number}-{count}"
                tokens[name] = await provision(gateway, name)
                progress.set()

        writers = [asyncio.create_task(hammer(number)) for number in range(4)]
        await more()
        before = set(tokens)
        manifest = await make(gateway.settings, tmp_path / "backup", copy=copy_amid_writes)
        acknowledged = set(tokens)
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        log = Events(gateway.engine.fetch)
        seq = int(manifest.head.split(":")[0])
        history = await log.after(0, 100_000)
        assert str(await head(gateway.engine.fetch, seq)) == manifest.head
    # Restored elsewhere, it is exactly what the log tells up to that event.
    other = settings_for(tmp_path / "other")
    other.database_path.parent.mkdir()
    await restore(Backup.find(tmp_path / "backup"), GatewayFiles.of(other), ADMIN, utc_now)
    keys = key_file.read(other.key_file)
    with open_read_only(other.database_path) as restored:
        entries = (await standing(restored.fetch)).ices
        kept = await Events(restored.fetch).after(0, 100_000)
    told = {entry.event.ice_name for entry in history[:seq]} - {None}
    assert kept[:-1] == history[:seq]
    assert kept[-1].event.action == "restore"
    assert set(entries) == told
    assert before <= set(entries), "an acknowledged change is missing"
    assert set(entries) < acknowledged, "it was expected to be of a moment while they wrote"
    for name, entry in entries.items():
        opened = keys.open(tokens[name])
        assert (opened.ice_name, opened.digest) == (name, entry.token)


@pytest.mark.parametrize("retired", [False, True])
async def test_a_key_that_comes_or_goes_meanwhile_is_not_missed(tmp_path, settings, retired):
    """Each entry of the copy has its key in the copy, at whichever moment the keys change."""
    async with open_context(settings) as opened:
        tokens = [await provision(opened, "lab-1")]
        copies = []

        def copy_while_keys_change(source, target):
            if not copies:  # the first time the keys change beneath it
                ring = key_file.read(settings.key_file)
                new = Key.generate(utc_now())
                kept = () if retired else ring.keys
                asyncio.run_coroutine_threadsafe(
                    change(KeyRing([*kept, new], new.kid)), loop
                ).result()
            copies.append(target)
            copy_database(source, target)

        async def change(ring):
            key_file.replace(settings.key_file, ring)
            if retired:  # nothing depends on the older key any more
                renewed = await opened.services.provisioning.reprovision(
                    ADMIN, (await IceListing(opened.engine).find("lab-1")).ice
                )
                tokens[:] = [renewed.token]
            tokens.append(await provision(opened, "lab-2"))

        loop = asyncio.get_running_loop()
        await make(settings, tmp_path / "backup", copy=copy_while_keys_change)
    assert len(copies) == 2, "a copy beside other keys was expected to be made again"
    keys = key_file.read(tmp_path / "backup" / backups.KEYS)
    with open_read_only(tmp_path / "backup" / backups.DATABASE) as made:
        entries = (await standing(made.fetch)).ices
    assert [keys.open(token).digest for token in tokens] == [
        entries[name].token for name in ("lab-1", "lab-2")
    ]


async def test_keys_that_never_rest_are_told(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")

    def copy_and_change(*paths):
        copy_database(*paths)
        key_file.replace(settings.key_file, key_file.read(settings.key_file))

    with refused("changes all the time"):
        await make(settings, tmp_path / "backup", copy=copy_and_change)
    assert not (tmp_path / "backup").exists()


async def test_what_a_backup_is(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
        await opened.services.accounts.add_user(ADMIN, "alice", Role.MEMBER, None)
    folder = tmp_path / "backup"
    old = os.umask(0)
    try:
        manifest = await make(settings, folder)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    files = {"ice-gateway.db", "ice-gateway.keys.json", "manifest.json"}
    assert modes == {"backup": 0o700} | dict.fromkeys(files, 0o600)
    assert not list(tmp_path.glob(".*")), "nothing unfinished was expected to be left"
    told = json.loads((folder / "manifest.json").read_text())
    assert told["files"].keys() == files - {"manifest.json"}
    assert (told["head"], told["at"], told["format"]) == (manifest.head, manifest.at, 1)
    async with open_context(settings) as opened:
        assert await find_mark(opened.engine.fetch) is None, "only the copy waits"
        [*_, entry] = await Events(opened.engine.fetch).after(0, 100)
    assert (entry.event.action, entry.event.detail) == ("backup", {"folder": str(folder)})
    assert manifest.head == f"{entry.seq}:{entry.digest()}", "it holds the event of its making"
    with open_read_only(folder / "ice-gateway.db") as made:
        assert (await find_mark(made.fetch)).seq == entry.seq
        assert made.find_damage(thorough=True) is None
    assert {path.name for path in folder.iterdir()} == files, "to read it makes no file"


async def test_a_copy_has_no_logins_and_no_sessions(tmp_path, settings):
    """Who was logged in is not so again for a restore, and nobody is shown as connected."""
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
        for sql in (
            "INSERT INTO users (name, name_folded, role, createdon) VALUES ('bob', 'bob', 'admin', '')",
            "INSERT INTO logins VALUES ('hash', 'bob', '', '', '', NULL)",
            "INSERT INTO ice_sessions VALUES (1, 's', 'lab-1', 1, 'n', '', '', '', '', '', 0, NULL)",
            "INSERT INTO ice_confirmed VALUES ('n', '2026-11-22T09:30:00.000000Z')",
        ):
            await opened.engine.write(lambda transaction, sql=sql: transaction.run(sql))
    await make(settings, tmp_path / "backup")
    counts = "SELECT (SELECT count(*) FROM logins), (SELECT count(*) FROM ice_sessions)"
    async with open_context(settings) as opened:
        assert await opened.engine.fetch(counts) == [(1, 1)]
    with open_read_only(tmp_path / "backup" / backups.DATABASE) as made:
        assert await made.fetch(counts) == [(0, 0)]
        [(lastseen,)] = await made.fetch("SELECT lastseen FROM ice_tokens")
    assert lastseen == "2026-11-22T09:30:00.000000Z", "it is not earlier than what was shown"


async def test_a_new_gateway_has_no_keys_to_back_up(tmp_path, settings):
    manifest = await make(settings, tmp_path / "backup")
    assert manifest.files.keys() == {"ice-gateway.db"}
    other = settings_for(tmp_path / "other")
    other.database_path.parent.mkdir()
    await restore(Backup.find(tmp_path / "backup"), GatewayFiles.of(other), ADMIN, utc_now)
    assert not other.key_file.exists()


async def test_nothing_is_overwritten(tmp_path, settings):
    folder = tmp_path / "backup"
    await make(settings, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with refused("holds a backup already"):
        await make(settings, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("Dear diary")
    with refused("is not empty"):
        await make(settings, tmp_path / "full")
    with refused("is not empty"):
        await make(settings, tmp_path / "full" / "letter")
    (tmp_path / "empty").mkdir()
    await make(settings, tmp_path / "empty")
    async with open_context(settings) as opened:
        log = await Events(opened.engine.fetch).after(0, 100)
    assert [entry.event.detail["folder"] for entry in log] == [str(folder), str(tmp_path / "empty")]


async def test_of_two_at_once_the_second_is_refused(tmp_path, settings):
    def somebody_was_faster(*paths):
        copy_database(*paths)
        (tmp_path / "backup").mkdir()
        (tmp_path / "backup" / "manifest.json").write_text("theirs")

    with refused("cannot be made"):
        await make(settings, tmp_path / "backup", copy=somebody_was_faster)
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["manifest.json"]


async def test_one_that_fails_leaves_nothing(tmp_path, settings, monkeypatch):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    with refused("No such file"):
        await make(settings, tmp_path / "no" / "backup")

    def full(_):
        raise OSError(28, "No space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with refused("No space left"):
            await make(settings, tmp_path / "backup")
    settings.key_file.rename(tmp_path / "lost")
    with refused("is missing", KeyFileUnusable):
        await make(settings, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    assert not list(tmp_path.glob(".*.unfinished"))


async def test_a_damaged_database_is_not_backed_up(tmp_path, settings):
    await damage(settings)
    with refused("damaged"):
        await make(settings, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


async def damage(settings):
    """Let an index point to a row that is not there."""
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    with contextlib.closing(sqlite3.connect(settings.database_path)) as connection:
        [root] = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'ice_connections'"
        ).fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    with settings.database_path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * 100)


# --- checked before it is restored ---------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database with an ICE, and a backup of it."""
    folder = tmp_path_factory.mktemp("template")

    async def work():
        settings = settings_for(folder)
        async with open_context(settings) as opened:
            await provision(opened, "lab-1")
        await make(settings, folder / "backup")

    asyncio.run(work())
    return folder


@pytest.fixture
def backup(tmp_path, template):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "backup"


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_keys(folder):
    """A flipped bit in the manifest; otherwise the keys would be left out without a word."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("ice-gateway.keys.json", "ice-gateway.keis.json"))


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "is no backup"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "cannot be read"),
        (lambda folder: edit(folder, at="yesterday"), "cannot be read"),
        (rename_keys, "names other files than a backup has"),
        (lambda folder: edit(folder, format=2), "newer gateway"),
        (lambda folder: edit(folder, schema=99), "upgrade the gateway first"),
        (lambda folder: edit(folder, schema=1), "is damaged"),
        (lambda folder: edit(folder, head=f"2:{'0' * 64}"), "its audit log does not end"),
        (lambda folder: (folder / "ice-gateway.db").unlink(), "cannot be read"),
        (lambda folder: (folder / "ice-gateway.keys.json").unlink(), "cannot be read"),
        (lambda folder: flip(folder / "ice-gateway.db"), "is damaged"),
        (lambda folder: flip(folder / "ice-gateway.keys.json"), "is damaged"),
    ],
)
async def test_a_backup_that_is_not_whole_is_refused(tmp_path, settings, backup, harm, word):
    harm(backup)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with refused(word):
        await restore(Backup.find(backup), GatewayFiles.of(settings), ADMIN, utc_now)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    after.pop("ice.db.serve.lock", None)
    assert after == before, "a refused restore was expected to change nothing"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
