"""Several gateways on one database: what is done at one counts at all of them, at once or told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import timedelta

import pytest

from gateway.core.times import utc_now
from gateway.node.node import NodeState
from gateway.store import sessions
from gateway.store.engine import StoreRefused, StoreUnavailable
from gateway.store.nodes import Nodes
from tests.contract.domain import refusing, soon
from tests.support.harness import expect_refused, harness
from tests.support.ice import Nomad
from tests.support.ice import until as until_so
from tests.support.work import (
    accept,
    ask,
    asked,
    expect_run,
    finished,
    greeted,
    in_state,
    log,
    progress,
    show,
    take,
)

LAPSE = 10.0
"""Seconds within which a lease of 2 s has run out."""


async def until(holds, what: str):
    await soon(until_so(holds), what)


@contextlib.contextmanager
def deaf(node):
    """Cut a node off from its database, as a network does: what it asks is given up after a while."""
    engine = node.gateway.engine

    async def nothing(*_):
        await asyncio.sleep(0.1)
        raise StoreUnavailable("no answer")

    kept = {name: getattr(engine, name) for name in ("follow", "look_up", "fetch", "write")}
    try:
        for name in kept:
            setattr(engine, name, nothing)
        node.gateway.node.log._events._fetch = nothing
        yield
    finally:
        for name, method in kept.items():
            setattr(engine, name, method)
        node.gateway.node.log._events._fetch = kept["follow"]


# --- dropped live, everywhere ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "code"), [("deregister", 4101), ("reregister", 4102), ("disconnect", 4201)]
)
async def test_what_is_done_at_one_drops_the_session_at_another(cluster, action, code):
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    done = await cluster.a.act("lab-1", action)
    await connection.expect_dropped(code)
    [drop] = done["dropped"]
    assert (drop["session"], drop["node"]) == (connection.welcome["session"], "node-b")
    assert drop["code"] == code
    assert 0 < drop["elapsed_ms"] < 2000
    assert done["unconfirmed"] == []


async def test_a_bulk_action_is_confirmed_once_for_all(cluster):
    connections = {}
    for number, node in enumerate((cluster.a, cluster.b, cluster.c)):
        ice = await cluster.ice(f"lab-{number}")
        connections[f"lab-{number}"] = await ice.at(node).connect()
    body = {"action": "deregister", "ice_names": list(connections)}
    answer = await cluster.b.admin.post("/ices/bulk", body)
    assert answer.json["unconfirmed"] == []
    assert {drop["node"] for drop in answer.json["dropped"]} == {"node-a", "node-b", "node-c"}
    for connection in connections.values():
        await connection.expect_dropped(4101)


async def test_a_command_drops_wherever_the_session_is(cluster):
    ice = await cluster.ice()
    connection = await ice.at(cluster.c).connect()
    await cluster.a.command("ices", "deregister", "lab-1")
    await connection.expect_dropped(4101)


async def test_a_deregistered_ice_is_refused_everywhere(cluster):
    ice = await cluster.ice()
    await (await ice.at(cluster.a).connect()).leave()
    await cluster.a.act("lab-1", "deregister")
    for node in (cluster.a, cluster.b, cluster.c):
        assert (await ice.at(node).refused()).code == "deregistered"


async def test_a_lost_notification_loses_no_drop(cluster, monkeypatch):
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    watcher = cluster.b.gateway.engine._watcher
    async with watcher.lock:
        await watcher._connection.execute("UNLISTEN *")
    done = await cluster.a.act("lab-1", "deregister")
    await connection.expect_dropped(4101)
    assert done["unconfirmed"] == []


async def test_clocks_that_are_apart_change_nothing(place):
    """A node whose clock is an hour late, and another whose is an hour early."""
    late, early = (timedelta(hours=sign) for sign in (-1, 1))
    async with (
        place.join("late", clock=lambda: utc_now() + late) as a,
        place.join("early", clock=lambda: utc_now() + early) as b,
    ):
        provisioned = await a.provision()
        ice = Nomad(a.url, provisioned.token)
        refused = await ice.at(b).refused()
        assert refused.code == "use-dpop-nonce", "the ICE's own clock seems wrong to that node"
        connection = await ice.at(b).connect(nonce=refused.headers["DPoP-Nonce"])
        done = await a.act("lab-1", "deregister")
        await connection.expect_dropped(4101)
        [drop] = done["dropped"]
        assert drop["elapsed_ms"] < 2000, "the clock of the admin's node alone was to count"
        await connection.close()


# --- leases ----------------------------------------------------------------------------------------


async def test_a_node_that_does_not_answer_is_named_and_ends_by_its_lease(
    short_lease, cluster, monkeypatch
):
    monkeypatch.setattr(cluster.a.gateway.node.revocations, "timeout", 0.5)
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    with deaf(cluster.b):
        done = await cluster.a.act("lab-1", "deregister")
        assert (done["dropped"], done["unconfirmed"]) == ([], ["node-b"])
        await soon(connection.expect_dropped(1012), "a session that outlives no lease")
        refused = await ice.at(cluster.b).refused()
        assert (refused.status, refused.code) == (503, "store-unavailable")

        # Nobody waits any more for one whose lease has run out.
        await until_gone(cluster, "node-b")
        other = await cluster.ice("lab-2")
        await (await other.at(cluster.c).connect()).leave()
        assert (await cluster.a.act("lab-2", "deregister"))["unconfirmed"] == []


async def until_gone(cluster, name):
    async def look():
        while any(  # noqa: ASYNC110 - the clocks of nodes have no event
            node.name == name and not node.gone
            for node in await Nodes(cluster.a.gateway.engine.fetch).all()
        ):
            await asyncio.sleep(0.05)

    await soon(look(), f"the end of the lease of {name}")


async def test_a_node_that_was_cut_off_comes_back(short_lease, cluster):
    ice = await cluster.ice()
    with deaf(cluster.b):
        lease = cluster.b.gateway.node.lease
        await until(lambda: not lease.valid, "the end of the lease")
        answer = await cluster.b.session.get(f"{cluster.b.url}/readyz")
        assert answer.status == 503
    await until(lambda: lease.valid, "a lease again")
    connection = await ice.at(cluster.b).connect()
    assert (await cluster.a.act("lab-1", "deregister"))["unconfirmed"] == []
    await connection.expect_dropped(4101)


async def test_nothing_is_acted_on_without_a_lease(cluster, monkeypatch):
    ice = await cluster.ice()
    connection = await greeted(ice.at(cluster.b))
    operation = await asked(cluster.a.admin)
    await take(connection)
    engine = cluster.b.gateway.engine
    write = engine.write

    async def renewing_nothing(unit):
        if "renew" in repr(unit):
            raise StoreUnavailable("no answer")
        return await write(unit)

    monkeypatch.setattr(engine, "write", renewing_nothing)
    cluster.b.gateway.node.lease.until = 0.0
    connection.send(
        {
            "jsonrpc": "2.0",
            "method": "operation.finish",
            "id": 1,
            "params": {"id": operation, "outcome": "succeeded"},
        }
    )
    await connection.expect_dropped(1012)
    assert (await show(cluster.a.admin, operation))["state"] in ("sent", "running")


async def test_a_node_that_ends_takes_itself_out(place, cluster):
    async with place.join("node-d"):
        names = [node.name for node in await Nodes(cluster.a.gateway.engine.fetch).all()]
        assert names == ["node-a", "node-b", "node-c", "node-d"]
    names = [node.name for node in await Nodes(cluster.a.gateway.engine.fetch).all()]
    assert names == ["node-a", "node-b", "node-c"]


# --- who does not fit ------------------------------------------------------------------------------


async def test_a_second_node_of_a_name_is_refused(place, cluster):
    with refusing(StoreRefused, "a second node-a") as caught:
        async with place.join("node-a"):
            pass
    assert "set node.name to another name" in caught.text


async def test_a_node_with_other_keys_is_refused(place, cluster):
    others = place.folder / "others.json"
    with refusing(StoreRefused, "a node without the keys of the others") as caught:
        async with place.join("node-d", tokens__key_file=str(others)):
            pass
    assert "copy its key file to this machine" in caught.text
    assert not others.exists(), "no keys were to be made"


async def test_a_node_of_another_version_is_refused(place, cluster):
    other = "UPDATE ice_nodes SET version = '9.9.9' WHERE name = 'node-b'"
    await cluster.a.gateway.engine.write(lambda transaction: transaction.run(other))
    with refusing(StoreRefused, "a node of another version") as caught:
        async with place.join("node-d"):
            pass
    assert "the node node-b runs version 9.9.9" in caught.text


# --- one ICE, one session --------------------------------------------------------------------------


async def test_who_comes_to_another_node_is_superseded_at_the_first(cluster):
    ice = await cluster.ice()
    first = await ice.at(cluster.a).connect()
    await cluster.a.settled()
    second = await ice.at(cluster.b).connect()
    await first.expect_dropped(4103)
    await second.round_trip()
    answer = await cluster.c.eventually(
        "/ices/lab-1", lambda answer: (answer.json["connection"] or {}).get("node") == "node-b"
    )
    assert answer.json["connection"]["session"] == second.welcome["session"]


async def come_without_news(transaction, name):
    """A session at B, of whose news nobody hears: as if a higher number had been read before."""
    connection = sessions.Connection(f"{name} elsewhere", "node-b", utc_now(), "192.0.2.7")
    later = sessions.Opened(name, 1, connection, 1e9)
    await sessions.record(transaction, [later], (), (), ())


async def test_who_came_without_news_is_superseded_also_if_the_commit_came_late(
    often_swept, cluster
):
    one, *others = [await cluster.ice(f"lab-{number}") for number in range(4)]
    first, *firsts = [await ice.at(cluster.a).connect() for ice in (one, *others)]
    await cluster.a.settled()
    numbered, committing = asyncio.Event(), asyncio.Event()

    async def late(transaction):
        await come_without_news(transaction, "lab-0")
        numbered.set()
        await committing.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.b.gateway.engine.write(late))
        await soon(numbered.wait(), "a session's number")
        # A has looked at higher numbers before this one can be seen.
        for number, connection in enumerate(firsts, 1):
            name = f"lab-{number}"
            await cluster.c.gateway.engine.write(
                lambda transaction, name=name: come_without_news(transaction, name)
            )
            await connection.expect_dropped(4103)
        committing.set()
        await first.expect_dropped(4103)


async def test_a_proof_is_good_once_in_all_of_them(cluster):
    ice = await cluster.ice()
    headers = ice.at(cluster.a).headers()
    await ice.connect(headers)
    for node in (cluster.b, cluster.c, cluster.a):
        refused = await ice.at(node).refused(headers)
        assert (refused.code, refused.problem["retry"]) == ("proof-invalid", True)
        assert "used before" in refused.problem["detail"]


async def test_a_nonce_of_one_is_good_at_all_of_them_and_its_proof_once(cluster):
    """An ICE whose clock is wrong, behind a balancer that sends it elsewhere each time."""
    ice = await cluster.ice()
    refused = await ice.at(cluster.a).refused(iat=time.time() - 3600)
    assert refused.code == "use-dpop-nonce"
    nonce = refused.headers["DPoP-Nonce"]
    headers = ice.at(cluster.b).headers(iat=time.time() - 3600, nonce=nonce)
    connection = await ice.connect(headers)
    again = await ice.at(cluster.c).refused(headers)
    assert "used before" in again.problem["detail"]
    await connection.leave()


async def test_who_looks_at_one_node_sees_who_comes_and_goes_at_another(cluster):
    ice = await cluster.ice()
    headers = {"Authorization": f"Bearer {cluster.a.admin.token}"}
    url = f"{cluster.a.url}/admin/api/v1/events/stream"
    async with cluster.a.session.get(url, headers=headers) as stream:
        connection = await ice.at(cluster.b).connect()
        told = await soon(presence_of(stream), "news of the arrival")
        assert (told["ice_name"], told["connection"]["node"]) == ("lab-1", "node-b")
        await connection.leave()
        told = await soon(presence_of(stream), "news of the departure")
        assert told == {"ice_name": "lab-1", "connection": None}


async def test_who_looks_at_one_node_sees_who_is_refused_at_any(cluster):
    ice = await cluster.ice()
    await cluster.a.act("lab-1", "reprovision")
    headers = {"Authorization": f"Bearer {cluster.a.admin.token}"}
    url = f"{cluster.a.url}/admin/api/v1/events/stream"
    async with cluster.a.session.get(url, headers=headers) as stream:
        for count, node in enumerate((cluster.b, cluster.a, cluster.b), 1):
            await ice.at(node).refused()
            told = await soon(presence_of(stream, b"refused"), "news of the refusal")
            assert (told["ice_name"], told["code"]) == ("lab-1", "token-replaced")
            assert told["count"] == count, "each refusal was to be told once"


async def test_every_node_and_command_says_the_same_of_when_an_ice_was_seen(place, cluster):
    ice = await cluster.ice()
    async with place.join("node-d") as dying:
        await ice.at(dying).connect()
        for node in (cluster.a, dying):
            await node.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
        await dying.gateway.node.presence.flush(confirm=True)
        shown = {
            (await node.admin.get("/ices/lab-1")).json["lastseen"] for node in (cluster.a, dying)
        }
        shown |= {
            json.loads((await cluster.a.command("ices", "show", "lab-1", "--json")).stdout)[
                "lastseen"
            ]
        }
        assert len(shown) == 1
    left = await cluster.a.eventually(
        "/ices/lab-1", lambda answer: answer.json["connection"] is None
    )
    assert left.json["lastseen"] >= shown.pop()


async def presence_of(stream, kind=b"presence"):
    """The next news of who is connected, or of another kind."""
    event = b""
    async for line in stream.content:
        if line.startswith(b"event:"):
            event = line[6:].strip()
        elif line.startswith(b"data:") and event == kind:
            return json.loads(line[5:])
    raise AssertionError("the stream ended, news was expected")


# --- operations ------------------------------------------------------------------------------------


async def test_an_operation_asked_of_one_runs_at_another_and_comes_back(cluster):
    ice = await cluster.ice()
    connection = await greeted(ice.at(cluster.b))
    waiting = asyncio.create_task(ask(cluster.a.admin, query="?wait=10"))
    operation = await take(connection)
    progress(connection, operation, fraction=0.5, message="half")
    await in_state(cluster.b, operation, "running")
    await finished(connection, operation, result={"ok": True})
    answer = await soon(waiting, "the answer of the node that was asked")
    assert (answer.status, answer.json["state"]) == (200, "succeeded")
    assert answer.json["result"] == {"ok": True}


async def test_an_operation_is_streamed_through_another_node(cluster):
    ice = await cluster.ice()
    connection = await greeted(ice.at(cluster.b))
    operation = await asked(cluster.a.admin)
    headers = {"Authorization": f"Bearer {cluster.a.admin.token}"}
    url = f"{cluster.a.url}/admin/api/v1/operations/{operation}/stream"
    async with cluster.a.session.get(url, headers=headers) as stream:
        assert stream.status == 200
        await take(connection)
        log(connection, operation, "a line\n")
        progress(connection, operation, fraction=0.25, message="a quarter")
        told = []
        async for line in stream.content:
            if line.startswith(b"data:"):
                told.append(json.loads(line[5:]))
                if told[-1].get("message") == "a quarter":
                    log(connection, operation, "last")
                    await finished(connection, operation)
                if "result" in told[-1]:
                    break
    assert told[-1]["state"] == "succeeded"
    assert any(one.get("fraction") == 0.25 for one in told)
    assert "".join(one.get("text", "") for one in told) == "a line\nlast"
    assert "text" in told[-3], "the end of the log comes before the last state"


async def test_an_operation_outlives_the_node_that_sent_it(place, cluster):
    """B dies in the middle; the ICE comes back at C, says what it works on, and finishes it there."""
    ice = await cluster.ice()
    async with place.join("node-d") as dying:
        connection = await greeted(ice.at(dying))
        operation = await asked(cluster.a.admin)
        await take(connection)
    back = await greeted(ice.at(cluster.c), operation)
    await in_state(cluster.c, operation, "running")
    following = await asked(cluster.a.admin)
    await finished(back, operation, result={"by": "c"})
    assert (await show(cluster.a.admin, operation))["result"] == {"by": "c"}
    run = await expect_run(back)
    assert run["id"] == following, "each was to be sent once"
    accept(back, following)
    await finished(back, following)
    assert (await show(cluster.b.admin, following))["state"] == "succeeded"


# --- the command -----------------------------------------------------------------------------------


async def test_nodes_are_listed_drained_and_resumed(cluster):
    listed = json.loads((await cluster.a.command("nodes", "list", "--json")).stdout)
    assert [(node["name"], node["state"]) for node in listed] == [
        (f"node-{name}", "serves") for name in "abc"
    ]
    assert all(0 < node["lease_left"] <= 20 for node in listed)
    assert "node-b" in (await cluster.a.command("nodes", "list")).stdout

    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    said = await cluster.a.command("nodes", "drain", "node-b")
    assert "node-b is drained: its ICEs go to the other nodes" in said.stdout
    await connection.expect_dropped(1012)
    assert "already" in (await cluster.a.command("nodes", "drain", "node-b")).stdout
    refused = await ice.at(cluster.b).refused()
    assert (refused.status, refused.code) == (503, "draining")
    ready = await cluster.b.session.get(f"{cluster.b.url}/readyz")
    assert ready.status == 503
    assert "nodes resume node-b" in await ready.text()
    await (await ice.at(cluster.c).connect()).leave()

    await cluster.a.command("nodes", "resume", "node-b")
    node = cluster.b.gateway.node
    await until(lambda: node.state is NodeState.SERVING, "a node that goes on")
    await ice.at(cluster.b).connect()
    said = await cluster.a.command("nodes", "drain", "node-x", status=1)
    assert "There is no node node-x" in said.stderr
    actions = [event["action"] for event in (await cluster.a.admin.get("/events")).json["items"]]
    assert actions.count("drain-node") == actions.count("resume-node") == 1


# --- the server ------------------------------------------------------------------------------------


async def test_sessions_outlive_a_restart_of_the_server(tmp_path, monkeypatch):
    from tests.support.postgres import postgres  # noqa: PLC0415 - a server of its own, to stop

    with postgres() as server:
        options = {
            "database__url": server.database(),
            "tokens__key_file": str(tmp_path / "k.json"),
            "node__lease": "20s",
        }
        async with (
            harness(tmp_path, **options, node__name="a") as a,
            harness(tmp_path, **options, node__name="b") as b,
        ):
            provisioned = await a.provision()
            connection = await provisioned.connect()
            server.stop()
            tails = (a.gateway.node.log, b.gateway.node.log)
            await until(lambda: not any(tail.current for tail in tails), "notice of the loss")
            await connection.round_trip()
            expect_refused(await a.admin.get("/ices"), 503, "store-unavailable")
            with contextlib.suppress(StoreUnavailable):
                server.start()
            await until(lambda: all(tail.current for tail in tails), "tails that are current")
            await connection.round_trip()
            async with asyncio.timeout(LAPSE):
                while (await b.admin.post("/ices/lab-1/deregister")).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await connection.expect_dropped(4101)
