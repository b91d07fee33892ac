"""What is SQLite's own: the file, its locks, its connections, its migrations."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from gateway.core.times import to_text
from gateway.store import ices
from gateway.store.accounts import Accounts
from gateway.store.engine import Part, StoreRefused, StoreUnavailable, begin
from gateway.store.events import Events
from gateway.store.ice_listing import IceListing
from gateway.store.restore_mark import find_mark
from gateway.store.sqlite.commit_watch import CommitWatch
from gateway.store.sqlite.engine import READS, open_sqlite
from gateway.store.sqlite.migrate import is_served, released
from gateway.store.sqlite.snapshot import APPLICATION_ID, into_one_file, open_read_only
from tests.contract.domain import (
    NOW,
    RULE_BROKEN,
    add_registered,
    add_user,
    an_event,
    append,
    log,
    refusing,
    soon,
)


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


@contextlib.contextmanager
def raw(path):
    """The file as any other program sees it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def shape(path):
    """Version and schema of a file."""
    with raw(path) as connection:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        return version, connection.execute("SELECT sql FROM sqlite_schema ORDER BY sql").fetchall()


async def add_name(engine, name):
    """A user, also in a schema that the code does not know any more."""
    await engine.write(
        lambda transaction: transaction.run(
            "INSERT INTO users (name, name_folded, role, createdon) VALUES ($1, $1, 'member', $2)",
            name,
            to_text(NOW),
        )
    )


async def names(engine):
    """Of all users; also of a schema that the code does not know any more."""
    return [name for (name,) in await engine.fetch("SELECT name FROM users ORDER BY name_folded")]


def reads(engine):
    return {
        "fetch": lambda: Accounts(engine).after("", "", 10),
        "look_up": lambda: engine.look_up("SELECT count(*) FROM users"),
        "follow": lambda: Events(engine.follow).last(),
        "has_changed": engine.has_changed,
    }


async def assert_reads_go_on(engine):
    for name, read in reads(engine).items():
        try:
            await read()
        except StoreUnavailable as error:
            pytest.fail(f"{name} was expected to go on, but: {error}")


# --- connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("serving", [True, False])
async def test_every_connection_is_durable(path, serving, connections):
    async with open_sqlite(path, serving=serving):
        assert len(connections) == (5 if serving else 2)
        for number, connection in enumerate(connections):
            for pragma, expected in (
                ("journal_mode", "wal"),
                ("synchronous", 2),  # FULL
                ("foreign_keys", 1),
                ("busy_timeout", 2000 if serving else 10_000),
            ):
                [(value,)] = await connection.execute_fetchall(f"PRAGMA {pragma}")
                assert value == expected, f"{pragma} of {number} was expected to be {expected}"


async def test_a_commit_of_another_process_wakes_a_gateway(path, engine):
    async with open_sqlite(path) as elsewhere:
        engine.changed.clear()
        await add_user(elsewhere, "bob")
        await soon(engine.changed.wait(), "notice of a commit of another process")
        assert await engine.has_changed()
        assert not await engine.has_changed()


async def test_a_watch_that_sees_nothing_reports_a_change(path):
    """So that the log is read: nobody knows whether it goes on."""
    changed = asyncio.Event()
    watch = CommitWatch(path, changed)
    with contextlib.closing(watch):
        assert watch.has_changed()
        assert watch.has_changed()
        watch.start()
        for _ in range(2):
            await soon(changed.wait(), "a wake-up")
            changed.clear()


async def test_who_lost_a_race_leaves_the_group_it_was_in_alone(engine, writer):
    """A stale swap is a value: nothing has to be undone, and nobody runs again for it."""
    ice = await add_registered(engine)
    stale = dataclasses.replace(ice, generation=9)
    statements: list[str] = []
    await writer.set_trace_callback(statements.append)
    event = an_event("change", ice)
    done = await asyncio.gather(
        *(append(engine, an_event()) for _ in range(10)),
        engine.write(Part(ices.register, (stale, ice, event))),
        *(append(engine, an_event()) for _ in range(10)),
    )
    assert done[10] is None, "a stale swap was expected to be told as None"
    ends = [text for text in statements if text.startswith(("BEGIN", "COMMIT", "ROLLBACK"))]
    assert ends == ["BEGIN IMMEDIATE", "COMMIT"], "one transaction was expected for all"


