"""How operations reach an ICE and what it answers, and each gap in between (contract sections 6, 9)."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from datetime import datetime, timedelta

import pytest
from websockets.frames import Opcode

from client.protocol import OperationKind
from gateway.app import Tuning
from gateway.cli.common import open_context
from gateway.core.times import utc_now
from gateway.node.dispatcher import MAX_READS
from gateway.node.node import NodeLimits
from gateway.node.operation_reports import MAX_PENDING_FINISHES
from gateway.services.operation_requests import OperationRequest, OperationService
from gateway.store.engine import OutcomeUnknown, StoreUnavailable
from gateway.store.ice_listing import IceListing
from tests.support.harness import harness
from tests.support.ice import until
from tests.support.work import (
    accept,
    asked,
    connected,
    expect_cancel,
    expect_run,
    finish,
    finished,
    greeted,
    in_state,
    progress,
    refused,
    show,
    take,
)

IMPATIENT = pytest.mark.gateway(tuning=Tuning(node=NodeLimits(finish_grace=timedelta(seconds=0.2))))
"""An ICE that came back without its work is given little time."""


def lane_of(running, name="lab-1"):
    return running.gateway.node.dispatcher._lanes.get(name)


def nested(levels):
    return "[" * levels + "]" * levels


def error_of(operation):
    return operation["error"]["code"]


# --- the answer to operation.run ---------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32601, "message": "no handler for execute"}},
        {"error": {"code": 5, "message": "full", "data": {"free": 0}}},
        {"result": {"accepted": False}},
        {"result": "sure"},
        {"result": {}},
    ],
)
async def test_what_an_ice_does_not_accept_has_failed(running, answer):
    ice = await connected(running)
    operation, following = await asked(running.admin), await asked(running.admin)
    await expect_run(ice)
    ice.send({"jsonrpc": "2.0", "id": operation, **answer})
    shown = await in_state(running, operation, "failed")
    told = answer.get("error", {"message": "the ICE has not accepted it"})
    wanted = {"code": "refused", "message": told["message"]}
    assert shown["error"] == wanted | ({"data": told["data"]} if "data" in told else {})
    assert (await expect_run(ice))["id"] == following


async def test_answers_that_nobody_waits_for_change_nothing(running):
    ice, other = await connected(running), await connected(running, "lab-2")
    operation = await asked(running.admin)
    await expect_run(ice)
    for connection, answered in ((ice, "x"), (ice, 7), (ice, None), (other, operation)):
        connection.send({"jsonrpc": "2.0", "id": answered, "result": {"accepted": True}})
        await connection.round_trip()
    assert (await show(running.admin, operation))["state"] == "sent"


async def test_a_finish_may_come_before_the_acceptance(running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await expect_run(ice)
    await finished(ice, operation, result=1)
    accept(ice, operation)
    await ice.round_trip()
    assert (await show(running.admin, operation))["state"] == "succeeded"


# --- the finish --------------------------------------------------------------------------------


async def test_a_repeated_finish_is_answered_and_the_first_one_counts(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    await finished(connection, operation, result="first")
    await finished(connection, operation, result="second")
    await connection.leave()
    again = await greeted(ice)
    await finished(again, operation, "failed", error="third")
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["result"]) == ("succeeded", "first")


async def test_a_finish_for_what_the_ice_does_not_own_is_refused(running):
    ice, other = await connected(running), await connected(running, "lab-2")
    operation, waiting = await asked(running.admin), await asked(running.admin)
    await take(ice)
    await refused(other, operation, "unknown-operation", result="forged")
    await refused(other, "nothing", "unknown-operation")
    await refused(ice, waiting, "unknown-operation", result="too early")
    await in_state(running, operation, "running")
    assert (await show(running.admin, waiting))["state"] == "queued"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "invalid"),
        ({"outcome": "done"}, "invalid"),
        ({"outcome": None}, "invalid"),
        ({"outcome": "x" * 5000}, "invalid"),
        ({"outcome": "succeeded", "result": "x" * 999_999}, "too-large"),
        ({"outcome": "failed", "error": "x" * 999_999}, "too-large"),
    ],
)
async def test_a_refused_finish_ends_its_operation_with_the_code(running, params, code):
    ice = await connected(running)
    operation, following = await asked(running.admin), await asked(running.admin)
    await take(ice)
    answer = await ice.request("operation.finish", "f", **{"id": operation, **params})
    assert answer["error"]["data"] == {"code": code}, answer
    assert answer["error"]["code"] == -32602
    assert len(str(answer)) < 500, "the refusal repeats what was sent"
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["result"]) == ("failed", None)
    assert shown["error"] == {"code": code, "message": answer["error"]["message"]}
    assert await take(ice) == following, "the session stays, and is sent the next"
    # One of 1,000,000 bytes is none of these.
    await finished(ice, following, result="x" * 999_998)
    assert len((await show(running.admin, following))["result"]) == 999_998


async def test_a_refused_finish_ends_nothing_else(running):
    ice, other = await connected(running), await connected(running, "lab-2")
    operation, waiting = await asked(running.admin), await asked(running.admin)
    await take(ice)
    await in_state(running, operation, "running")
    for connection, named in ((other, operation), (ice, waiting), (ice, "nothing"), (ice, 7)):
        answer = await connection.request("operation.finish", "f", id=named, outcome="done")
        assert answer["error"]["data"] == {"code": "invalid"}, answer
    for params in ([], [operation], {"outcome": "succeeded"}):
        message = {"jsonrpc": "2.0", "method": "operation.finish", "id": "f", "params": params}
        ice.send(message)
        assert (await ice.message())["error"]["data"] == {"code": "invalid"}
    assert (await show(running.admin, operation))["state"] == "running"
    assert (await show(running.admin, waiting))["state"] == "queued"
    await finished(ice, operation, result=1)
    assert await take(ice) == waiting
    answer = await ice.request("operation.finish", "f", id=operation, outcome="done")
    assert answer["error"]["data"] == {"code": "invalid"}
    assert (await show(running.admin, operation))["state"] == "succeeded", "the first one counts"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ({"error": "boom"}, {"code": "failed", "message": '"boom"'}),
        ({"error": None}, {"code": "failed", "message": "the ICE gave no reason"}),
        ({}, {"code": "failed", "message": "the ICE gave no reason"}),
        (
            {"error": {"code": "c", "message": "m", "data": [1]}},
            {"code": "c", "message": "m", "data": [1]},
        ),
        (
            {"error": {"code": "c", "message": "m", "more": 2}},
            {"code": "failed", "message": '{"code": "c", "message": "m", "more": 2}'},
        ),
    ],
)
async def test_an_error_has_one_shape(running, sent, shown):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    await finished(ice, operation, "failed", **sent)
    assert (await show(running.admin, operation))["error"] == shown


async def test_a_result_that_others_could_not_read_is_no_json(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    text = (
        '{"jsonrpc":"2.0","id":1,"method":"operation.finish","params":'
        f'{{"id":"{operation}","outcome":"succeeded","result":"\\ud800"}}}}'
    )
    connection.send_frame(Opcode.TEXT, text.encode())
    await connection.expect_dropped(1008)
    await finished(await greeted(ice, operation), operation)


async def test_a_flood_of_finishes_ends_the_session_and_nothing_is_lost(running, monkeypatch):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    params = {"id": operation, "outcome": "succeeded", "result": 1}
    message = {"jsonrpc": "2.0", "method": "operation.finish", "params": params}
    held = asyncio.Event()
    write = running.gateway.engine.write

    async def holding(unit):
        await held.wait()
        return await write(unit)

    monkeypatch.setattr(running.gateway.engine, "write", holding)
    for number in range(MAX_PENDING_FINISHES + 1):
        connection.send({**message, "id": number})
    await connection.expect_dropped(1008)
    held.set()
    await in_state(running, operation, "succeeded")
    await finished(await greeted(ice), operation, result=1)


# --- the bounds of JSON ------------------------------------------------------------------------

BEYOND = [nested(101), nested(900), nested(5000), "[1e999]", "1" * 31]


async def test_values_of_100_levels_pass_from_end_to_end(running):
    ice = await connected(running)
    deep = json.loads(nested(100))
    operation = await asked(running.admin, params=deep)
    assert (await expect_run(ice))["params"] == deep
    accept(ice, operation)
    progress(ice, operation, data=deep)
    await running.eventually(
        f"/operations/{operation}", lambda answer: answer.json["progress"] is not None
    )
    await finished(ice, operation, result=deep)
    shown = await show(running.admin, operation)
    assert (shown["params"], shown["progress"]["data"], shown["result"]) == (deep, deep, deep)
    [item] = (await running.admin.get("/operations")).json["items"]
    assert item == shown


@pytest.mark.parametrize("value", BEYOND, ids=lambda value: value[:8])
async def test_params_beyond_the_bounds_are_refused(running, value):
    await connected(running)
    body = f'{{"kind":"execute","params":{value}}}'
    headers = {"Content-Type": "application/json"}
    answer = await running.admin.call("POST", "/ices/lab-1/operations", data=body, headers=headers)
    assert answer.status in (400, 422), answer
    assert (await running.admin.get("/operations")).json["items"] == []


async def take_next(running, ice):
    """Another operation, which a session that has stayed is sent."""
    operation = await asked(running.admin)
    return await take(ice) == operation


def finish_with(operation, **members):
    """The text of a finish, whose members are JSON."""
    given = {"id": json.dumps(operation), "outcome": '"succeeded"', **members}
    params = ",".join(f'"{name}":{value}' for name, value in given.items())
    return f'{{"jsonrpc":"2.0","method":"operation.finish","params":{{{params}}},"id":"f"}}'


@pytest.mark.parametrize("value", BEYOND, ids=lambda value: value[:8])
async def test_a_finish_beyond_the_bounds_is_refused_and_the_session_stays(running, value):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    ice.send_frame(Opcode.TEXT, finish_with(operation, result=value).encode())
    answer = await ice.message()
    assert (answer["id"], answer["error"]["data"]) == ("f", {"code": "invalid"})
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["error"]["code"]) == ("failed", "invalid")
    assert answer["error"]["message"] == shown["error"]["message"]
    assert await take_next(running, ice)


@pytest.fixture(scope="module")
def names():
    """A new name for each ICE of a gateway that tests share."""
    return (f"lab-{number}" for number in itertools.count())


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","method":"operation.progress","params":{"id":"x","data":%s}}',
        '{"jsonrpc":"2.0","method":"ice.hello","params":{"running":[],"more":%s}}',
        '{"jsonrpc":"2.0","method":"no.such","params":[%s]}',
        '{"jsonrpc":"2.0","method":"no.such","params":[%s],"id":1}',
        '{"jsonrpc":"2.0","result":%s,"id":1}',
        '{"jsonrpc":"2.0","error":{"code":1,"message":"","data":%s},"id":1}',
        '{"jsonrpc":"2.0","method":"operation.finish","params":{"id":"x","result":%s}}',
    ],
)
@pytest.mark.parametrize("value", BEYOND, ids=lambda value: value[:8])
@pytest.mark.asyncio(loop_scope="module")
async def test_other_frames_beyond_the_bounds_end_the_session(shared, names, text, value):
    ice = await connected(shared, next(names))
    ice.send_frame(Opcode.TEXT, (text % value).encode())
    assert await ice.expect_dropped(1008) == "too-complex"


# --- coming back -------------------------------------------------------------------------------


async def test_what_the_ice_names_goes_on(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await expect_run(connection)
    await connection.close()  # its answer was lost
    again = await greeted(ice, operation)
    await in_state(running, operation, "running")
    progress(again, operation, message="still there")
    await running.eventually(
        f"/operations/{operation}", lambda answer: answer.json["progress"] is not None
    )
    await finished(again, operation)


@IMPATIENT
async def test_what_the_ice_does_not_name_is_lost_unless_it_finishes(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation, following = await asked(running.admin), await asked(running.admin)
    await take(connection)
    await in_state(running, operation, "running")
    await connection.close()
    again = await greeted(ice, "another")
    await expect_cancel(again, "another", "unknown")
    shown = await in_state(running, operation, "lost")
    assert error_of(shown) == "lost"
    assert (await expect_run(again))["id"] == following
    # It says so after all: nobody knows better.
    await finished(again, operation, result="found")
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["result"], shown["error"]) == ("succeeded", "found", None)
    assert (await show(running.admin, following))["state"] == "sent"


@IMPATIENT
async def test_an_ice_without_a_hello_loses_what_it_worked_on(running):
    ice = await running.provision()
    connection = await ice.connect()
    # Of its own user, since before the hello it accepts nothing of others.
    operation = await asked(await running.api("alice"))
    await expect_run(connection)
    await connection.close()
    await ice.connect()
    await in_state(running, operation, "lost")


async def test_a_hello_is_waited_for(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    await connection.close()
    again = await greeted(ice)
    # Not named, but its finish comes soon enough.
    assert (await show(running.admin, operation))["state"] in ("sent", "running")
    await finished(again, operation)


async def test_an_ice_is_told_to_stop_what_was_cancelled_while_it_was_away(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    await connection.close()
    await until(lambda: "lab-1" not in running.gateway.node.hub)
    await running.admin.post(f"/operations/{operation}/cancel")
    again = await ice.connect()
    again.hello(running=[operation])
    await expect_cancel(again, operation)
    await refused(again, operation, "already-finished")


async def test_a_newer_session_takes_the_work_over(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    newer = await greeted(ice, operation)
    await connection.expect_dropped(4103)
    await finished(newer, operation)
    following = await asked(running.admin)
    assert await take(newer) == following


# --- what an ICE can cost others ----------------------------------------------------------------


@pytest.fixture
async def reads(running, monkeypatch):
    """The reads of the table of operations that an ICE's hello causes, held until `go` is set."""
    engine, go = running.gateway.engine, asyncio.Event()
    began = [go]
    read = engine._fetch

    async def holding(connection, sql, params):
        if sql.startswith("SELECT id, state"):
            began.append(params)
            await go.wait()
        return await read(connection, sql, params)

    monkeypatch.setattr(engine, "_fetch", holding)
    yield began
    go.set()


