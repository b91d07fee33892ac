"""SQLite's bad days: what is refused, what is certain of it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from gateway.store.accounts import Accounts
from gateway.store.engine import OutcomeUnknown, StoreUnavailable
from gateway.store.events import Events
from gateway.store.ice_loader import IceLoader
from gateway.store.sqlite.engine import longer_pause, open_sqlite
from gateway.store.sqlite.guard import may_be_done
from gateway.store.sqlite.migrate import released
from gateway.store.sqlite.snapshot import open_read_only
from tests.contract.domain import (
    add,
    add_registered,
    add_user,
    an_event,
    an_ice,
    append,
    refusing,
    soon,
)

LOTS = "x" * 200_000
"""More than fits into the free space of a page that is there already."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ice.db"


@pytest.fixture
async def engine(path, connections):
    async with open_sqlite(path, serving=True, busy_timeout=0.05) as opened:
        await add_user(opened, "alice")
        yield opened


@pytest.fixture
def writer(engine, connections):
    """The connection on which the engine writes."""
    return connections[0]


def raw(path):
    """The file as any other program sees it; closed at the end."""
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def failure(name):
    """An error as SQLite's result code `name` makes it."""
    error = sqlite3.OperationalError(f"as in {name}")
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error


async def users(engine):
    return [listed.user.name for listed in await Accounts(engine).after("", "", 10)]


@pytest.fixture
def fail_commits(writer, monkeypatch):
    """Has the next COMMITs end in errors of these names, and undoes them."""

    def fail(*names):
        errors = list(map(failure, names))
        really_execute = writer._conn.execute

        def execute(sql, *args):
            if sql == "COMMIT" and errors:
                really_execute("ROLLBACK")
                raise errors.pop(0)
            return really_execute(sql, *args)

        monkeypatch.setattr(writer._conn, "execute", execute)

    return fail


# --- what is certain of a commit that failed -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "maybe"),
    [
        ("SQLITE_FULL", False),
        ("SQLITE_BUSY", False),
        ("SQLITE_BUSY_SNAPSHOT", False),
        ("SQLITE_READONLY", False),
        ("SQLITE_IOERR_WRITE", False),
        ("SQLITE_IOERR_FSYNC", True),
        ("SQLITE_IOERR_DIR_FSYNC", True),
        ("SQLITE_IOERR", True),
        ("SQLITE_CORRUPT", True),
    ],
)
def test_only_what_never_reached_the_log_is_surely_not_done(name, maybe):
    assert may_be_done(failure(name)) is maybe


async def test_a_commit_that_could_not_be_written_was_not_made(engine, fail_commits):
    fail_commits("SQLITE_IOERR_WRITE", "SQLITE_IOERR_WRITE")
    with refusing(StoreUnavailable, "a write to a failing disk") as why:
        await add_user(engine, "bob")
    assert "not known" not in why.text
    assert why.text == engine.fault, "the store was expected to say what is wrong with it"
    assert await users(engine) == ["alice"]


async def test_a_commit_that_could_not_be_synced_is_overwritten_where_that_is_possible(
    engine, fail_commits
):
    fail_commits("SQLITE_IOERR_FSYNC")
    try:
        await add_user(engine, "bob")
    except OutcomeUnknown:
        pytest.fail("the next commit has taken its place: it is known not to be done")
    except StoreUnavailable:
        pass
    assert engine.fault is None, "who can write again has no fault"
    assert await add_user(engine, "bob")


async def test_a_commit_that_could_not_be_synced_nor_overwritten_is_unknown(engine, fail_commits):
    fail_commits(*["SQLITE_IOERR_FSYNC"] * 3)
    with refusing(OutcomeUnknown, "a write that may be there after a crash") as why:
        await add_user(engine, "bob")
    assert "it is not known whether the last change was made" in why.text
    assert "not known" not in engine.fault, "the fault is the store's, not of one change"
    await engine.try_out()
    assert engine.fault is None


async def test_what_went_into_a_file_that_was_taken_away_is_unknown(engine, path):
    aside = path.with_name("aside.db")

    async def unit(transaction):
        await transaction.run(
            "INSERT INTO users (name, name_folded, role, createdon) VALUES ('b', 'b', 'member', '')"
        )
        path.rename(aside)

    with refusing(OutcomeUnknown, "a commit into a file without a name"):
        await engine.write(unit)
    aside.rename(path)
    found = await engine.fetch("SELECT name FROM users")
    assert found == [("alice",), ("b",)], "here it has been done after all"