async def test_a_transaction_that_has_begun_keeps_others_from_writing(engine, path):
    """From its first statement on, or from `begin`, for what is not in the database, such as the key file."""

    def free() -> bool:
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True

    async def unit(transaction):
        before = free()
        await begin(transaction)
        begun = free()
        await begin(transaction)  # changes nothing
        return before, begun

    assert await engine.write(unit) == (True, False)
    assert free()


async def test_a_storm_shares_its_commits(engine, writer):
    statements: list[str] = []
    await writer.set_trace_callback(statements.append)
    await asyncio.gather(*(append(engine, an_event()) for _ in range(200)))
    ends = [text for text in statements if text.startswith(("BEGIN", "COMMIT", "ROLLBACK"))]
    assert ends == ["BEGIN IMMEDIATE", "COMMIT"], "one transaction was expected for all"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO ice_events SELECT * FROM ice_events WHERE seq = 1",
        "INSERT OR IGNORE INTO ice_events SELECT * FROM ice_events WHERE seq = 1",
        "INSERT INTO ice_events SELECT * FROM ice_events WHERE true ON CONFLICT DO UPDATE SET at=''",
        "INSERT INTO ice_events SELECT NULL, '', '', '', '', '', NULL, NULL, '', ''",
        "UPDATE OR REPLACE ice_events SET seq = 1 WHERE seq = 2",
    ],
)
async def test_no_conflict_clause_gets_around_append_only(engine, statement):
    await append(engine, an_event())
    before = await log(engine)
    with refusing(RULE_BROKEN, statement):
        await engine.write(lambda transaction: transaction.run(statement))
    assert await log(engine) == before


# --- the file and its locks ----------------------------------------------------------------------


async def test_all_files_are_for_the_owner_alone(path):
    umask = os.umask(0)
    try:
        async with open_sqlite(path, serving=True) as engine:
            await add_user(engine, "alice")
            modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
    finally:
        os.umask(umask)
    locks = {"ice.db.serve.lock", "ice.db.setup.lock", "ice.db.head"}
    assert modes.keys() == {"ice.db", "ice.db-wal", "ice.db-shm"} | locks
    assert set(modes.values()) == {0o600}, f"mode 0600 was expected of all of {modes}"


_OPEN_TOGETHER = """
import asyncio, pathlib, sys, threading
from gateway.store.sqlite.engine import open_sqlite

async def work(name):
    async with open_sqlite(pathlib.Path(sys.argv[1])) as engine:
        await engine.write(lambda transaction: transaction.run(
            "INSERT INTO users (name, name_folded, role, createdon) VALUES ($1, $1, 'admin', '')",
            name,
        ))

threads = [
    threading.Thread(target=lambda n=n: asyncio.run(work(sys.argv[2] + n))) for n in "ab"
]
print("ready", flush=True)
sys.stdin.readline()
failed = []
threading.excepthook = failed.append
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit(str([f"{one.exc_type}: {one.exc_value}" for one in failed]) if failed else 0)
"""


async def test_processes_that_open_a_new_file_together_all_succeed(path):
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _OPEN_TOGETHER, str(path), str(number)),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )
        for number in range(4)
    ]
    for process in processes:
        await soon(process.stdout.readline(), "a process that is ready")
    ends = await soon(
        asyncio.gather(*(process.communicate(b"\n") for process in processes)), "all ended"
    )
    errors = [error.decode() for _, error in ends]
    assert errors == [""] * 4, "nobody was expected to meet a lock or half a schema"
    assert [process.returncode for process in processes] == [0] * 4
    assert shape(path)[0] == len(released())
    with raw(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM users")}
    assert names == {f"{number}{thread}" for number in range(4) for thread in "ab"}


async def test_a_file_is_served_once_by_whatever_name(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    assert not is_served(path)

    async def refused(name):
        with refusing(StoreRefused, f"a second gateway on {name}") as why:
            async with open_sqlite(name, serving=True):
                pass
        return why.text

    async with open_sqlite(path, serving=True):
        assert is_served(path)
        assert is_served(link)
        sentence = f"another gateway already serves {path}; stop it, or name another --database"
        assert await asyncio.gather(refused(path), refused(link)) == [sentence] * 2
        async with open_sqlite(link) as command:
            assert await add_user(command, "bob"), "a command was expected to work meanwhile"
    assert not is_served(path)
    async with open_sqlite(link, serving=True):
        assert is_served(path)


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (["PRAGMA user_version=99"], "was written by a newer gateway (schema 99"),
        (["PRAGMA application_id=7"], "is a database of another program"),
    ],
    ids=["newer", "foreign"],
)
async def test_a_file_that_is_not_for_us_is_refused(path, statements, sentence):
    async with open_sqlite(path):
        pass
    with raw(path) as connection:
        for statement in statements:
            connection.execute(statement)
    await assert_refused(path, sentence)


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE recipes (name)", "PRAGMA user_version=1", "PRAGMA application_id=7"],
)
async def test_a_database_of_another_program_is_refused(path, statement):
    with raw(path) as connection:
        connection.execute(statement)
    await assert_refused(path, "is a database of another program")