@pytest.mark.sqlite
async def test_what_ices_cause_keeps_no_read_of_a_person_waiting(running, reads):
    """The engine reads four at a time: hellos of many ICEs take two of these turns at the most."""
    [go] = reads
    for number in range(6):
        await greeted(await running.provision(f"lab-{number}"), "invented")
    assert len(reads) - 1 == MAX_READS
    assert len((await running.admin.get("/ices")).json["items"]) == 6
    assert (await running.admin.get("/operations")).json["items"] == []
    go.set()


@pytest.mark.sqlite
async def test_a_hello_is_compared_once_and_with_one_query(running, reads):
    [go] = reads
    go.set()
    connection = await (await running.provision()).connect()
    names = [f"{number:024x}" for number in range(64)]
    for _ in range(50):
        connection.hello(running=names)
    for name in names:
        await expect_cancel(connection, name, "unknown")
    await connection.round_trip()
    assert len(reads) - 1 == 1, "a second hello was compared, too"


@pytest.mark.sqlite
async def test_nothing_is_looked_up_for_a_session_that_has_ended(running, reads):
    [go] = reads
    ices = [await running.provision(f"lab-{number}") for number in range(4)]
    *_, third, last = [await greeted(ice, "invented") for ice in ices]
    await last.leave()
    go.set()
    await expect_cancel(third, "invented", "unknown")
    await until(lambda: not running.gateway.node.dispatcher._tasks)
    asked_for = {params[0] for params in reads[1:]}
    assert asked_for == {"lab-0", "lab-1", "lab-2"}


