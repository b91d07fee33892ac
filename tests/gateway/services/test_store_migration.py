"""A database moves from its file to PostgreSQL: all of it, proven, and on it goes there; or nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3

import pytest

from gateway.core.enrolment import Enrolment, EnrolmentKey, EnrolmentState
from gateway.core.ice import IceType
from gateway.core.times import utc_now
from gateway.node.restore_hold import RestoreHold
from gateway.services import store_migration
from gateway.services.audit import Audit
from gateway.services.doctor import Doctor
from gateway.store import enrolments, sessions
from gateway.store.engine import StoreRefused
from gateway.store.ice_listing import IceListing
from gateway.store.postgres.engine import open_postgres
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.tables import MOVED
from tests.contract.domain import (
    ROOT,
    a_connection,
    a_connection_event,
    add,
    add_registered,
    add_user,
    an_event,
    an_ice,
    append,
    log,
    minutes,
    opened,
    record,
    refusing,
)
from tests.support.harness import command, settings_for


def opening(url, **options):
    return open_postgres(url, tell=lambda _: None, **options)


def move(path, url, progress=lambda *_: None):
    return store_migration.move(path, url, utc_now, lambda _: None, progress)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ice.db"


async def add_enrolment(engine):
    """An enrolment key, and a machine that waits."""
    key = EnrolmentKey(
        *("k" * 32, "lab", "a hash", IceType.NORMAL, "alice", "lab-"),
        max_uses=9,
        uses=2,
        approval=True,
        createdby="root",
        createdon=minutes(0),
        expireson=minutes(60),
        labels={"site": "Grüße"},
    )
    waiting = Enrolment(
        *("e" * 24, key.id, "lab-pc", IceType.NORMAL, "alice", "pc", "Linux", "::1", "t"),
        state=EnrolmentState.WAITING,
        replaces=False,
        generation=None,
        createdon=minutes(1),
        expireson=minutes(60),
    )
    await engine.write(lambda transaction: enrolments.add_key(transaction, key))
    await engine.write(lambda transaction: enrolments.put(transaction, [waiting]))


async def fill(path, *, prune=False):
    """A database with a bit of everything; returns its log."""
    async with open_sqlite(path, serving=True) as engine:
        for name in ("alice", "Grüße"):
            await add_user(engine, name)
        for number in range(3):
            await add(engine, an_ice(f"lab-{number}"))
        await add_registered(engine, "build-1", None)
        await record(
            engine, connection_events=[a_connection_event("closed", "1006", ice_name="build-1")]
        )
        await add_enrolment(engine)
        for number in range(10):
            at = minutes(number)
            await append(engine, dataclasses.replace(an_event("note", text="\0\"'\\€"), at=at))
        if prune:
            audit = Audit(engine=engine, clock=lambda: minutes(60))
            assert (await audit.prune(ROOT, minutes(5))).count
        return await log(engine)


@pytest.mark.parametrize("prune", [False, True])
async def test_everything_arrives_and_goes_on(path, database_url, prune):
    entries = await fill(path, prune=prune)
    told: dict[str, int] = {}

    def progress(table, rows):
        told[table] = told.get(table, 0) + rows

    expected = store_migration.count(path)
    moved = await move(path, database_url, progress)
    assert moved.counts == expected
    assert told == {table: rows for table, rows in moved.counts.items() if rows}
    assert (moved.counts["users"], moved.counts["ice_tokens"]) == (2, 4)
    assert (moved.counts["enrolment_keys"], moved.counts["enrolments"]) == (1, 1)
    with sqlite3.connect(path) as source:
        async with opening(database_url, node="node-a") as engine:
            for table, key in ((one.name, one.key) for one in MOVED):
                if table in ("restored", "logins"):
                    continue  # the file's own mark, made when all had arrived
                columns = ", ".join(
                    name for _, name, *_ in source.execute(f"PRAGMA table_info({table})")
                )
                sql = f"SELECT {columns} FROM {table} ORDER BY {key}"  # noqa: S608 - our own names
                assert await engine.fetch(sql) == source.execute(sql).fetchall(), table
            assert await log(engine) == entries
            audit = Audit(engine=engine, clock=utc_now)
            assert (await audit.verify(moved.head)).fault is None
            [logged] = await append(engine, an_event("after"))
            assert logged.seq == entries[-1].seq + 1
            assert (await audit.verify(moved.head)).fault is None
            await record(
                engine, connection_events=[a_connection_event("closed", ice_name="build-1")]
            )
            assert (await IceListing(engine).find("LAB-1")).ice == an_ice("lab-1")
    examined = Doctor(settings_for(path.parent, database__url=database_url), None, clock=utc_now)
    [found] = [item for item in await examined.examine() if item.check == "database"]
    assert "ICEs: 4, events: " in found.text
    assert "enrolment keys: 1, webhooks: 0; no gateway serves it" in found.text


async def test_what_was_shown_as_last_seen_before_a_crash_arrives(path, database_url):
    await fill(path)
    async with open_sqlite(path) as engine:
        ice = (await IceListing(engine).find("build-1")).ice
        await record(engine, opened=[opened(ice, a_connection("s1"))])
        await engine.write(lambda transaction: sessions.confirm(transaction, "node-a", minutes(9)))
        shown = (await IceListing(engine).find("build-1")).lastseen
    await move(path, database_url)
    async with opening(database_url) as engine:
        found = await IceListing(engine).find("build-1")
    assert (found.lastseen, found.connection) == (shown, None)
    assert shown == minutes(9)


async def test_the_file_is_a_copy_from_then_on(path, database_url):
    await fill(path)
    await move(path, database_url)
    async with open_sqlite(path) as engine:
        hold = RestoreHold(engine)
        await hold.start()
        assert "the database is a copy" in hold.reason
    async with opening(database_url) as engine:
        hold = RestoreHold(engine)
        await hold.start()
        assert hold.reason is None


async def test_a_target_that_is_not_empty_is_refused(path, database_url):
    await fill(path)
    async with opening(database_url) as engine:
        await add_user(engine, "somebody")
    with refusing(StoreRefused, "a target with a user") as caught:
        await move(path, database_url)
    assert "not empty: there are rows in users" in caught.text
    async with open_sqlite(path) as engine:
        hold = RestoreHold(engine)
        await hold.start()
        assert hold.reason is None, "the file was expected to be what it was"


async def test_nothing_is_moved_from_or_to_what_a_gateway_serves(path, database_url):
    await fill(path)
    async with open_sqlite(path, serving=True):
        with refusing(StoreRefused, "a file that is served"):
            await move(path, database_url)
    async with opening(database_url, node="node-a"):
        with refusing(StoreRefused, "a database that is served") as caught:
            await move(path, database_url)
    assert "stop it first" in caught.text


async def test_what_is_broken_off_leaves_nothing_there(path, database_url):
    await fill(path)

    def progress(table, _):
        if table == "ice_events":
            raise asyncio.CancelledError

    with refusing(asyncio.CancelledError, "a move that is broken off"):
        await move(path, database_url, progress)
    async with opening(database_url) as engine:
        for table in MOVED:
            sql = f"SELECT count(*) FROM {table.name}"  # noqa: S608 - our own names
            assert await engine.fetch(sql) == [(0,)], table.name
    assert (await move(path, database_url)).counts["users"] == 2


async def test_a_log_that_was_altered_is_not_moved(path, database_url):
    await fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER ice_events_no_update")
        connection.execute("UPDATE ice_events SET actor = 'mallory' WHERE seq = 4")
    connection.close()
    with refusing(StoreRefused, "a log that was altered") as caught:
        await move(path, database_url)
    assert "event 4 was altered; nothing was moved" in caught.text
    async with opening(database_url) as engine:
        assert await engine.fetch("SELECT count(*) FROM users") == [(0,)]
        await add_user(engine, "guards are up again")
        with refusing(Exception, "a change of the log"):
            await engine.write(lambda t: t.run("DELETE FROM ice_events"))


async def test_the_command_shows_what_it_moved(path, database_url):
    await fill(path)
    done = await command("migrate-store", "--from", f"sqlite:///{path}", "--to", database_url)
    assert "4 rows of ice_tokens" in done.stdout
    assert "audit log verified, head " in done.stdout
    assert "marked as a copy" in done.stderr
    for arguments in (
        ("--from", database_url, "--to", f"sqlite:///{path}"),
        ("--from", f"sqlite:///{path}", "--to", "mysql://x/y"),
    ):
        done = await command("migrate-store", *arguments, status=2)
        assert "it goes --from sqlite:///PATH" in done.stderr
    missing = f"sqlite:///{path}.not"
    done = await command("migrate-store", "--from", missing, "--to", database_url, status=1)
    assert "there is no database" in done.stderr