@pytest.mark.parametrize("content", [b"Dear diary", b"Dear diary,\n" * 1000], ids=["short", "long"])
async def test_a_file_that_is_no_database_is_refused(path, content):
    path.write_bytes(content)
    await assert_refused(path, "is not an SQLite database")


async def assert_refused(path, sentence, **options):
    before = path.read_bytes()
    for serving in (False, True):
        with refusing(StoreRefused, f"opening it, serving={serving},") as why:
            async with open_sqlite(path, serving=serving, **options):
                pass
        assert str(path) in why.text
        assert sentence in why.text
    assert path.read_bytes() == before, "a refused file was expected to be left as it is"


@pytest.mark.parametrize("serving", [True, False])
async def test_a_missing_folder_is_told(tmp_path, serving):
    path = tmp_path / "missing" / "ice.db"
    with refusing(StoreRefused, "opening a file in a missing folder") as why:
        async with open_sqlite(path, serving=serving):
            pass
    assert (
        why.text == f"the folder of the database {path} cannot be used: No such file or directory"
    )


async def test_a_folder_in_place_of_the_file_is_told(path):
    path.mkdir()
    with refusing(StoreRefused, "opening a folder") as why:
        async with open_sqlite(path):
            pass
    assert why.text == f"the database {path} is a folder: name the file in it"


# --- what may happen to a file in use ------------------------------------------------------------


async def test_a_locked_file_is_read_and_written_again_later(engine, path):
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with refusing(StoreUnavailable, "a write to a locked database") as why:
            await add_user(engine, "bob")
        assert why.text == (
            f"the database {path} cannot be used: database is locked;"
            " another program holds it: let that finish, or stop it"
        )
        await assert_reads_go_on(engine)
        other.execute("ROLLBACK")
    assert await add_user(engine, "bob"), "writes were expected to go on after the lock"


async def test_a_write_waits_for_another_process_to_finish(path):
    async with open_sqlite(path) as engine:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(add_user(engine, "bob"))
            await asyncio.wait([writing], timeout=0)
            other.execute("ROLLBACK")
            assert await soon(writing, "the write once the lock was gone")


async def test_a_file_that_cannot_be_written_is_still_read(engine, path, writer):
    await writer.execute("PRAGMA query_only=ON")
    writes = (add_user(engine, "bob"), append(engine, an_event()))
    ends = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(end) for end in ends] == [StoreUnavailable] * 2
    assert str(path) in str(ends[0])
    await assert_reads_go_on(engine)
    await writer.execute("PRAGMA query_only=OFF")
    assert await add_user(engine, "bob"), "writes were expected to go on"


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_taken_away_is_noticed_and_put_back_is_used(engine, path, tmp_path, replaced):
    aside = tmp_path / "aside.db"
    path.rename(aside)
    if replaced:
        path.touch()
    sentence = (
        f"the database file {path}, or its -wal file, is gone or was replaced;"
        " put both back, or restart the gateway"
    )
    for name, work in {**reads(engine), "write": lambda: add_user(engine, "bob")}.items():
        with refusing(StoreUnavailable, f"{name} without the file") as why:
            await work()
        assert why.text == sentence
    aside.replace(path)
    await assert_reads_go_on(engine)
    assert await add_user(engine, "bob")


# --- migrations ----------------------------------------------------------------------------------