async def test_one_answer_to_an_operation_counts(running, monkeypatch):
    ice = await connected(running)
    operation = await asked(running.admin)
    await expect_run(ice)
    recorded = []
    write = running.gateway.engine.write

    async def counted(unit):
        if "_record_answer" in repr(unit):
            recorded.append(unit)
        return await write(unit)

    monkeypatch.setattr(running.gateway.engine, "write", counted)
    for _ in range(100):
        accept(ice, operation)
    await ice.round_trip()
    await in_state(running, operation, "running")
    await finished(ice, operation)  # what the acceptances cause begins before it
    assert len(recorded) == 1, "each acceptance was worked on"


# --- deadlines and times -----------------------------------------------------------------------


async def test_what_was_never_sent_expires(timed, clock):
    ice = await timed.provision()
    await (await ice.connect()).leave()
    operation = await asked(timed.admin, deadline=clock.at(60))
    clock.skip(seconds=61)
    shown = await in_state(timed, operation, "expired")
    assert (error_of(shown), shown["sent"]) == ("deadline", None)
    connection = await ice.connect(iat=clock().timestamp())
    connection.hello(version="1")
    following = await asked(timed.admin)
    assert (await expect_run(connection))["id"] == following, "what has expired was sent"


@pytest.mark.parametrize("accepted", [False, True])
async def test_what_was_sent_and_not_finished_in_time_is_lost(timed, clock, accepted):
    ice = await connected(timed)
    operation = await asked(timed.admin, deadline=clock.at(60))
    following = await asked(timed.admin)
    await expect_run(ice)
    if accepted:
        accept(ice, operation)
        await in_state(timed, operation, "running")
    clock.skip(seconds=61)
    shown = await in_state(timed, operation, "lost")
    assert error_of(shown) == "deadline"
    await expect_cancel(ice, operation, "deadline")
    await finished(ice, operation, result="late, but true")
    assert (await show(timed.admin, operation))["result"] == "late, but true"
    assert await take(ice) == following