# --- full ----------------------------------------------------------------------------------------


async def test_a_full_database_takes_what_still_fits_and_all_once_there_is_room(engine, writer):
    [(pages,)] = await writer.execute_fetchall("PRAGMA page_count")
    await writer.execute(f"PRAGMA max_page_count={pages}")
    with refusing(StoreUnavailable, "a write that does not fit") as why:
        await append(engine, an_event(text=LOTS))
    assert "make room on its disk" in why.text
    assert engine.fault is None, "one large write is no reason to refuse the small ones"
    assert await add_user(engine, "bob")
    await writer.execute(f"PRAGMA max_page_count={pages + 1000}")
    assert await append(engine, an_event(text=LOTS))


async def test_a_file_that_cannot_be_written_is_a_fault_until_it_can(engine, writer):
    await writer.execute("PRAGMA query_only=ON")
    with refusing(StoreUnavailable, "a write to a read-only file"):
        await add_user(engine, "bob")
    await engine.try_out()
    assert "make its file, its folder and their file system writable" in engine.fault
    assert await users(engine) == ["alice"], "reads were expected to go on"
    await writer.execute("PRAGMA query_only=OFF")
    await engine.try_out()
    assert engine.fault is None


async def test_a_lock_is_a_fault_until_it_is_gone(engine, path):
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with refusing(StoreUnavailable, "a write to a locked database"):
            await add_user(engine, "bob")
        assert "another program holds it" in engine.fault
        other.execute("ROLLBACK")
    await engine.try_out()
    assert engine.fault is None


async def test_trying_out_changes_nothing(engine):
    before = await engine.fetch("SELECT * FROM ice_events")
    for _ in range(3):
        await engine.try_out()
    assert await engine.fetch("SELECT * FROM ice_events") == before
    assert await engine.fetch("PRAGMA user_version") == [(len(released()),)]


# --- damaged -------------------------------------------------------------------------------------


def checkpoint(path):
    """Have all of the write-ahead log written into the file; another program may do that."""
    with raw(path) as connection:
        while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            pass  # the engine's own goes on in its thread


WAYS = {
    "a look-up": lambda engine: engine.look_up("SELECT * FROM ice_events JOIN users"),
    "a write": lambda engine: append(engine, an_event()),
}


async def damage(path, writer) -> bytes:
    """Overwrite all but the first page of the file; returns what was in it."""
    checkpoint(path)
    good = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (len(good) - 4096))
    await writer.execute_fetchall("PRAGMA shrink_memory")  # what it wrote it remembers
    return good


async def until_whole(engine):
    """Try it out until a check has found the file whole."""
    while engine.fault is not None:
        await asyncio.sleep(0.01)
        await engine.try_out()


@pytest.mark.parametrize("notices", WAYS)
async def test_a_damaged_file_is_not_written_again_before_it_is_whole(
    engine, path, writer, monkeypatch, notices
):
    good = await damage(path, writer)
    with refusing(StoreUnavailable, f"{notices} in a damaged file") as why:
        await WAYS[notices](engine)
    assert "it is damaged, or its disk fails" in why.text
    for name, work in {
        "a read by another way": lambda: users(engine),
        "another write": lambda: add_user(engine, "bob"),
    }.items():
        with refusing(StoreUnavailable, name) as other:
            await work()
        assert other.text == why.text == engine.fault
    with monkeypatch.context() as standing_still:
        loop = asyncio.get_running_loop()
        now = loop.time()
        standing_still.setattr(loop, "time", lambda: now)
        await engine.try_out()
        assert engine.fault == why.text, "it is as damaged as before"
        path.write_bytes(good)
        await engine.try_out()
        assert engine.fault == why.text, "the next check was not yet due"
    await soon(until_whole(engine), "a check that finds it whole")
    for name, work in WAYS.items():
        assert await work(engine), f"{name} was expected to go on"
    assert await users(engine) == ["alice"]
    assert await add_user(engine, "bob")


