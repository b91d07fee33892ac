"""Operations by the API: requested, listed, followed, cancelled (contract section 9)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta

import aiohttp
import msgspec
import pytest

from client.protocol import OperationKind
from gateway.admin.event_streams import StreamLimits
from gateway.app import Tuning
from gateway.core.operation import MAX_KEPT, Operation
from gateway.core.roles import Role
from gateway.node.expiry import OperationExpiry
from gateway.node.node import NodeLimits
from gateway.services.operation_requests import MAX_UNFINISHED, OperationRequest
from gateway.store.engine import as_json, rows_of
from gateway.store.ice_listing import IceListing
from gateway.store.operations import Operations
from tests.support.harness import ADMIN, API, expect_refused, harness, hold_to_description
from tests.support.work import (
    UNREADABLE,
    accept,
    ask,
    asked,
    connected,
    expect_cancel,
    expect_run,
    finished,
    follow,
    greeted,
    in_state,
    progress,
    refused,
    show,
    stored,
    take,
)

changes_nothing = pytest.mark.asyncio(loop_scope="module")

FIELDS = [
    "id",
    "ice_name",
    "pool",
    "schedule",
    "waits",
    "kind",
    "params",
    "state",
    "requested_by",
    "created",
    "run_at",
    "deadline",
    "sent",
    "finished",
    "progress",
    "result",
    "error",
]


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


def at(seconds):
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def error_of(operation):
    return operation["error"]["code"]


# --- the whole way -----------------------------------------------------------------------------


async def test_an_operation_from_the_request_to_the_result(running):
    ice = await connected(running)
    params = {"url": "https://example.com/\u00fc", "n": [1, 2.5, None]}
    answer = await ask(running.admin, params=params)
    assert answer.status == 202, answer
    operation = answer.json
    assert list(operation) == FIELDS
    assert answer.headers["Location"] == f"{API}/operations/{operation['id']}"
    assert (operation["state"], operation["params"]) == ("queued", params)
    assert (operation["ice_name"], operation["requested_by"]) == ("lab-1", "root")
    created, deadline = (datetime.fromisoformat(operation[n]) for n in ("created", "deadline"))
    assert deadline - created == timedelta(hours=24)

    run = await expect_run(ice)
    assert run == {
        "id": operation["id"],
        "kind": "execute",
        "params": params,
        "deadline": operation["deadline"],
    }
    assert (await show(running.admin, operation["id"]))["state"] == "sent"
    accept(ice, operation["id"])
    await in_state(running, operation["id"], "running")
    progress(ice, operation["id"], fraction=0.5, message="half way", data={"step": 1})
    shown = await running.eventually(
        f"/operations/{operation['id']}", lambda answer: answer.json["progress"]
    )
    told = shown.json["progress"]
    assert (told["fraction"], told["message"], told["data"]) == (0.5, "half way", {"step": 1})
    await finished(ice, operation["id"], result={"exit": 0})
    done = await show(running.admin, operation["id"])
    assert (done["state"], done["result"], done["error"]) == ("succeeded", {"exit": 0}, None)
    assert done["sent"] <= done["finished"]


async def test_whoever_waits_is_answered_with_the_end(running):
    ice = await connected(running)
    waiting = asyncio.create_task(ask(running.admin, query="?wait=60"))
    await finished(ice, await take(ice), "failed", error={"code": "no-disk", "message": "full"})
    answer = await waiting
    assert (answer.status, answer.json["state"]) == (200, "failed"), answer
    assert answer.json["error"] == {"code": "no-disk", "message": "full"}


async def test_whoever_has_waited_long_enough_is_told_how_it_stands(running):
    await connected(running)
    answer = await ask(running.admin, query="?wait=0.2")
    assert (answer.status, answer.json["state"]) == (202, "sent"), answer


async def test_an_ice_that_is_away_gets_its_work_in_order_when_it_is_back(running):
    ice = await running.provision()
    first = await ice.connect()
    await first.leave()
    wanted = [await asked(running.admin, params=number) for number in range(3)]
    connection = await greeted(ice)
    for operation in wanted:
        assert await take(connection) == operation, "the order of the requests was not kept"
        # One at a time: between the answers nothing else has come.
        await finished(connection, operation)
    states = [(await show(running.admin, operation))["state"] for operation in wanted]
    assert states == ["succeeded"] * 3


async def test_the_log_says_who_asked_and_who_cancelled(running):
    ice = await running.provision()
    await (await ice.connect()).leave()
    operation = await asked(running.admin)
    await running.admin.post(f"/operations/{operation}/cancel")
    events = (await running.admin.get("/events?ice_name=lab-1")).json["items"][-2:]
    assert [event["action"] for event in events] == ["request-operation", "cancel-operation"]
    for event in events:
        assert (event["actor"], event["generation"]) == ("root", 1)
        assert (event["detail"]["operation"], event["detail"]["kind"]) == (operation, "execute")
        assert event["detail"]["generation_before"] == 1


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({"kind": "dance"}, "kind"),
        ({"kind": 5}, "kind"),
        ({"kind": "execute", "extra": 1}, "extra"),
        ({"kind": "execute", "params": "x" * 999_999}, "params"),
        ({"kind": "schedule"}, "run_at"),
        ({"kind": "execute", "run_at": at(3600)}, "run_at"),
        ({"kind": "schedule", "run_at": at(-1)}, "run_at"),
        ({"kind": "schedule", "run_at": "2099-01-01T00:00:00"}, "run_at"),
        ({"kind": "schedule", "run_at": "tomorrow"}, "run_at"),
        ({"kind": "schedule", "run_at": at(400 * 86400)}, "run_at"),
        ({"kind": "schedule", "run_at": at(7200), "deadline": at(3600)}, "deadline"),
        ({"kind": "execute", "deadline": at(-1)}, "deadline"),
        ({"kind": "execute", "deadline": at(400 * 86400)}, "deadline"),
        ({"kind": "execute", "idempotency_key": ""}, "idempotency_key"),
        ({"kind": "execute", "idempotency_key": "k" * 129}, "idempotency_key"),
        ({"kind": "execute", "idempotency_key": "a\x00b"}, "idempotency_key"),
        ({"kind": "execute", "idempotency_key": "schedule:1:2"}, "idempotency_key"),
        ({"kind": "schedule", "run_at": "0001-01-01T00:00:00+14:00"}, "run_at"),
        ({"kind": "schedule", "run_at": "9999-12-31T23:59:59Z"}, "run_at"),
        ({"kind": "execute", "deadline": "9999-12-31T23:59:59-14:00"}, "deadline"),
        ({"kind": "execute", "deadline": 1e300}, "deadline"),
        ({"kind": "execute", "run_at": 10**29}, "run_at"),
    ],
)
@changes_nothing
async def test_a_field_that_is_not_valid_is_named(shared, body, field):
    # Even of an ICE that is not there: 422 comes before 404.
    answer = await shared.admin.post("/ices/nobody/operations", body)
    assert expect_refused(answer, 422, "invalid")["field"] == field


@pytest.mark.parametrize("query", ["wait=61", "wait=-1", "wait=x", "wait=nan", "other=1"])
@changes_nothing
async def test_a_wait_that_is_none_is_refused(shared, query):
    expect_refused(await ask(shared.admin, query=f"?{query}"), 422, "invalid")


async def test_params_may_have_a_million_bytes(running):
    ice = await connected(running)
    await asked(running.admin, params="x" * 999_998)
    assert len((await expect_run(ice))["params"]) == 999_998


DEEP = [depth * "[" + depth * "]" for depth in (101, 976, 100_000)]


@pytest.mark.parametrize("params", [*DEEP, "1e999", "9" * 5_000], ids=lambda text: text[:10])
async def test_params_that_are_too_complex(running, params):
    await connected(running)
    answer = await running.admin.call(
        "POST",
        "/ices/lab-1/operations",
        data=f'{{"kind": "execute", "params": {params}}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    # What is too deep to be parsed cannot be told from the rest of the body.
    field = "body" if params in DEEP[1:] else "params"
    assert expect_refused(answer, 422, "invalid")["field"] == field


async def test_params_of_the_greatest_depth(running):
    ice = await connected(running)
    params = json.loads(100 * "[" + 100 * "]")
    await asked(running.admin, params=params)
    assert (await expect_run(ice))["params"] == params


async def test_a_body_that_is_no_json(running):
    answer = await running.admin.call(
        "POST",
        "/ices/lab-1/operations",
        data=b'{"kind": "execute", "params": {',
        headers={"Content-Type": "application/json"},
    )
    expect_refused(answer, 400, "malformed-json")


async def test_only_a_registered_ice_is_sent_work(running):
    expect_refused(await ask(running.admin), 404, "not-registered")
    ice = await running.provision()
    expect_refused(await ask(running.admin), 409, "wrong-status")
    await (await ice.connect()).leave()
    assert (await ask(running.admin)).status == 202
    await running.act("lab-1", "deregister")
    expect_refused(await ask(running.admin), 409, "wrong-status")
    await running.act("lab-1", "reregister")
    expect_refused(await ask(running.admin), 409, "wrong-status")


async def test_a_kind_that_the_type_does_not_allow_is_refused_for_everyone(running):
    await connected(running, "build-7", "ci-cd")
    refusal = expect_refused(await ask(running.admin, "build-7", "scrape"), 409, "kind-not-allowed")
    assert "remote-execute and schedule" in refusal["detail"]
    assert (await running.admin.get("/operations")).json["items"] == []


async def test_the_queue_of_an_ice_is_bounded(running):
    await (await (await running.provision()).connect()).leave()
    first = await asked(running.admin)
    # All but this and the last are requested where the API does so: an HTTP call takes longer than the rest.
    service, ices = running.gateway.services.operations, IceListing(running.gateway.engine)
    entry, request = (await ices.find("lab-1")).ice, OperationRequest(OperationKind.EXECUTE, b"{}")
    requested = (service.request(ADMIN, entry, request) for _ in range(MAX_UNFINISHED - 2))
    assert all(isinstance(made, Operation) for made in await asyncio.gather(*requested))
    await asked(running.admin)
    refusal = expect_refused(await ask(running.admin), 429, "queue-full")
    assert refusal["detail"].startswith("1,000 operations of this ICE are unfinished: wait until")
    await running.admin.post(f"/operations/{first}/cancel")
    await asked(running.admin)


# --- what is kept for an ICE -------------------------------------------------------------------


@pytest.fixture
async def tight(tmp_path):
    """A gateway that keeps 10,000 bytes for each ICE."""
    async with harness(tmp_path, operations__kept_bytes=10_000) as started:
        yield started


def text(size):
    """A text of so many bytes of JSON."""
    return "x" * (size - 2)


async def test_parameters_that_wait_leave_no_room_beyond_the_bytes_that_are_kept(tight):
    for name in ("lab-1", "lab-2"):
        await (await (await tight.provision(name)).connect()).leave()
    first = await asked(tight.admin, params=text(6000))
    refusal = expect_refused(await ask(tight.admin, params=text(4002)), 429, "queue-full")
    assert refusal["title"] == "Too much waits for this ICE"
    assert "have 6,000 bytes" in refusal["detail"]
    assert "4,002, of 10,000 (operations.kept_bytes)" in refusal["detail"]
    expect_refused(await ask(tight.admin, "lab-2", params=text(10_002)), 429, "queue-full")
    await asked(tight.admin, params=text(4000))
    await asked(tight.admin, "lab-2", params=text(10_000))
    assert (await show(tight.admin, first))["params"] == text(6000), "what waits loses nothing"


async def test_the_oldest_finished_ones_make_room(tight):
    """What is requested and cancelled, again and again, does not fill the table."""
    await (await (await tight.provision()).connect()).leave()
    waits = await asked(tight.admin, params=text(3000))
    made = []
    for _ in range(6):
        made.append(await asked(tight.admin, params=text(3000), idempotency_key=str(len(made))))
        await tight.admin.post(f"/operations/{made[-1]}/cancel")
    shown = [await show(tight.admin, operation) for operation in made]
    # Of each the gateway's own error is kept, too: three have no room beside what waits.
    assert [item["params"] for item in shown] == [None] * 4 + [text(3000)] * 2
    assert {(item["state"], item["error"]["code"]) for item in shown} == {("cancelled",) * 2}
    assert (await show(tight.admin, waits))["params"] == text(3000)
    answer = await ask(tight.admin, params=text(3000), idempotency_key="0")
    assert answer.json["id"] == made[0], "its key was lost"
    assert await kept(tight) == 3000 + 2 * (3000 + len(msgspec.json.encode(shown[-1]["error"])))


async def test_what_an_operation_comes_to_is_there_for_its_requester(tight):
    """What waits fills the room: of what has finished only the newest keeps what it holds."""
    ice = await connected(tight)
    first = await asked(tight.admin, params=text(3000))
    await expect_run(ice)
    await asked(tight.admin, params=text(6900))
    await finished(ice, first, result=text(500))
    assert (await show(tight.admin, first))["result"] == text(500)


async def test_results_make_room_too_and_what_is_kept_is_counted_exactly(tight):
    ice = await connected(tight)
    made = []
    for number in range(4):
        made.append(await asked(tight.admin, params=text(1000)))
        await expect_run(ice)
        accept(ice, made[-1])
        progress(ice, made[-1], message="é", data=text(500))
        if number % 2:
            await finished(ice, made[-1], result=text(2000))
        else:
            error = {"code": "c", "message": text(1000), "data": text(1000)}
            await finished(ice, made[-1], "failed", error=error)
    shown = [await show(tight.admin, operation) for operation in made]
    assert [item["params"] for item in shown] == [None] * 2 + [text(1000)] * 2
    first = shown[0]
    assert (first["result"], first["progress"], first["state"]) == (None, None, "failed")
    assert first["error"]["code"] == "c", "a short error stays"
    assert shown[3]["result"] == text(2000)
    values = [
        item[name]
        for item in shown[2:]
        for name in ("params", "progress", "result", "error")
        if item[name] is not None
    ]
    assert await kept(tight) == sum(len(msgspec.json.encode(value)) for value in values)


async def test_a_large_error_is_given_up_with_the_rest(tight):
    ice = await connected(tight)
    made = []
    for _ in range(2):
        made.append(await asked(tight.admin))
        await take(ice)
        await finished(ice, made[-1], "failed", error={"code": "c", "message": text(6000)})
    first, second = [(await show(tight.admin, operation))["error"] for operation in made]
    assert first == {"code": "failed", "message": "why it failed is not kept any more"}
    assert second["message"] == text(6000)


async def test_what_was_given_up_may_still_come_to_something(tmp_path):
    """The ICE says after all what became of an operation that was lost and has made room."""
    tuning = Tuning(node=NodeLimits(finish_grace=timedelta(0)))
    async with harness(tmp_path, tuning=tuning, operations__kept_bytes=10_000) as running:
        ice = await running.provision()
        connection = await greeted(ice)
        lost = await asked(running.admin, params=text(3000))
        await take(connection)
        await connection.leave()
        connection = await greeted(ice)
        await in_state(running, lost, "lost")
        await asked(running.admin, params=text(9000))
        assert (await show(running.admin, lost))["params"] is None
        await expect_run(connection)
        await finished(connection, lost, result=text(500))
        shown = await show(running.admin, lost)
        assert (shown["state"], shown["result"]) == ("succeeded", text(500))
        assert await kept(running) == 9500


async def test_only_so_many_finished_ones_keep_what_they_hold(running):
    await (await (await running.provision()).connect()).leave()

    async def cancelled(number):
        operation = await asked(running.admin, params=number)
        await running.admin.post(f"/operations/{operation}/cancel")
        return operation

    oldest = [await cancelled(number) for number in range(3)]
    await copied(running, oldest[-1], MAX_KEPT - 3)
    newest = [await cancelled(number) for number in range(2)]
    shown = [(await show(running.admin, item))["params"] for item in (*oldest, *newest)]
    assert shown == [None, None, 2, 0, 1]


async def copied(running, operation, times):
    """Write an operation once more and more, straight into the table."""
    columns = "ice_name, kind, params, state, requested_by, created, deadline, finished, kept"
    ids = as_json([[f"{number:024x}"] for number in range(times)])
    await running.gateway.engine.write(
        lambda transaction: transaction.run(
            f"INSERT INTO ice_operations (id, {columns}) SELECT copy, {columns}"  # noqa: S608 - our own
            f" FROM ice_operations CROSS JOIN {rows_of(1, 'copy')} WHERE id = $2",
            ids,
            operation,
        )
    )


async def kept(running):
    """The bytes that the table counts."""
    [(size,)] = await running.gateway.engine.fetch("SELECT sum(kept) FROM ice_operations")
    return size


# --- idempotency -------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_operation(running):
    ice = await connected(running)
    answers = await asyncio.gather(
        *(ask(running.admin, params=number, idempotency_key="k") for number in range(5))
    )
    assert [answer.status for answer in answers] == [202] * 5
    [operation] = {answer.json["id"] for answer in answers}
    await finished(ice, await take(ice), result=1)
    again = await ask(running.admin, idempotency_key="k")
    assert (again.status, again.json["id"], again.json["result"]) == (200, operation, 1)
    # Deregistered meanwhile: whoever asks again learns what became of it all the same.
    await running.act("lab-1", "deregister")
    assert (await ask(running.admin, idempotency_key="k")).json["id"] == operation


@pytest.mark.parametrize("kind", ["execute", "schedule"])
async def test_a_key_is_known_after_its_own_times_have_passed(tmp_path, kind):
    """A caller who lost the answer learns of the operation, however late they ask again."""
    now = [datetime.now(UTC)]
    async with harness(tmp_path, clock=lambda: now[0]) as running:
        await connected(running)
        times = {"deadline": (now[0] + timedelta(hours=1)).isoformat()}
        if kind == "schedule":
            times["run_at"] = (now[0] + timedelta(minutes=30)).isoformat()
        body = {"kind": kind, "idempotency_key": "late", **times}
        first = await running.admin.post("/ices/lab-1/operations", body)
        assert first.status == 202
        now[0] += timedelta(hours=2)
        again = await running.admin.post("/ices/LAB-1/operations", body)
        assert again.json["id"] == first.json["id"]
        other = await running.admin.post("/ices/lab-1/operations", {**body, "idempotency_key": "x"})
        expect_refused(other, 422, "invalid")


async def test_a_key_is_its_users_and_its_ices(running):
    await connected(running)
    await connected(running, "lab-2")
    alice = await running.api("alice")
    found = {
        (await ask(api, name, idempotency_key="k")).json["id"]
        for api in (running.admin, alice)
        for name in ("lab-1", "lab-2")
    }
    assert len(found) == 4


# --- who may -----------------------------------------------------------------------------------


async def test_a_member_operates_their_own_normal_ices_alone(running):
    await connected(running)
    await connected(running, "build-7", "ci-cd")
    alice, bob = await running.api("alice"), await running.api("bob", Role.MEMBER)
    operation = await asked(alice)
    expect_refused(await ask(alice, "build-7", "remote-execute"), 404, "not-registered")
    expect_refused(await ask(bob), 404, "not-registered")
    foreign = await asked(running.admin, "build-7", "remote-execute")
    for path in (f"/operations/{foreign}", f"/operations/{foreign}/stream"):
        expect_refused(await alice.get(path), 404, "not-found")
    expect_refused(await alice.post(f"/operations/{foreign}/cancel"), 404, "not-found")
    assert [item["id"] for item in (await alice.get("/operations")).json["items"]] == [operation]
    assert (await bob.get("/operations?ice_name=lab-1")).json["items"] == []
    assert (await alice.post(f"/operations/{operation}/cancel")).status == 200


async def test_an_auditor_reads_everything_and_changes_nothing(running):
    await connected(running)
    operation = await asked(running.admin)
    auditor = await running.api("eve", Role.AUDITOR)
    assert (await show(auditor, operation))["id"] == operation
    assert len((await auditor.get("/operations")).json["items"]) == 1
    expect_refused(await ask(auditor), 403, "forbidden")
    expect_refused(await auditor.post(f"/operations/{operation}/cancel"), 403, "forbidden")


async def test_a_token_for_one_ice_operates_that_one(running):
    ice = await connected(running, "build-7", "ci-cd")
    await connected(running)
    others = await asked(running.admin)
    job = await running.api("alice", ice="build-7")
    operation = await asked(job, "BUILD-7", "remote-execute")
    assert (await show(job, operation))["requested_by"] == "alice"
    listed = (await job.get("/operations")).json["items"]
    assert [item["id"] for item in listed] == [operation]
    assert (await job.get("/operations?ice_name=lab-1")).json["items"] == []
    expect_refused(await ask(job, "lab-1"), 404, "not-registered")
    expect_refused(await job.get(f"/operations/{others}"), 404, "not-found")
    expect_refused(await job.post(f"/operations/{others}/cancel"), 404, "not-found")
    assert await take(ice) == operation
    assert (await job.post(f"/operations/{operation}/cancel")).status == 200


# --- listing -----------------------------------------------------------------------------------


async def test_operations_are_listed_newest_first_filtered_and_paged(running):
    await connected(running)
    await connected(running, "build-7", "ci-cd")
    made = [await asked(running.admin, kind=kind) for kind in ("execute", "scrape", "debug")]
    made.append(await asked(running.admin, "build-7", "remote-execute"))

    async def listed(query):
        answer = await running.admin.get(f"/operations?{query}")
        return [made.index(item["id"]) for item in answer.json["items"]], answer.json["next"]

    assert await listed("") == ([3, 2, 1, 0], None)
    assert await listed("ice_name=LAB-1") == ([2, 1, 0], None)
    assert await listed("ice_name=nobody") == ([], None)
    assert await listed("kind=scrape") == ([1], None)
    await in_state(running, made[0], "sent")
    assert await listed("state=queued&ice_name=lab-1") == ([2, 1], None)
    seen, cursor = await listed("limit=3")
    rest, end = await listed(f"limit=3&cursor={cursor}")
    assert (seen + rest, end) == ([3, 2, 1, 0], None)
    for query in ("limit=0", "limit=201", "state=done", "kind=dance", "cursor=!", "cursor=eHg"):
        expect_refused(await running.admin.get(f"/operations?{query}"), 422, "invalid")


@pytest.mark.parametrize("column", UNREADABLE)
async def test_what_an_older_version_stored_spoils_no_listing(running, column):
    await connected(running)
    ids = [await asked(running.admin, params={"n": n}) for n in range(2)]
    for operation in ids:
        await running.admin.post(f"/operations/{operation}/cancel")
    await stored(running, ids[0], column, UNREADABLE[column])
    items = (await running.admin.get("/operations")).json["items"]  # read by Python's own json
    assert [item["id"] for item in items] == ids[::-1]
    spoilt = items[1]
    assert spoilt == await show(running.admin, ids[0])
    shown = spoilt["progress"].pop("data") if column == "progress" else spoilt[column]
    assert shown is None
    if column == "progress":
        assert (spoilt["progress"]["fraction"], spoilt["progress"]["message"]) == (0.5, "half")
    async with follow(running.admin, ids[0]) as stream:
        while (news := await stream.event())[0] != "result":
            pass
        assert news[1]["id"] == ids[0]


async def test_progress_that_cannot_be_read_is_none(running):
    await connected(running)
    operation = await asked(running.admin)
    for odd in ('{"fraction": 1e999}', "[]", "[" * 5000 + "]" * 5000):
        await stored(running, operation, "progress", odd)
        assert (await show(running.admin, operation))["progress"] is None


async def test_a_page_of_large_operations_is_shorter(running):
    await (await (await running.provision()).connect()).leave()
    for _ in range(6):
        await asked(running.admin, params="x" * 999_998)
    first = (await running.admin.get("/operations")).json
    assert len(first["items"]) == 4, "four millions of bytes are a page"
    rest = (await running.admin.get(f"/operations?cursor={first['next']}")).json
    assert (len(rest["items"]), rest["next"]) == (2, None)


async def test_what_is_not_there(running):
    for path in ("/operations/nothing", "/operations/nothing/stream"):
        expect_refused(await running.admin.get(path), 404, "not-found")
    expect_refused(await running.admin.post("/operations/nothing/cancel"), 404, "not-found")


# --- cancelling --------------------------------------------------------------------------------


async def test_what_waits_is_cancelled_and_never_sent(running):
    ice = await running.provision()
    await (await ice.connect()).leave()
    dropped, kept = await asked(running.admin), await asked(running.admin)
    answer = await running.admin.post(f"/operations/{dropped}/cancel")
    assert (answer.status, answer.json["state"]) == (200, "cancelled")
    assert error_of(answer.json) == "cancelled"
    assert (await expect_run(await greeted(ice)))["id"] == kept
    refusal = expect_refused(
        await running.admin.post(f"/operations/{dropped}/cancel"), 409, "already-finished"
    )
    assert "been cancelled" in refusal["detail"]


async def test_what_runs_is_cancelled_and_its_finish_is_too_late(running):
    ice = await connected(running)
    operation, following = await asked(running.admin), await asked(running.admin)
    await take(ice)
    await in_state(running, operation, "running")
    answer = await running.admin.post(f"/operations/{operation}/cancel")
    assert answer.json["state"] == "cancelled"
    await expect_cancel(ice, operation)
    # The next one comes when the ICE has said that it is done with the first.
    await refused(ice, operation, "already-finished", result="in vain")
    assert await take(ice) == following
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["result"]) == ("cancelled", None)


@pytest.mark.parametrize("action", ["deregister", "reregister"])
async def test_whatever_an_ice_was_to_do_ends_with_its_registration(running, action):
    ice = await connected(running)
    one, two = await asked(running.admin), await asked(running.admin)
    await take(ice)
    async with follow(running.admin, two) as reader:
        assert (await reader.event())[1]["state"] == "queued"
        await running.act("lab-1", action)
        for operation in (one, two):
            shown = await show(running.admin, operation)
            assert (shown["state"], error_of(shown)) == ("cancelled", f"{action}ed")
        assert (await reader.event())[1]["state"] == "cancelled"


async def test_a_bulk_action_ends_the_work_of_each(running):
    for name in ("lab-1", "lab-2"):
        await (await (await running.provision(name)).connect()).leave()
    one, two = await asked(running.admin), await asked(running.admin, "lab-2")
    body = {"action": "deregister", "ice_names": ["lab-1", "nobody"]}
    await running.admin.post("/ices/bulk", body)
    assert (await show(running.admin, one))["state"] == "cancelled"
    assert (await show(running.admin, two))["state"] == "queued"


# --- following ---------------------------------------------------------------------------------


async def test_a_stream_tells_states_progress_and_the_result_and_ends(running):
    ice = await running.provision()
    await (await ice.connect()).leave()
    operation = await asked(running.admin)
    async with follow(running.admin, operation) as reader:
        name, data = await reader.event()
        assert (name, data["id"], data["state"]) == ("state", operation, "queued")
        connection = await ice.connect()
        connection.hello(version="1")
        await expect_run(connection)
        assert (await reader.event())[1]["state"] == "sent"
        accept(connection, operation)
        assert (await reader.event())[1]["state"] == "running"
        progress(connection, operation, fraction=0.25, message="\n\nevent: forged")
        name, data = await reader.event()
        assert (name, data["fraction"]) == ("progress", 0.25)
        assert data["message"] == "\n\nevent: forged"
        await finished(connection, operation, result=[1])
        assert (await reader.event())[1]["state"] == "succeeded"
        name, data = await reader.event()
        assert (name, data["state"], data["result"]) == ("result", "succeeded", [1])
        assert await reader.event() is None, "the stream was to end with the result"


async def test_a_stream_of_what_has_finished_tells_it_and_ends(running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await finished(ice, await take(ice))
    async with follow(running.admin, operation) as reader:
        names = [(await reader.event())[0], (await reader.event())[0], await reader.event()]
    assert names == ["state", "result", None]


async def test_who_loses_their_right_is_told_nothing_more(running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    job = await running.api("alice", ice="lab-1")
    async with follow(job, operation) as reader:
        while (await reader.event())[1]["state"] != "running":
            pass
        await running.gateway.services.accounts.disable(ADMIN, "alice")
        await finished(ice, operation, result="secret")
        assert await reader.event() is None, "a disabled user was told of the result"


async def test_who_is_no_admin_any_more_is_told_nothing_more_of_others_ices(running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    eve = await running.api("eve", Role.ADMIN)
    async with follow(eve, operation) as reader:
        while (await reader.event())[1]["state"] != "running":
            pass
        await running.gateway.services.accounts.set_role(ADMIN, "eve", Role.MEMBER)
        await finished(ice, operation, result="secret")
        assert await reader.event() is None, "a member was told of the result of another's ICE"


@pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(max_readers=1)))
async def test_the_streams_of_one_user_are_bounded(running):
    await (await (await running.provision()).connect()).leave()
    operation = await asked(running.admin)
    async with follow(running.admin, operation) as reader:
        await reader.event()
        answer = await running.admin.get(f"/operations/{operation}/stream")
        expect_refused(answer, 429, "too-many-streams")


async def test_a_flood_of_progress_is_thinned(running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    await in_state(running, operation, "running")
    async with follow(running.admin, operation) as reader:
        assert (await reader.event())[0] == "state"
        for number in range(2000):
            progress(ice, operation, fraction=number / 2000, message=str(number))
        await finished(ice, operation)
        told = []
        while (event := await reader.event()) is not None:
            if event[0] == "progress":
                told.append(event[1]["message"])
    assert told[-1] == "1999", "the last word counts"
    assert len(told) < 50, f"2000 progresses were told as {len(told)}"


@pytest.mark.parametrize(
    ("news", "told"),
    [
        ({"fraction": 7}, (1.0, None, None)),
        ({"fraction": -7}, (0.0, None, None)),
        ({"message": "m" * 5000}, (None, "m" * 1000, None)),
        ({"message": "large", "data": "x" * 70_000}, (None, "large", None)),
    ],
)
async def test_progress_is_kept_within_bounds(running, news, told):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    progress(ice, operation, **news)
    answer = await running.eventually(
        f"/operations/{operation}", lambda answer: answer.json["progress"]
    )
    shown = answer.json["progress"]
    assert (shown["fraction"], shown["message"], shown["data"]) == told


async def test_a_waiter_that_goes_away_disturbs_nobody(running):
    ice = await connected(running)
    waiter = asyncio.create_task(ask(running.admin, query="?wait=60", idempotency_key="k"))
    operation = await take(ice)
    waiter.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiter
    await finished(ice, operation)
    assert (await ask(running.admin, idempotency_key="k")).json["id"] == operation


async def test_a_waiter_is_answered_when_the_gateway_stops(running):
    await connected(running)
    operation = await asked(running.admin)
    async with follow(running.admin, operation) as reader:
        await reader.event()
        waiting = asyncio.create_task(ask(running.admin, query="?wait=60"))
        await running.eventually("/operations", lambda answer: len(answer.json["items"]) == 2)
        running.gateway.node.waiters.close()
        assert (await waiting).status == 202
        with contextlib.suppress(aiohttp.ClientError):
            while await reader.event() is not None:
                pass


# --- kept --------------------------------------------------------------------------------------


async def test_finished_operations_are_kept_for_a_while(tmp_path):
    now = [datetime.now(UTC)]
    async with harness(tmp_path, clock=lambda: now[0]) as running:
        ice = await connected(running)
        old = await asked(running.admin)
        await finished(ice, await take(ice))
        waits = await asked(running.admin, kind="schedule", run_at=at(10 * 86400))
        now[0] += timedelta(days=2)
        clerk = OperationExpiry(running.gateway.engine, lambda: now[0], 86400, lambda ended: None)
        await clerk.forget()
        expect_refused(await running.admin.get(f"/operations/{old}"), 404, "not-found")
        assert (await show(running.admin, waits))["state"] == "queued"
        found = await Operations(running.gateway.engine.fetch).find(waits)
        assert found is not None


async def test_what_had_to_make_room_is_kept_for_a_day(tmp_path):
    now = [datetime.now(UTC)]
    async with harness(tmp_path, clock=lambda: now[0], operations__kept_bytes=4000) as running:
        await (await (await running.provision()).connect()).leave()
        made = []
        for _ in range(2):
            made.append(await asked(running.admin, params=text(3000)))
            await running.admin.post(f"/operations/{made[-1]}/cancel")
        clerk = OperationExpiry(
            running.gateway.engine, lambda: now[0], 30 * 86400, lambda ended: None
        )
        now[0] += timedelta(hours=23, minutes=59)
        await clerk.forget()
        assert (await show(running.admin, made[0]))["params"] is None
        now[0] += timedelta(minutes=2)
        await clerk.forget()
        expect_refused(await running.admin.get(f"/operations/{made[0]}"), 404, "not-found")
        assert (await show(running.admin, made[1]))["params"] == text(3000)
