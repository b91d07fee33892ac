"""Connections to PostgreSQL: a failover, servers that are silent, and what each of them leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from gateway.store import nodes
from gateway.store.engine import StoreRefusedForNow, StoreUnavailable
from gateway.store.postgres.connection import Timing
from gateway.store.postgres.engine import open_postgres
from tests.contract.domain import NOW, an_event, append, log, refusing, soon
from tests.contract.test_postgres import opening
from tests.support.postgres import postgres
from tests.support.relay import relaying

REPLICATING = ("wal_level=replica", "max_wal_senders=4")


@pytest.fixture
async def engine(database_url):
    async with opening(database_url, node="node-a") as opened:
        yield opened


async def pids(links) -> list[int]:
    """Use each of these connections; the server's processes."""
    return [(await link.fetch("SELECT pg_backend_pid()", ()))[0][0] for link in links]


async def used(engine) -> list[int]:
    """Use each of its connections; the server's processes."""
    return await pids(engine.links)


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
        await engine.links[number].fetch(
            f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$", ()
        )
    assert not {*before} & {*await used(engine)}
    assert engine.fault is None


async def test_a_writer_whose_server_became_read_only_dials_anew(engine):
    writer = engine.links[-2]
    await writer.fetch("SET default_transaction_read_only = on", ())
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
            for link in engine.links:
                link.drop()
            for link in engine.links:
                assert await link.fetch("SELECT pg_is_in_recovery()", ()) == [(False,)]
            assert [entry.event.action for entry in await log(engine)] == ["before", "after"]


async def test_an_address_at_which_there_is_a_replica_now_is_not_read_from():
    """An old answer of it would admit an ICE that was deregistered since."""
    with postgres(*REPLICATING) as server:
        async with opening(server.database(), node="node-a") as engine:
            await append(engine, an_event("before"))
            server.stop()
            server.start_as_standby()
            for link in engine.links:
                link.drop()
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


# --- peers that vanish -----------------------------------------------------------------------------------


async def test_both_ends_of_every_connection_give_up_a_peer_that_vanished(engine):
    """Within the 20 s that are less than the lease of 30 s, instead of the two hours of TCP."""
    await used(engine)
    for link in engine.links:
        there = {
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "2",
            "tcp_user_timeout": "20000",
            "idle_in_transaction_session_timeout": "5s",
            "statement_timeout": "10s",
        }
        for name, value in there.items():
            assert await link.fetch(f"SHOW {name}", ()) == [(value,)], name
        here = (await link.connected())._transport.get_extra_info("socket")
        assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name, number in (
            ("TCP_KEEPIDLE", 10),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 2),
            ("TCP_USER_TIMEOUT", 20_000),
        ):
            assert here.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == number, name


@pytest.fixture
def relay(postgres_server):
    with relaying(("127.0.0.1", postgres_server.port)) as made:
        yield made


def through(relay, url) -> str:
    host, port = relay.address
    return f"postgresql://ice@{host}:{port}/{url.rpartition('/')[2]}"


async def test_a_gateway_whose_connections_were_forgotten_takes_its_own_name_again(
    database_url, relay
):
    """The server still holds the name for the connection that is gone."""
    timing = Timing(news_patience=0.5)
    async with opening(through(relay, database_url), node="node-a", timing=timing) as engine:
        await engine.follow("SELECT 1")
        [(ghost,)] = await engine.follow("SELECT pg_backend_pid()")
        relay.forget()
        with refusing(StoreUnavailable, "a query over a link that was forgotten"):
            await engine.follow("SELECT 1")
        [(pid,)] = await soon(engine.follow("SELECT pg_backend_pid()"), "the name again")
        assert pid != ghost
        ended = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND locktype = 'advisory'"
        assert await engine.follow(ended, ghost) == [(0,)], "the ghost was to hold nothing"


async def test_what_one_connection_finds_forgotten_the_others_do_not_wait_for(database_url, relay):
    """Each would wait for 10 s otherwise, one after the other, since a silent line breaks no connection."""
    timing = Timing(news_patience=0.5)
    async with opening(through(relay, database_url), node="node-a", timing=timing) as engine:
        before = await used(engine)
        relay.forget()
        with refusing(StoreUnavailable, "a query over a link that was forgotten"):
            await engine.follow("SELECT 1")
        others = [link for link in engine.links if link.stale]
        assert len(others) == len(engine.links) - 1
        async with asyncio.timeout(timing.patience):
            assert not {*before} & {*await pids(others)}


async def test_a_slow_query_costs_no_connection_that_answers_meanwhile(database_url):
    timing = Timing(news_patience=0.5)
    async with opening(database_url, node="node-a", timing=timing) as engine:
        await engine.follow("SELECT set_config('statement_timeout', '0', false)")
        slow = asyncio.create_task(engine.follow("SELECT pg_sleep(60)"))
        await asyncio.sleep(0)
        busy = next(link for link in engine.links if link.lock.locked())
        others = [link for link in engine.links if link is not busy]
        before = await pids(others)
        with refusing(StoreUnavailable, "a query without an answer in time"):
            await slow
        assert await pids(others) == before


async def joined(engine, lease):
    node = nodes.NodeRecord(
        "first", "node-a", "0", "", "", NOW, seen_seq=0, draining=False, lease=lease
    )
    await engine.write(lambda transaction: nodes.join(transaction, node))


async def renew(engine):
    await engine.write(
        lambda transaction: nodes.renew(transaction, "first", seen_seq=0, keys="", dropped=[])
    )


SOON = Timing(take_over=0.1, look_again=0.05)


async def test_a_gateway_takes_over_from_one_that_vanished_within_its_lease(database_url, relay):
    url = through(relay, database_url)
    async with opening(url, node="node-a", timing=SOON) as vanished:
        await joined(vanished, 0.5)
        relay.cut()
        async with opening(database_url, node="node-a", timing=SOON) as successor:
            assert await successor.is_served()
            assert await successor.follow("SELECT 1") == [(1,)]
            relay.mend()
            with refusing(StoreUnavailable, "the one that vanished, and comes back"):
                for _ in range(2):  # it hears of its end first
                    await vanished.follow("SELECT 1")


async def test_a_gateway_that_renews_its_lease_is_not_displaced(database_url, engine):
    await joined(engine, 3600.0)
    waits = asyncio.Event()

    def tell(sentence):
        assert "the node node-a may have vanished" in sentence
        waits.set()

    async def start():
        async with open_postgres(database_url, node="node-a", timing=SOON, tell=tell):
            pass

    starting = asyncio.create_task(start())
    await soon(waits.wait(), "a gateway that has looked at the node, and waits")
    await renew(engine)
    with refusing(StoreRefusedForNow, "a second gateway") as caught:
        await soon(starting, "its refusal")
    assert "as the node node-a already" in caught.text
    assert await engine.follow("SELECT 1") == [(1,)]
