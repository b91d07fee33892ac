"""Connections to PostgreSQL: a failover, servers that are silent, and what each of them leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from gateway.store.engine import StoreUnavailable
from tests.contract.domain import an_event, append, log, refusing, soon
from tests.contract.test_postgres import opening
from tests.support.postgres import postgres

REPLICATING = ("wal_level=replica", "max_wal_senders=4")


@pytest.fixture
async def engine(database_url):
    async with opening(database_url, node="node-a") as opened:
        yield opened


async def used(engine) -> list[int]:
    """Use each of its connections; the servers' processes."""
    pids = []
    for line in engine._lines:
        [(pid,)] = await line.fetch("SELECT pg_backend_pid()", ())
        pids.append(pid)
    return pids


# --- a server that is no primary any more -----------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "state"),
    [*((number, "25006") for number in range(8)), *((0, f"57P0{digit}") for digit in range(1, 6))],
)
async def test_a_server_that_fails_over_is_left_on_every_connection(engine, number, state):
    """Whichever of them learns of it."""
    before = await used(engine)
    assert len(before) == 8, "the number of an engine's connections has changed: change the range"
    with refusing(StoreUnavailable, f"a connection that is told {state}"):
        await engine._lines[number].fetch(
            f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$", ()
        )
    assert not {*before} & {*await used(engine)}
    assert engine.fault is None


async def test_a_writer_whose_server_became_read_only_dials_anew(engine):
    line = engine._writes._line
    await line.fetch("SET default_transaction_read_only = on", ())
    with refusing(StoreUnavailable, "a write on a server that is read-only"):
        await append(engine, an_event())
    await append(engine, an_event("after"))
    assert [entry.event.action for entry in await log(engine)] == ["after"]
    assert engine.fault is None


async def written(engine):
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await append(engine, an_event("after"))
        await asyncio.sleep(0.01)


def with_hosts(*servers) -> str:
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://ice@{hosts}/postgres?target_session_attrs=primary"


async def test_a_failover_is_followed_and_the_old_primary_is_not_spoken_to_again():
    with postgres(*REPLICATING) as first, first.replica() as second:
        async with opening(with_hosts(second, first), node="node-a") as engine:
            await append(engine, an_event("before"))
            await soon(asyncio.to_thread(first.until_replayed, second), "the replica's copy")
            first.stop("immediate")
            with refusing(StoreUnavailable, "a write while there is no primary"):
                await append(engine, an_event("lost"))
            second.promote()
            await soon(written(engine), "a write on the new primary")
            first.start_as_standby()
            await used(engine)
            for line in engine._lines:
                line.cut()
            for line in engine._lines:
                assert await line.fetch("SELECT pg_is_in_recovery()", ()) == [(False,)]
            assert [entry.event.action for entry in await log(engine)] == ["before", "after"]


async def test_an_address_at_which_there_is_a_replica_now_is_not_read_from():
    """An old answer of it would admit an ICE that was deregistered since."""
    with postgres(*REPLICATING) as server:
        async with opening(server.database(), node="node-a") as engine:
            await append(engine, an_event("before"))
            server.stop()
            server.start_as_standby()
            for line in engine._lines:
                line.cut()
            for read in (engine.fetch, engine.look_up, engine.follow):
                with refusing(StoreUnavailable, f"{read} at a replica") as caught:
                    await read("SELECT 1")
                assert "read-only replica" in caught.text
            server.promote()
            await soon(written(engine), "a write once it is the primary")
            assert await engine.follow("SELECT 1") == [(1,)]


# --- a host that is silent -----------------------------------------------------------------------------


async def test_a_host_that_is_silent_keeps_nobody_waiting(database_url):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        port = silent.getsockname()[1]
        url = database_url.replace("@", f"@127.0.0.1:{port},")
        async with opening(url, node="node-a") as engine:
            await soon(append(engine, an_event()), "a write at the other host")
