"""PostgreSQL alone: many writers, connections that break, servers that are not for us."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json

import asyncpg
import pytest

from gateway.node.log_follower import LogFollower
from gateway.store import accounts, events, ices, nodes, proofs
from gateway.store.engine import OutcomeUnknown, StoreRefused, StoreUnavailable
from gateway.store.events import Events
from gateway.store.postgres.connection import Timing
from gateway.store.postgres.engine import open_postgres
from gateway.store.postgres.migrate import released
from tests.contract.domain import (
    add,
    add_registered,
    add_user,
    an_event,
    an_ice,
    append,
    deregistered,
    log,
    refusing,
    soon,
)
from tests.support.postgres import postgres
from tests.support.relay import relaying

BACKENDS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ice-gateway'"
)


def opening(url, *, node=None, **options):
    return open_postgres(url, node=node, tell=lambda _: None, **options)


@pytest.fixture
async def engine(database_url):
    async with opening(database_url, node="node-a") as opened:
        await add_user(opened, "alice")
        yield opened


@pytest.fixture
async def elsewhere(database_url, engine):
    """Another process on the same database."""
    async with opening(database_url) as opened:
        yield opened


class Stopped:
    """A unit that logs an event and then stands still, as a node does between two journeys."""

    def __init__(self) -> None:
        self.standing = asyncio.Event()
        self.on = asyncio.Event()

    async def __call__(self, transaction):
        logged = events.append(transaction, [an_event("slow")])
        await transaction.run("UPDATE users SET role = 'auditor' WHERE name = 'alice'")
        self.standing.set()
        await self.on.wait()
        return logged


# --- many writers --------------------------------------------------------------------------------


async def test_a_node_that_stands_still_within_a_transaction_holds_up_no_other(engine, elsewhere):
    stopped = Stopped()
    task = asyncio.create_task(elsewhere.write(stopped))
    await soon(stopped.standing.wait(), "a node that stands still")
    [quick] = await soon(append(engine, an_event("quick")), "the event of another node")
    assert quick.seq == 2
    stopped.on.set()
    [slow] = await soon(task, "the end of the node that stood still")
    assert slow.seq == 3, "the order of numbers was expected to be the order of commits"
    assert [entry.event.action for entry in await log(engine)][1:] == ["quick", "slow"]


async def test_no_event_is_skipped_however_commits_interleave(database_url, engine):
    """Whoever reads sees at every moment all that is numbered below what is seen."""
    seen: list[int] = []
    tail = LogFollower(engine, lambda entry: seen.append(entry.seq), lambda: asyncio.sleep(0))
    await tail.start()
    task = asyncio.create_task(tail.run())
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(opening(database_url)) for _ in range(3)]

        async def writes(node, name):
            for number in range(30):
                await append(node, *[an_event(name, number=number)] * (1 + number % 3))

        await soon(
            asyncio.gather(*(writes(node, f"n{n}") for n, node in enumerate(nodes))),
            "the end of all writing",
        )
    await soon(tail.wait_for_event(181), "the end of the log")
    task.cancel()
    assert seen == list(range(2, 182))
    entries = await Events(engine.fetch).after(0, 1000)
    assert [entry.previous for entry in entries[1:]] == [entry.digest() for entry in entries[:-1]]


async def test_of_two_nodes_that_change_one_entry_one_wins(engine, elsewhere):
    ice = await add_registered(engine)
    changes = [(ice, deregistered(ice), an_event("deregister", deregistered(ice)))]

    async def change(node):
        return await node.write(lambda transaction: ices.replace(transaction, changes))

    ends = await asyncio.gather(change(engine), change(elsewhere), return_exceptions=True)
    assert sorted(type(end) for end in ends if isinstance(end, Exception)) == [ices.Stale]
    assert [entry.event.action for entry in await log(engine)].count("deregister") == 1


async def test_transactions_that_lock_each_other_out_both_end(engine, elsewhere):
    for name in ("lab-1", "lab-2"):
        await add(engine, an_ice(name))
    met = asyncio.Barrier(2)

    def crossing(*names):
        calls = itertools.count()

        async def unit(transaction):
            await ices.find_many(transaction, names[:1])
            if not next(calls):
                await met.wait()
            return [*(await ices.find_many(transaction, names[1:]))]

        return unit

    both = (engine.write(crossing("lab-1", "lab-2")), elsewhere.write(crossing("lab-2", "lab-1")))
    assert await soon(asyncio.gather(*both), "the end of both") == [["lab-2"], ["lab-1"]]


async def test_a_row_that_another_has_just_made_is_seen(engine, elsewhere):
    """Between the read and the insert of one transaction, another commits a user of the same subject."""
    insert = (
        "INSERT INTO users (name, name_folded, role, createdon, origin, issuer, subject)"
        " VALUES ($1, $1, 'member', '2026-01-01T00:00:00.000000Z', 'sso', 'i', 's')"
    )
    seen = []

    async def unit(transaction):
        seen.append(await accounts.find_by_subject(transaction, "i", "s"))
        if seen == [None]:
            await elsewhere.write(lambda other: other.run(insert, "faster"))
        if seen[-1] is None:
            await transaction.run(insert, "slower")

    await engine.write(unit)
    assert [user and user.name for user in seen] == [None, "faster"]


async def test_an_entry_that_is_held_waits_for_nobody_who_merely_refers_to_it(engine, elsewhere):
    """Presence goes on while an admin's action is under way."""
    await add(engine, an_ice())
    held, on = asyncio.Event(), asyncio.Event()

    async def unit(transaction):
        await ices.find_many(transaction, ["lab-1"])
        held.set()
        await on.wait()

    task = asyncio.create_task(elsewhere.write(unit))
    await soon(held.wait(), "the entry held")

    async def arrival(transaction):
        await transaction.run(
            "INSERT INTO ice_sessions (session, ice_name, generation, node, since, address)"
            " VALUES ('s1', 'lab-1', 1, 'n', '', '')"
        )

    await soon(engine.write(arrival), "a session written meanwhile")
    on.set()
    await task