@pytest.mark.parametrize(
    ("error", "state"),
    [
        ({"code": "deadline", "message": "its deadline has passed"}, "lost"),
        ({"code": "cancelled", "message": "cancelled on request"}, "lost"),  # an older client
        ({"code": "no-disk", "message": "full"}, "failed"),  # it had failed before it was told
    ],
)
async def test_what_its_deadline_has_ended_is_not_called_cancelled(timed, clock, error, state):
    ice = await connected(timed)
    operation = await asked(timed.admin, deadline=clock.at(60))
    await take(ice)
    clock.skip(seconds=61)
    await expect_cancel(ice, operation, "deadline")
    answer = await finish(ice, operation, "failed", error=error)
    shown = await show(timed.admin, operation)
    if state == "lost":
        assert answer["error"]["data"] == {"code": "already-finished"}
        assert (shown["state"], error_of(shown)) == ("lost", "deadline")
    else:
        assert (shown["state"], shown["error"]) == ("failed", error)


async def test_a_deadline_that_passed_while_the_ice_was_away_is_told_when_it_is_back(timed, clock):
    ice = await timed.provision()
    connection = await greeted(ice)
    operation = await asked(timed.admin, deadline=clock.at(60))
    await take(connection)
    await connection.leave()
    clock.skip(seconds=61)
    await in_state(timed, operation, "lost")
    again = await ice.connect(iat=clock().timestamp())
    again.hello(running=[operation])
    await expect_cancel(again, operation, "deadline")