def test_a_damaged_file_is_checked_more_and_more_rarely():
    pauses = [0.0]
    for _ in range(10):
        pauses.append(longer_pause(pauses[-1]))
    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_damaged_entry_is_refused_alone(engine, path):
    lab, other = await add_registered(engine, "lab-1"), await add_registered(engine, "lab-2")
    with raw(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("UPDATE ice_tokens SET status = 'x?' WHERE ice_name = 'lab-1'")
    loader = IceLoader(engine)
    damaged, whole = await asyncio.gather(
        loader.find(lab.ice_name), loader.find(other.ice_name), return_exceptions=True
    )
    assert isinstance(damaged, StoreUnavailable)
    assert "the entry of lab-1 is damaged" in str(damaged)
    assert whole.ice == other


async def test_a_damaged_schema_is_told(tmp_path):
    """SQLite's message quotes it, and Python cannot decode the message."""
    path = tmp_path / "damaged.db"
    async with open_sqlite(path):
        pass
    content = path.read_bytes()
    damaged = content.replace(b"tableusersusers", b"tableus\xf4rsusers")
    path.write_bytes(damaged.replace(b"CREATE TABLE users", b"CREATE TABEL users"))
    with refusing(StoreUnavailable, "a damaged schema") as why:
        async with open_sqlite(path):
            pass
    assert "its schema cannot be read; it is damaged, or its disk fails" in why.text
    with pytest.raises(sqlite3.DatabaseError, match="its schema is damaged"):
        read_schema(path)


async def test_the_error_of_a_damaged_schema_is_one_line(tmp_path):
    path = tmp_path / "damaged.db"
    async with open_sqlite(path):
        pass
    content = path.read_bytes()
    users = content.index(b"CREATE TABLE users")
    quoted = content[users:].replace(b"    name TEXT", b"`\n\x1b name TEXT", 1)
    path.write_bytes(content[:users] + quoted)
    with refusing(StoreUnavailable, "a damaged schema") as why:
        async with open_sqlite(path):
            pass
    assert 'unrecognized token: "` \\x1b name TEXT' in why.text
    assert why.text.isprintable()


def read_schema(path):
    with open_read_only(path) as database:
        return database.schema_info()


async def test_a_damaged_event_is_told(engine, path):
    await append(engine, an_event())
    with raw(path) as connection:
        connection.execute("DROP TRIGGER ice_events_no_update")
        connection.execute("UPDATE ice_events SET detail = 'no JSON' WHERE seq = 2")
    with refusing(StoreUnavailable, "a read of a damaged event") as why:
        await Events(engine.fetch).after(0, 10)
    assert "event 2 of the audit log is damaged" in why.text
    assert "restore a backup" in why.text


# --- taken away and replaced ---------------------------------------------------------------------


async def test_a_log_that_was_taken_away_is_noticed(engine, path):
    log = path.with_name("ice.db-wal")
    aside = log.rename(path.with_name("aside"))
    with refusing(StoreUnavailable, "a write without its log") as why:
        await add_user(engine, "bob")
    assert "or its -wal file, is gone" in why.text
    aside.rename(log)
    assert await add_user(engine, "bob"), "with the log put back it was expected to go on"


@pytest.mark.parametrize("notices", [True, False])
async def test_a_file_put_in_its_place_is_not_ruined_by_the_old_log(path, notices):
    """The log stays beside whatever is put there, and would be taken for that file's."""
    backup, aside = path.with_name("backup.db"), path.with_name("aside.db")
    async with open_sqlite(path, serving=True) as engine:
        await add_user(engine, "alice")
        with raw(path) as connection:
            connection.execute(f"VACUUM INTO '{backup}'")
        for number in range(20):
            await add(engine, an_ice(f"lab-{number}"))
        path.rename(aside)
        backup.rename(path)
        if notices:  # or else it is stopped first
            await engine.try_out()
            assert "put both back" in engine.fault
            with raw(path) as connection:
                assert connection.execute("SELECT count(*) FROM ice_tokens").fetchone() == (0,)
    for file, count in ((path, 0), (aside, 20)):
        with raw(file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            [(found,)] = connection.execute("SELECT count(*) FROM ice_tokens").fetchall()
            assert found == count, f"{file.name} was expected to have {count} entries"


async def test_what_is_condemned_is_refused_for_good(engine):
    engine.condemn("the first reason")
    engine.condemn("another")
    for work in (lambda: users(engine), lambda: add_user(engine, "bob"), engine.has_changed):
        with refusing(StoreUnavailable, "whatever is asked for") as why:
            await work()
        assert why.text == "the first reason" == engine.fault
    await engine.try_out()
    assert engine.fault == "the first reason"
