"""The wall clock of the database's server is stepped: nothing depends on it.

Here its functions are shadowed by ones that can be stepped; `make torture` steps the clock of a real server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest

from tests.contract.domain import soon

_SHADOWS = ("clock_timestamp", "now", "statement_timestamp", "transaction_timestamp")


@pytest.fixture
def step(postgres_server, database_url):
    """Steps the clock of the database, whose nodes are yet to come, by so many seconds in all."""
    name = database_url.rpartition("/")[2]

    def sql(*statements):
        postgres_server.sql(*statements, database=name)

    sql(
        "CREATE SCHEMA stepped",
        "CREATE SEQUENCE stepped.seconds MINVALUE -100000",
        "CREATE FUNCTION stepped.by() RETURNS interval LANGUAGE sql VOLATILE AS"
        " 'SELECT last_value * interval ''1 s'' FROM stepped.seconds'",
        "SELECT setval('stepped.seconds', 0)",
        *(
            f"CREATE FUNCTION stepped.{one}() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
            f" 'VALUES (pg_catalog.{one}() + stepped.by())'"
            for one in _SHADOWS
        ),
        f"ALTER DATABASE {name} SET search_path = public, stepped, pg_catalog",
    )
    yield lambda seconds: asyncio.to_thread(sql, f"SELECT setval('stepped.seconds', {seconds})")
    sql("DROP SCHEMA stepped CASCADE")


@pytest.fixture(params=["postgresql"])
def place(step, place):
    """The server, whose clock can be stepped."""
    return place


@pytest.fixture
def swept(often_swept, cluster, monkeypatch):
    """Waits until a node has looked at its peers twice from now on."""
    looks = asyncio.Condition()
    counts: Counter[str] = Counter()

    def watch(node):
        name, engine = node.gateway.node.name, node.gateway.engine
        write = engine.write

        async def looked(unit):
            done = await write(unit)
            if "sweep" in repr(unit):
                async with looks:
                    counts[name] += 1
                    looks.notify_all()
            return done

        monkeypatch.setattr(engine, "write", looked)

    for node in (cluster.a, cluster.b, cluster.c):
        watch(node)

    async def wait(name):
        async with looks:
            enough = counts[name] + 2
            await soon(looks.wait_for(lambda: counts[name] >= enough), f"looks of {name}")

    return wait


@pytest.mark.parametrize(
    "seconds", [-3600, *(pytest.param(one, marks=pytest.mark.long) for one in (-5, 3600))]
)
async def test_the_session_that_came_last_stays_whatever_the_servers_clock_says(
    swept, cluster, step, seconds
):
    ice = await cluster.ice()
    first = await ice.at(cluster.a).connect()
    await cluster.a.settled()
    await step(seconds)
    second = await ice.at(cluster.b).connect()
    await first.expect_dropped(4103)
    await cluster.b.settled()
    await swept("node-a")
    await swept("node-b")
    await second.round_trip()


@pytest.mark.parametrize("seconds", [3600, pytest.param(-3600, marks=pytest.mark.long)])
async def test_nobody_is_gone_because_the_servers_clock_is_stepped(swept, cluster, step, seconds):
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    await cluster.b.settled()
    await step(seconds)
    await swept("node-a")
    await swept("node-c")
    listed = json.loads((await cluster.a.command("nodes", "list", "--json")).stdout)
    assert [node["state"] for node in listed] == ["serves"] * 3
    row = (await cluster.a.admin.get("/ices/lab-1")).json
    assert row["connection"] is not None
    assert cluster.b.gateway.node.lease.valid
    done = await cluster.a.act("lab-1", "deregister")
    assert done["unconfirmed"] == []
    assert [drop["node"] for drop in done["dropped"]] == ["node-b"]
    await connection.expect_dropped(4101)


async def test_a_nonce_outlives_a_step_and_a_used_proof_is_not_forgotten(swept, cluster, step):
    ice = await cluster.ice()
    early = time.time() - 3600
    refused = await ice.at(cluster.a).refused(iat=early)
    nonce = refused.headers["DPoP-Nonce"]
    await step(3600)
    for name in ("node-a", "node-b", "node-c"):
        await swept(name)
    headers = ice.at(cluster.b).headers(iat=early, nonce=nonce)
    await ice.connect(headers)
    await step(7200)
    for name in ("node-a", "node-b", "node-c"):
        await swept(name)
    again = await ice.at(cluster.c).refused(headers)
    assert "used before" in again.problem["detail"]