@pytest.mark.parametrize("action", ["deregister", "reregister"])
async def test_what_a_registration_has_taken_along_is_told_after_the_next(running, action):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    if action == "deregister":
        await running.act("lab-1", action)
    renewed = await running.act("lab-1", "reregister")
    again = await running.ice(renewed["token"]).connect()
    again.hello(running=[operation])
    await expect_cancel(again, operation, "reregistered")


@IMPATIENT
async def test_what_was_given_up_is_to_be_stopped(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    await connection.leave()
    connection = await greeted(ice)
    await in_state(running, operation, "lost")
    await connection.leave()
    again = await greeted(ice, operation)
    await expect_cancel(again, operation, "unknown")


async def test_scheduled_work_waits_for_its_time_and_holds_up_nothing(timed, clock):
    ice = await connected(timed)
    later = await asked(timed.admin, kind="schedule", run_at=clock.at(3600))
    await asked(timed.admin, kind="schedule", run_at=clock.at(1800))
    [sooner] = [
        item["id"]
        for item in (await timed.admin.get("/operations")).json["items"]
        if item["id"] != later
    ]
    now = await asked(timed.admin)
    assert await take(ice) == now
    await finished(ice, now)
    clock.skip(seconds=1801)
    timed.gateway.node.dispatcher.wake(
        "lab-1"
    )  # a lane looks again now and then: the clock may be set
    assert await take(ice) == sooner
    await finished(ice, sooner)
    shown = await show(timed.admin, later)
    assert shown["state"] == "queued"
    lasts = datetime.fromisoformat(shown["deadline"]) - datetime.fromisoformat(shown["run_at"])
    assert lasts == timedelta(hours=24)


# --- between the steps ---------------------------------------------------------------------------


async def test_what_was_marked_as_sent_and_not_written_is_sent_to_the_next_session(
    running, monkeypatch
):
    """The session ends between the commit and the write: nobody has received anything."""
    ice = await running.provision()
    connection = await greeted(ice)
    write = running.gateway.engine.write

    async def and_then_it_goes(unit):
        done = await write(unit)
        if getattr(done, "state", None) == "sent":
            monkeypatch.setattr(running.gateway.engine, "write", write)
            running.gateway.node.hub.get("lab-1").close(4201)
        return done

    monkeypatch.setattr(running.gateway.engine, "write", and_then_it_goes)
    operation = await asked(running.admin)
    await connection.expect_dropped(4201)
    again = await greeted(ice)
    assert await take(again) == operation
    await finished(again, operation)


async def test_a_commit_of_which_nobody_knows_is_not_taken_for_sent(running, monkeypatch):
    connection = await connected(running)
    write = running.gateway.engine.write

    async def failing(unit):
        done = await write(unit)
        if getattr(done, "state", None) == "sent":
            monkeypatch.setattr(running.gateway.engine, "write", write)
            raise OutcomeUnknown("the disk went away")
        return done

    monkeypatch.setattr(running.gateway.engine, "write", failing)
    operation = await asked(running.admin)
    assert await take(connection) == operation
    await finished(connection, operation)


async def test_a_deregistration_between_the_look_and_the_sending_wins(running, monkeypatch):
    ice = await running.provision()
    connection = await greeted(ice)
    write = running.gateway.engine.write
    sent = asyncio.Event()

    async def slow(unit):
        if "._send." not in repr(unit):
            return await write(unit)
        await running.act("lab-1", "deregister")
        sent.set()
        return await write(unit)

    monkeypatch.setattr(running.gateway.engine, "write", slow)
    operation = await asked(running.admin)
    await connection.expect_dropped(4101)
    await sent.wait()
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["sent"], error_of(shown)) == ("cancelled", None, "deregistered")