async def test_a_commit_elsewhere_is_heard_of(engine, elsewhere):
    await engine.has_changed()
    engine.changed.clear()
    await append(elsewhere, an_event())
    await soon(engine.changed.wait(), "a notification")
    assert await engine.has_changed()
    assert not await engine.has_changed()


async def test_a_commit_whose_notification_is_lost_is_found(database_url):
    async with (
        opening(database_url, node="node-a", timing=Timing(look_every=0.0)) as engine,
        opening(database_url) as elsewhere,
    ):
        await engine.follow("UNLISTEN ice_events")
        await engine.has_changed()
        await append(elsewhere, an_event())
        assert await engine.has_changed()


@contextlib.asynccontextmanager
async def full_of_notifications(url):
    """Nobody can notify while this is open: a listener within a transaction keeps the queue full."""
    async with contextlib.AsyncExitStack() as stack:
        listener, sender = await asyncpg.connect(url), await asyncpg.connect(url)
        for connection in (listener, sender):
            stack.push_async_callback(connection.close)
        await listener.execute("LISTEN others")
        await listener.execute("BEGIN; SELECT 1")
        with refusing(asyncpg.PostgresError, "a notification in a full queue") as caught:
            for number in itertools.count():
                await sender.execute(f"SELECT pg_notify('others', '{number:07900}')")
        assert "too many notifications" in caught.text
        yield


async def test_a_full_queue_of_notifications_costs_only_the_wake_up():
    with postgres("max_notify_queue_pages=64") as server:
        url = server.database()
        async with (
            opening(url, node="node-a", timing=Timing(look_every=0.0)) as engine,
            opening(url) as elsewhere,
        ):
            await engine.has_changed()
            async with full_of_notifications(url):
                [logged] = await append(elsewhere, an_event())
                await add_user(elsewhere, "alice")
                await elsewhere.try_out()
                assert logged.seq == 1
                assert elsewhere.fault is None
                assert await engine.has_changed(), "the slow look was to find it"
            await soon(append(elsewhere, an_event()), "a write once there is room again")


REFUSE_COMMITS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE 'no' USING ERRCODE = '54000'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON ice_events INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def test_a_commit_that_the_server_refuses_is_undone_and_said_to_be(
    database_url, engine, postgres_server
):
    """No 'it is not known whether' where it is known."""
    name = database_url.rpartition("/")[2]
    postgres_server.sql(REFUSE_COMMITS, database=name)
    with refusing(StoreUnavailable, "a commit that is refused") as caught:
        await append(engine, an_event())
    assert "look before you try again" not in caught.text
    postgres_server.sql("DROP TRIGGER refuse ON ice_events", database=name)
    assert await append(engine, an_event()), "the transaction was to be rolled back"


# --- connections that break ----------------------------------------------------------------------


async def test_a_connection_that_broke_is_made_anew(engine, postgres_server):
    postgres_server.sql(BACKENDS)
    with contextlib.suppress(StoreUnavailable):
        await append(engine, an_event("refused, or written on a new connection"))
    await append(engine, an_event("after"))
    assert (await log(engine))[-1].event.action == "after"
    assert await engine.look_up("SELECT 1") == [(1,)]
    assert await engine.follow("SELECT 1") == [(1,)]
    assert engine.fault is None