FIRST = released()[0]
SECOND = (
    2,
    """
    CREATE TABLE more (a TEXT);
    CREATE TRIGGER more_only BEFORE DELETE ON more
    BEGIN
        SELECT RAISE(ABORT, 'a; b'); -- one statement to its end
    END;
    INSERT INTO more VALUES ('once') -- the last needs no semicolon""",
)


def test_migrations_are_numbered_without_gaps():
    numbers = [number for number, _ in released()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_migration_goes_forward_once(path):
    async with open_sqlite(path, steps=[FIRST]) as engine:
        await add_name(engine, "alice")
    for _ in range(2):
        async with open_sqlite(path, steps=[FIRST, SECOND]) as engine:
            assert await names(engine) == ["alice"]
            assert await engine.fetch("SELECT a FROM more") == [("once",)]
    migrated = shape(path)
    assert migrated[0] == 2
    path.rename(path.with_name("migrated.db"))
    async with open_sqlite(path, steps=[FIRST, SECOND]):
        pass
    assert shape(path) == migrated, "a new file was expected to be as a migrated one"
    await assert_refused(path, "upgrade the gateway", steps=[FIRST])


@pytest.mark.parametrize("known", [(), (FIRST,)], ids=["new file", "older file"])
@pytest.mark.parametrize(
    "fault", ["CREATE TABL oops (a);", "INSERT INTO nothing VALUES (1);", "CREATE TABLE oops ("]
)
async def test_a_migration_that_fails_leaves_the_file_as_it_was(path, known, fault):
    if known:
        async with open_sqlite(path, steps=known) as engine:
            await add_name(engine, "alice")
    before = shape(path)
    with refusing(StoreUnavailable, "a migration with a fault") as why:
        async with open_sqlite(path, steps=[FIRST, (2, f"{SECOND[1]}\n;{fault}")]):
            pass
    assert f"the database {path} cannot be opened" in why.text
    assert shape(path) == before, "nothing of the migration was expected to be done"
    async with open_sqlite(path, steps=[FIRST, SECOND]) as engine:
        assert await engine.fetch("SELECT a FROM more") == [("once",)]
        assert len(await names(engine)) == len(known)


# --- upgrades ------------------------------------------------------------------------------------

RELEASED_FIRST = released()[:2]
"""The migrations of version 0.1.0."""


def database_of_the_first_release(path):
    """A file as version 0.1.0 made it, with a registered ICE of alice, by the SQL of then."""
    with raw(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        for _, sql in RELEASED_FIRST:
            connection.executescript(sql)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute("PRAGMA user_version=2")
        connection.execute(
            "INSERT INTO users (name, name_folded, role, createdon)"
            " VALUES ('alice', 'alice', 'member', ?)",
            (to_text(NOW),),
        )
        connection.execute(
            "INSERT INTO ice_tokens (ice_name, ice_type, ice_token, status, provisionedto, generation,"
            " key_thumbprint, provisionedon, registeredon)"
            " VALUES ('lab-1', 'normal', 'hash', 'registered', 'alice', 3, 'thumbprint', ?1, ?1)",
            (to_text(NOW),),
        )
    return shape(path)


async def test_an_upgrade_keeps_the_database_as_it_was(path):
    old = database_of_the_first_release(path)
    newest = released()[-1][0]
    kept = path.with_name(f"ice.db.before-schema-{newest}")
    told: list[str] = []
    for name in ("bob", "carol"):
        async with open_sqlite(path, tell=told.append) as engine:
            ice = (await IceListing(engine).find("lab-1")).ice
            assert (ice.generation, ice.key_thumbprint, ice.provisionedon) == (3, "thumbprint", NOW)
            await add_user(engine, name)
    [sentence] = told
    assert f"{path} was migrated from schema 2 to {newest}" in sentence
    assert sentence.endswith(f" is kept in {kept}")
    assert shape(path)[0] == newest
    assert (shape(kept), stat.S_IMODE(kept.stat().st_mode)) == (old, 0o600)
    with raw(kept) as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("alice",)]
    names = {item.name for item in path.parent.iterdir()} - {"ice.db", kept.name}
    assert names == {"ice.db.setup.lock", "ice.db.head"}, "nothing else was expected to be left"


async def test_a_copy_that_an_upgrade_keeps_says_that_it_is_one(path):
    """Put back by hand it admits nobody, like a backup."""
    async with open_sqlite(path) as engine:
        await append(engine, an_event())
    next_step = (released()[-1][0] + 1, "CREATE TABLE more (a TEXT);")
    async with open_sqlite(path, steps=[*released(), next_step]) as engine:
        assert await find_mark(engine.fetch) is None
    kept = path.with_name(f"ice.db.before-schema-{next_step[0]}")
    with open_read_only(kept) as found:
        assert (await find_mark(found.fetch)).seq == 1


async def test_a_new_database_is_not_copied(path):
    told: list[str] = []
    async with open_sqlite(path, tell=told.append):
        pass
    assert (told, sorted(path.parent.glob("*before*"))) == ([], [])


async def test_without_a_copy_nothing_is_migrated(path, monkeypatch):
    old = database_of_the_first_release(path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refusing(StoreUnavailable, "a migration without a copy") as why:
        async with open_sqlite(path):
            pass
    assert f"{path} was not migrated, since it cannot be copied to" in why.text
    assert "No space left" in why.text
    assert shape(path) == old
    assert not list(path.parent.glob("*before-schema*")), "half a copy was left"
    monkeypatch.undo()
    async with open_sqlite(path) as engine:
        assert await names(engine) == ["alice"]


async def test_no_command_migrates_beneath_a_gateway_of_an_older_version(path):
    old = database_of_the_first_release(path)
    async with open_sqlite(path, serving=True, steps=RELEASED_FIRST) as older:
        with refusing(StoreRefused, "a newer command beside an older gateway") as why:
            async with open_sqlite(path):
                pass
        assert "a gateway of an older version serves" in why.text
        assert "stop it first" in why.text
        assert shape(path) == old
        await add_name(older, "bob")  # the older gateway goes on
    async with open_sqlite(path, serving=True) as newer:
        assert await names(newer) == ["alice", "bob"]


async def test_a_copy_put_back_by_hand_gets_its_log_again(path):
    """A copy is one file, without SQLite's log (WAL) beside it."""
    async with open_sqlite(path) as engine:
        await add_user(engine, "alice")
    assert into_one_file(path)
    async with open_sqlite(path) as engine:
        assert await engine.fetch("PRAGMA journal_mode") == [("wal",)]


async def test_reads_come_back_a_few_at_a_time(engine, connections, monkeypatch):
    """Each gives the loop something to do: all at once, they would hold up who is admitted."""
    under_way, most = 0, 0

    def counted(fetch):
        async def counting(*args):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await fetch(*args)
            finally:
                under_way -= 1

        return counting

    for connection in connections:
        counting = counted(connection.execute_fetchall)
        monkeypatch.setattr(connection, "execute_fetchall", counting)
    rows = await asyncio.gather(*(engine.fetch("SELECT $1", number) for number in range(50)))
    assert rows == [[(number,)] for number in range(50)]
    assert most == READS
    # Admissions and the log's follower do not wait for them.
    most = 0
    await asyncio.gather(*(engine.look_up("SELECT 1") for _ in range(50)))
    assert most == 50


async def test_the_log_goes_into_the_file_beside_the_writer(path, connections, monkeypatch):
    async with open_sqlite(path, serving=True) as engine:
        swept = asyncio.Event()
        sweeper = connections[-1]
        fetch = sweeper.execute_fetchall

        async def sweep(sql, *params):
            rows = await fetch(sql, *params)
            if "wal_checkpoint" in sql:
                swept.set()
            return rows

        monkeypatch.setattr(sweeper, "execute_fetchall", sweep)
        await add_user(engine, "bob")
        await soon(swept.wait(), "a checkpoint")
        alone = path.with_name("alone.db")
        alone.write_bytes(path.read_bytes())  # without the log beside it
    with contextlib.closing(sqlite3.connect(alone)) as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("bob",)]


async def test_a_network_file_system_is_refused(path, monkeypatch):
    read = Path.read_text

    def read_text(file, *args, **options):
        if file == Path("/proc/self/mountinfo"):
            return "1 0 0:1 / / rw - nfs4 server:/ rw\n"
        return read(file, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    with refusing(StoreRefused, "a file on NFS") as caught:
        async with open_sqlite(path, serving=True):
            pass
    assert "use PostgreSQL" in caught.text
    assert not path.exists(), "nothing was to be made there"