@pytest.mark.sqlite
async def test_the_type_is_looked_at_again_when_it_is_sent(running):
    """A row that no request could have made: an operator's own SQL, say."""
    ice = await running.provision("build-7", "ci-cd")
    await (await ice.connect()).leave()
    operation = await asked(running.admin, "build-7", "remote-execute")
    with sqlite3.connect(running.gateway.settings.database_path) as connection:
        connection.execute("UPDATE ice_operations SET kind = 'scrape'")
    following = await asked(running.admin, "build-7", "remote-execute")
    assert (await expect_run(await ice.connect()))["id"] == following
    shown = await show(running.admin, operation)
    assert (shown["state"], error_of(shown)) == ("cancelled", "kind-not-allowed")


async def test_a_finish_is_answered_once_the_store_is_back(running, monkeypatch):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    await in_state(running, operation, "running")
    write, tried = running.gateway.engine.write, []

    async def away(unit):
        tried.append(unit)
        if len(tried) > 1:
            monkeypatch.setattr(running.gateway.engine, "write", write)
        raise StoreUnavailable("no disk")

    monkeypatch.setattr(running.gateway.engine, "write", away)
    await finished(ice, operation, result="kept")
    assert len(tried) == 2
    assert (await show(running.admin, operation))["result"] == "kept"


@pytest.mark.gateway(tuning=Tuning(node=NodeLimits(cancel_grace=0.05)))
async def test_an_ice_that_does_not_answer_for_what_was_cancelled_gets_the_next_after_a_while(
    running,
):
    ice = await connected(running)
    operation, following = await asked(running.admin), await asked(running.admin)
    await take(ice)
    await running.admin.post(f"/operations/{operation}/cancel")
    await expect_cancel(ice, operation)
    assert await take(ice) == following


async def test_work_that_was_queued_before_a_restart_is_sent_after_it(tmp_path):
    async with harness(tmp_path) as running:
        ice = await running.provision()
        connection = await greeted(ice)
        begun, queued = await asked(running.admin), await asked(running.admin)
        await take(connection)
    async with harness(tmp_path, server__port=int(running.url.rsplit(":", 1)[1])) as running:
        connection = await greeted(ice, begun)
        await finished(connection, begun, result=1)
        assert await take(connection) == queued
        await finished(connection, queued)
        states = [item["state"] for item in (await running.admin.get("/operations")).json["items"]]
        assert states == ["succeeded"] * 2
        await connection.close()


async def test_a_command_requests_and_cancels_beside_the_gateway(running):
    """The gateway hears of both through the log."""

    ice = await connected(running)
    async with open_context(running.gateway.settings) as beside:
        asking = OperationService(engine=beside.engine, clock=utc_now, kept_bytes=1_000_000)
        entry = (await IceListing(beside.engine).find("lab-1")).ice
        made = await asking.request(
            beside.actor, entry, OperationRequest(OperationKind.EXECUTE, b"{}")
        )
        assert await take(ice) == made.id
        await in_state(running, made.id, "running")
        await asking.cancel(beside.actor, made.id)
        await expect_cancel(ice, made.id)


async def test_a_lane_ends_with_its_work(running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    assert lane_of(running) is not None
    await finished(ice, operation)
    await until(lambda: lane_of(running) is None)
    answer = await finish(ice, operation)
    assert answer["result"] == {}
