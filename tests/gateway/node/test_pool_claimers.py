"""How the operations of pools come to ICEs, and what is said while they wait (contract sections 9 and 11)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gateway.app import Tuning
from gateway.core.roles import Role
from gateway.core.times import to_text, utc_now
from gateway.node.node import NodeLimits
from tests.support.ice import until
from tests.support.work import (
    ask,
    asked,
    connected,
    expect_cancel,
    expect_run,
    finished,
    greeted,
    in_state,
    show,
    take,
)


async def member(running, name, *pools, kind="normal"):
    """A connected ICE that belongs to these pools."""
    connection = await connected(running, name, kind)
    await running.label(name, **dict.fromkeys(pools or ["lab"], "yes"))
    return connection


async def for_pool(running, pool="lab", kind="execute", api=None, **body):
    answer = await (api or running.admin).post(f"/pools/{pool}/operations", {"kind": kind, **body})
    assert answer.status == 202, answer
    assert answer.json["pool"] == pool
    return answer.json["id"]


async def waits(running, operation, why):
    answer = await running.eventually(
        f"/operations/{operation}", lambda answer: answer.json["waits"] == why
    )
    return answer.json


async def test_an_operation_goes_to_one_ice_of_its_pool(running):
    await running.make_pool("lab", {"lab": "yes"})
    first, second = await member(running, "lab-1"), await member(running, "lab-2")
    other = await connected(running, "lab-3")
    one, two = await for_pool(running), await for_pool(running)
    taken = {await take(first), await take(second)}
    assert taken == {one, two}
    shown = await show(running.admin, one)
    assert (shown["pool"], shown["waits"]) == ("lab", None)
    assert shown["ice_name"] in ("lab-1", "lab-2")
    three = await for_pool(running)
    await waits(running, three, "all-busy")
    mine = (await show(running.admin, one))["ice_name"]
    worker, beside = (first, second) if mine == "lab-1" else (second, first)
    await finished(worker, one)
    assert await take(worker) == three
    await other.round_trip()  # which got nothing
    await finished(worker, three)
    await finished(beside, two)
    claimers = running.gateway.node.dispatcher._pools
    await until(lambda: not claimers.any_waits)  # nothing waits


async def test_why_an_operation_of_a_pool_waits(running):
    await running.make_pool("lab", {"lab": "yes"})
    operation = await for_pool(running)
    await waits(running, operation, "no-ice")
    ice = await running.provision("lab-1")
    await running.label("lab-1", lab="yes")
    await waits(running, operation, "all-offline")
    await running.gateway.engine.write(
        lambda transaction: transaction.run(
            "UPDATE ice_tokens SET pausedon = $1, pausedby = 'root'", to_text(utc_now())
        )
    )
    connection = await ice.connect()
    connection.hello(version="1", accepts=[])
    await connection.round_trip()
    await waits(running, operation, "paused")
    await running.gateway.engine.write(
        lambda transaction: transaction.run("UPDATE ice_tokens SET pausedon = NULL")
    )
    await waits(running, operation, "not-accepted")
    connection.send({"jsonrpc": "2.0", "method": "ice.accepts", "params": {"accepts": ["execute"]}})
    assert await take(connection) == operation


async def test_why_an_operation_of_an_ice_waits(timed, clock):
    ice = await timed.provision("lab-1")
    connection = await ice.connect()
    connection.hello(version="1", accepts=["debug"])
    await connection.round_trip()
    later = to_text(clock() + timedelta(hours=1))
    scheduled = await asked(timed.admin, kind="schedule", run_at=later)
    assert (await show(timed.admin, scheduled))["waits"] == "run-at"
    held = await asked(timed.admin)
    await waits(timed, held, "not-accepted")
    # What is held holds up nothing else: neither what is accepted, nor what the ICE's user requests.
    debug = await asked(timed.admin, kind="debug")
    assert await take(connection) == debug
    own = await asked(await timed.api("alice"))
    await waits(timed, own, "operation-before")
    await finished(connection, debug)
    assert await take(connection) == own
    await finished(connection, own)
    await connection.leave()
    await waits(timed, held, "offline")


async def test_an_ice_gets_the_oldest_operation_that_it_may_run(running):
    await running.make_pool("all", {"lab": "yes"})
    await running.make_pool("gpu", {"lab": "yes", "gpu": "yes"})
    first = await for_pool(running, "gpu")
    second = await for_pool(running, "all")
    third = await for_pool(running, "gpu", kind="remote-execute")
    fourth = await for_pool(running, "all", kind="remote-execute")
    worker = await member(running, "lab-1", "lab", "gpu", kind="ci-cd")
    for expected in (third, fourth):
        assert await take(worker) == expected
        await finished(worker, expected)
    everything = await member(running, "lab-2", "lab", "gpu")
    for expected in (first, second):
        assert await take(everything) == expected
        await finished(everything, expected)


async def test_the_ice_that_idles_longest_is_taken_and_own_work_comes_first(running):
    await running.make_pool("lab", {"lab": "yes"})
    first, second = await member(running, "lab-1"), await member(running, "lab-2")
    for name, ice in (("lab-1", first), ("lab-2", second), ("lab-1", first)):
        own = await asked(running.admin, name)
        await take(ice)
        await finished(ice, own)
    await running.settled()  # a session that is not written yet is not found
    operation = await for_pool(running)
    assert await take(second) == operation
    own = await asked(running.admin, "lab-2")
    later = await for_pool(running)
    assert await take(first) == later
    await finished(second, operation)
    assert await take(second) == own


async def test_an_ice_that_refuses_is_not_offered_it_again_in_this_session(running):
    await running.make_pool("lab", {"lab": "yes"})
    ice = await running.provision("lab-1")
    first = await greeted(ice)
    await running.label("lab-1", lab="yes")
    operation = await for_pool(running)
    run = await expect_run(first)
    first.send({"jsonrpc": "2.0", "id": run["id"], "error": {"code": 1, "message": "no"}})
    shown = await waits(running, operation, "not-accepted")
    assert (shown["ice_name"], shown["state"], shown["sent"]) == (None, "queued", None)
    another = await for_pool(running)
    assert await take(first) == another
    await finished(first, another)
    second = await member(running, "lab-2")
    assert await take(second) == operation
    await second.leave()
    await first.leave()


async def test_what_was_refused_goes_to_the_next_session(running):
    await running.make_pool("lab", {"lab": "yes"})
    ice = await running.provision("lab-1")
    first = await greeted(ice)
    await running.label("lab-1", lab="yes")
    operation = await for_pool(running)
    run = await expect_run(first)
    first.send({"jsonrpc": "2.0", "id": run["id"], "result": {"accepted": False}})
    await waits(running, operation, "not-accepted")
    await first.leave()
    second = await greeted(ice)
    assert await take(second) == operation


@pytest.mark.gateway(tuning=Tuning(node=NodeLimits(finish_grace=timedelta(seconds=0.2))))
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_an_ice_comes_back_without_is_lost(running, elsewhere):
    """To the node that sent it, or to another one, to which no event has said who took it."""
    await running.make_pool("lab", {"lab": "yes"})
    ice = await running.provision("lab-1")
    first = await greeted(ice)
    await running.label("lab-1", lab="yes")
    operation, following = await for_pool(running), await for_pool(running)
    await take(first)
    await in_state(running, operation, "running")
    await first.close()
    dispatcher = running.gateway.node.dispatcher
    await until(lambda: not dispatcher._lanes)
    if elsewhere:
        dispatcher._busy.clear()
    second = await greeted(ice)
    await in_state(running, operation, "lost")
    assert await take(second) == following
    await finished(second, following)


async def test_labels_removed_while_work_waits(running):
    await running.make_pool("lab", {"lab": "yes"})
    worker = await member(running, "lab-1")
    running_one = await for_pool(running)
    await take(worker)
    waiting = await for_pool(running)
    await running.label("lab-1", lab=None)
    await finished(worker, running_one)
    await waits(running, waiting, "no-ice")
    await running.label("lab-1", lab="yes")
    assert await take(worker) == waiting


async def test_cancelled_before_and_after_an_ice_has_it(running):
    await running.make_pool("lab", {"lab": "yes"})
    waiting = await for_pool(running)
    answer = await running.admin.post(f"/operations/{waiting}/cancel")
    assert (answer.json["state"], answer.json["ice_name"]) == ("cancelled", None)
    worker = await member(running, "lab-1")
    operation = await for_pool(running)
    await take(worker)
    await running.admin.post(f"/operations/{operation}/cancel")
    await expect_cancel(worker, operation)


async def test_a_deregistration_ends_what_runs_and_nothing_else(running):
    await running.make_pool("lab", {"lab": "yes"})
    worker = await member(running, "lab-1")
    operation = await for_pool(running)
    await take(worker)
    waiting = await for_pool(running)
    await running.admin.post("/ices/lab-1/deregister")
    await in_state(running, operation, "cancelled")
    await waits(running, waiting, "no-ice")


async def test_an_operation_that_waits_expires(timed, clock):
    await timed.make_pool("lab", {"lab": "yes"})
    worker = await connected(timed, "lab-1")
    operation = await for_pool(timed, deadline=to_text(clock() + timedelta(minutes=1)))
    later = await for_pool(timed, kind="schedule", run_at=to_text(clock() + timedelta(minutes=2)))
    assert (await show(timed.admin, later))["waits"] == "run-at"
    clock.skip(minutes=1, seconds=1)
    await in_state(timed, operation, "expired")
    clock.skip(minutes=1)
    await timed.label("lab-1", lab="yes")
    assert await take(worker) == later


async def test_a_key_counts_for_the_pool_and_its_requester(running):
    await running.make_pool("lab", {"lab": "yes"})
    await running.make_pool("other", {"other": "yes"})
    await connected(running, "lab-1")
    first = await for_pool(running, idempotency_key="k")
    assert await for_pool(running, idempotency_key="k") == first
    assert await for_pool(running, "other", idempotency_key="k") != first
    assert await asked(running.admin, idempotency_key="k") != first


async def test_who_may_request_of_a_pool(running):
    await running.make_pool("lab", {"lab": "yes"})
    await running.make_pool("other", {"other": "yes"})
    body = {"kind": "execute"}
    token = await running.api("root", pool="lab")
    assert (await token.post("/pools/LAB/operations", body)).status == 202
    refused = {
        404: [(token, "other"), (token, "none"), (running.admin, "none")],
        403: [
            (await running.api("bob", Role.MEMBER), "lab"),
            (await running.api("ann", Role.AUDITOR), "lab"),
        ],
    }
    for status, calls in refused.items():
        for api, pool in calls:
            answer = await api.post(f"/pools/{pool}/operations", body)
            assert answer.status == status, (pool, answer)


async def test_what_the_token_of_a_pool_and_the_user_of_an_ice_see(running):
    await running.make_pool("lab", {"lab": "yes"})
    worker = await member(running, "lab-1")
    token = await running.api("root", pool="lab")
    theirs = await for_pool(running, api=token, params={"secret": 1})
    await take(worker)
    await finished(worker, theirs, result="found")
    other = await for_pool(running)
    assert (await token.get(f"/operations/{theirs}")).json["result"] == "found"
    assert (await token.get(f"/operations/{theirs}")).json["ice_name"] == "lab-1"
    assert (await token.get(f"/operations/{other}")).status == 404
    assert [each["id"] for each in (await token.get("/operations")).json["items"]] == [theirs]
    assert (await token.get("/ices")).status == 403
    alice = await running.api("alice")
    for shown in (
        (await alice.get(f"/operations/{theirs}")).json,
        (await alice.get("/operations?pool=lab")).json["items"][-1],
    ):
        assert (shown["id"], shown["kind"], shown["state"]) == (theirs, "execute", "succeeded")
        assert (shown["params"], shown["result"], shown["progress"]) == (None, None, None)
    assert (await alice.post(f"/operations/{theirs}/cancel")).status == 403


@pytest.mark.gateway(operations__kept_bytes=1000)
async def test_a_pool_keeps_so_many_bytes(running):
    await running.make_pool("lab", {"lab": "yes"})
    await for_pool(running, params="x" * 700)
    answer = await running.admin.post(
        "/pools/lab/operations", {"kind": "execute", "params": "x" * 700}
    )
    assert (answer.status, answer.json["code"]) == (429, "queue-full")
    assert "this pool" in answer.json["detail"]


async def test_the_kind_must_suit_the_type_of_the_pool(running):
    await running.make_pool("lab", {"lab": "yes"}, ice_type="ci-cd")
    answer = await running.admin.post("/pools/lab/operations", {"kind": "execute"})
    assert (answer.status, answer.json["code"]) == (409, "kind-not-allowed")
    assert (await ask(running.admin, "none")).status == 404


async def test_what_no_ice_takes_keeps_nothing_else_waiting(running):
    """More groups than one look finds ICEs for, each of them refused by a session of its own."""
    await running.make_pool("lab", {"lab": "yes"})
    refused = [await for_pool(running, kind="debug") for _ in range(25)]

    async def by_sessions(transaction):
        for number, operation in enumerate(refused):
            await transaction.run(
                "UPDATE ice_operations SET refused_by = $1 WHERE id = $2",
                f'["session {number}"]',
                operation,
            )

    await running.gateway.engine.write(by_sessions)
    worker = await member(running, "lab-1", kind="ci-cd")
    operation = await for_pool(running, kind="remote-execute")
    assert await take(worker) == operation