async def test_a_unit_whose_connection_breaks_is_undone(engine, elsewhere, postgres_server):
    stopped = Stopped()
    task = asyncio.create_task(elsewhere.write(stopped))
    await soon(stopped.standing.wait(), "a unit half-way")
    postgres_server.sql(BACKENDS)
    stopped.on.set()
    with refusing(StoreUnavailable, "a unit whose connection broke"):
        await soon(task, "its end")
    assert [entry.event.action for entry in await log(engine)] == ["add-user"]
    assert await engine.fetch("SELECT role FROM users") == [("member",)]


async def test_a_commit_without_an_answer_is_not_called_undone(database_url, postgres_server):
    with relaying(("127.0.0.1", postgres_server.port)) as relay:
        url = database_url.replace(f":{postgres_server.port}/", f":{relay.address[1]}/")
        async with opening(url, node="node-a", timing=Timing(patience=1.0)) as engine:

            async def cut_off(transaction):
                events.append(transaction, [an_event()])
                relay.cut()

            with refusing(OutcomeUnknown, "a commit without an answer") as caught:
                await engine.write(cut_off)
            assert "look before you try again" in caught.text
            relay.mend()
            await append(engine, an_event())


async def test_a_server_that_restarts_is_found_again():
    with postgres() as server:
        async with opening(server.database(), node="node-a") as engine:
            server.stop()
            for read in (engine.fetch, engine.look_up, engine.follow):
                with refusing(StoreUnavailable, f"{read} without a server"):
                    await read("SELECT 1")
            with refusing(StoreUnavailable, "a write without a server"):
                await append(engine, an_event())
            assert engine.fault is not None
            server.start()
            await engine.try_out()
            assert engine.fault is None
            await append(engine, an_event())
            assert await engine.has_changed()


async def test_a_server_that_stands_still_is_given_up():
    with postgres() as server:
        timing = Timing(news_patience=0.3)
        async with opening(server.database(), node="node-a", timing=timing) as engine:
            await append(engine, an_event())
            with server.standing_still():
                with refusing(StoreUnavailable, "a query without an answer") as caught:
                    await engine.follow("SELECT 1")
                assert "no answer" in caught.text
            assert await engine.fetch("SELECT 1") == [(1,)]


# --- one gateway of a name --------------------------------------------------------------------------


async def test_a_command_sees_that_a_gateway_serves(database_url, engine):
    assert await engine.is_served()
    async with opening(database_url) as command:
        assert await command.is_served()


async def test_the_next_gateway_has_it_when_the_first_has_ended(database_url):
    for _ in range(2):
        async with opening(database_url, node="node-a") as engine:
            assert await engine.is_served()
    async with opening(database_url) as command:
        assert not await command.is_served()


async def test_a_gateway_that_was_cut_off_while_another_took_its_name_knows_nothing_any_more(
    database_url, postgres_server
):
    async with opening(database_url, node="node-a", timing=Timing(take_over=0.1)) as engine:
        await engine.has_changed()
        [(holder,)] = await engine.follow("SELECT pg_backend_pid()")
        postgres_server.sql(f"SELECT pg_terminate_backend({holder})")
        async with opening(database_url, node="node-a"):
            with refusing(StoreUnavailable, "the gateway that was cut off") as caught:
                await engine.follow("SELECT 1")
        assert "as the node node-a already" in caught.text
        assert await engine.follow("SELECT 1") == [(1,)], "it was to go on when the other has ended"


# --- what is not for us ----------------------------------------------------------------------------


async def refused(url, error=StoreRefused) -> str:
    with refusing(error, f"a gateway on {url}") as caught:
        async with opening(url, node="node-a"):
            pass
    return caught.text


async def test_a_wrong_password_is_told_without_showing_it(postgres_server):
    postgres_server.sql("CREATE ROLE locked LOGIN PASSWORD 'the right one'")
    hba = postgres_server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"host all locked all scram-sha-256\n{before}")
    postgres_server.sql("SELECT pg_reload_conf()")
    try:
        said = await refused(
            f"postgresql://locked:the-wrong-one@127.0.0.1:{postgres_server.port}/postgres"
        )
    finally:
        hba.write_text(before)
        postgres_server.sql("SELECT pg_reload_conf()", "DROP ROLE locked")
    assert "the password of database.url" in said
    assert "wrong-one" not in said


@pytest.mark.parametrize("rest", ["first?second", "first℀second", "first[second"])
async def test_no_piece_of_a_password_is_told_of_a_url_that_asyncpg_cannot_read(rest):
    said = await refused(f"postgresql://ice:{rest}@127.0.0.1:1/x", (StoreRefused, StoreUnavailable))
    assert "first" not in said
    assert "second" not in said


async def test_what_does_not_exist_is_named(postgres_server):
    assert "createdb" in await refused(postgres_server.url("nothing"))
    said = await refused("postgresql://ice@127.0.0.1:1/x", StoreUnavailable)
    assert "cannot be reached" in said
    assert "see the host" in await refused("postgresql://ice@host.invalid:1/x")


async def test_a_read_only_database_is_refused(postgres_server, database_url):
    name = database_url.rpartition("/")[2]
    postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "read-only" in await refused(database_url)


async def test_a_replica_is_refused():
    with (
        postgres("wal_level=replica", "max_wal_senders=2") as primary,
        primary.replica() as replica,
    ):
        assert "name the primary" in await refused(replica.url("postgres"))


async def test_a_database_of_another_program_is_refused(postgres_server, database_url):
    postgres_server.sql("CREATE TABLE users (id int)", database=database_url.rpartition("/")[2])
    assert "another program" in await refused(database_url)


async def test_a_schema_of_the_future_is_refused(postgres_server, database_url):
    async with opening(database_url):
        pass
    name = database_url.rpartition("/")[2]
    postgres_server.sql("UPDATE ice_schema SET version = version + 1", database=name)
    assert "upgrade the gateway" in await refused(database_url)


async def test_a_command_makes_no_tables_where_there_are_none(database_url):
    with refusing(StoreRefused, "a command on an empty database") as caught:
        async with opening(database_url, create=False):
            pass
    assert "no tables of a gateway" in caught.text
    with refusing(StoreRefused, "the same again, since nothing was made"):
        async with opening(database_url, create=False):
            pass


async def test_a_proxy_that_pools_transactions_is_refused(database_url, monkeypatch):
    """Two of our connections that are one session there."""
    connect = asyncpg.connect
    made = []

    async def lent(url, **options):
        if not made:
            made.append(await connect(url, **options))
        return made[0]

    monkeypatch.setattr(asyncpg, "connect", lent)
    assert "pools transactions" in await refused(database_url)


async def test_programs_that_start_together_make_the_tables_once(database_url):
    async def start():
        async with opening(database_url) as engine:
            return await engine.fetch("SELECT version FROM ice_schema")

    versions = await asyncio.gather(*(start() for _ in range(5)))
    assert versions == [versions[0]] * 5


FREE = (
    "node lastseen expireson refusedon duplicateon pausedon pausedby pauseduntil pausednote registeredon labels note"
    " version_key own_text session_text key_id accepts last_address last_version last_platform last_hostname"
)
"""Columns of an ICE that take any text."""


async def test_the_columns_of_ices_are_put_in_another_order_without_loss(database_url):
    """By migration 21, which makes the table anew."""
    values = {name: name for name in FREE.split()} | {
        "ice_name": "lab-1",
        "ice_type": "normal",
        "ice_token": "hash",
        "status": "provisioned",
        "provisionedto": "alice",
        "provisionedon": "then",
        "generation": 3,
        "last_opened": 1.5,
        "pausedbyadmin": 1,
    }
    row = "SELECT to_jsonb(t)::text FROM ice_tokens t"
    older = await asyncpg.connect(database_url)
    for number, sql in released():
        if number < 21:
            await older.execute(sql)
    await older.execute("INSERT INTO ice_schema VALUES (20)")
    await older.execute(
        "INSERT INTO users (name, name_folded, role, createdon) VALUES ('alice', 'alice', 'member', '')"
    )
    await older.execute(
        "INSERT INTO ice_tokens SELECT * FROM jsonb_populate_record(NULL::ice_tokens, $1)",
        json.dumps(values),
    )
    before = await older.fetchval(row)
    await older.close()
    async with opening(database_url) as engine:
        assert await engine.fetch(row) == [(before,)]
        with refusing(asyncpg.ForeignKeyViolationError, "a name that another table refers to"):
            await engine.write(
                lambda t: t.run(
                    "INSERT INTO ice_sessions (session, ice_name, generation, node, since, address)"
                    " VALUES ('s', 'lab-2', 1, 'node-a', '', '')"
                )
            )


async def test_a_sweep_reads_the_clock_once_however_much_there_is_to_look_at(engine):
    """It was read for each proof, by each node every few seconds: a third of a core with 100,000 ICEs."""
    read = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'ice_clock'"

    async def unit(transaction):
        await proofs.use(transaction, [f"proof {number}" for number in range(50)])
        await nodes.sweep(transaction)
        return await transaction.fetch(read)

    [(scans,)] = await engine.write(unit)
    assert scans == 2  # to store the proofs, and to find those whose time is over
    assert len(await engine.fetch("SELECT digest FROM ice_proofs")) == 50
