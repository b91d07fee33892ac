"""`/pools`, API tokens for one pool, and the filter of ICEs by pool."""

from __future__ import annotations

import pytest

from gateway.core.audit_event import Actor, Via
from gateway.core.pool import Pool
from gateway.core.problems import Problem
from gateway.core.roles import Role
from gateway.services.pools import PoolService
from gateway.store import pools
from tests.support.harness import Api, expect_refused, hold_to_description
from tests.support.work import connected

changes_nothing = pytest.mark.asyncio(loop_scope="module")

ROOT = Actor("root", Via.API, "::1")
GPU = {"labels": {"gpu": "yes"}}


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def put(running, place="gpu", status=201, **body):
    answer = await running.admin.call("PUT", f"/pools/{place}", json=GPU | body)
    assert answer.status == status, answer
    return answer.json


async def events_of(running, action):
    return (await running.admin.get(f"/events?action={action}")).json["items"]


async def test_a_pool_is_made_changed_and_deleted(running):
    made = await put(running, "GPU", description="fast")
    shown = {"name": "GPU", "description": "fast", "ice_type": None, **GPU, "createdby": "root"}
    assert made == shown | {
        "createdon": made["createdon"],
        "ices": {"total": 0, "connected": 0, "busy": 0},
    }
    assert (await running.admin.get("/pools/gpu")).json == made
    changed = await put(running, "gpu", 200, name="Gpu", ice_type="ci-cd")
    assert changed == made | {"ice_type": "ci-cd", "description": ""}
    assert await put(running, "gpu", 200, ice_type="ci-cd") == changed
    assert (await running.admin.call("DELETE", "/pools/gpu")).status == 204
    for method in ("GET", "DELETE"):
        expect_refused(await running.admin.call(method, "/pools/gpu"), 404, "not-found")
    [event] = await events_of(running, "create-pool")
    assert event["detail"] == {"pool": "GPU", "description": "fast", "ice_type": None, **GPU}
    [event] = await events_of(running, "change-pool")
    assert event["detail"] == {
        "pool": "GPU",
        "description": "",
        "description_before": "fast",
        "ice_type": "ci-cd",
        "ice_type_before": None,
    }
    [event] = await events_of(running, "delete-pool")
    assert (event["detail"]["pool"], event["detail"]["api_tokens_revoked"]) == ("GPU", 0)


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("gpu", {"labels": {}}, "labels"),
        ("gpu", {}, "labels"),
        ("gpu", {"labels": {"A": "b"}}, "labels.A"),
        ("gpu", {"labels": {"a": None}}, "labels[...]"),
        ("gpu", GPU | {"ice_type": "other"}, "ice_type"),
        ("gpu", GPU | {"description": "x" * 1001}, "description"),
        ("gpu", GPU | {"description": "\x1b"}, "description"),
        ("gpu", GPU | {"name": "other"}, "name"),
        ("gpu", GPU | {"ices": {}}, "ices"),
        ("a%20b", GPU, "name"),
    ],
)
@changes_nothing
async def test_what_is_refused_names_its_field(shared, name, body, field):
    answer = await shared.admin.call("PUT", f"/pools/{name}", json=body)
    assert expect_refused(answer, 422, "invalid")["field"] == field
    assert (await shared.admin.get("/pools")).json["items"] == []


async def test_pools_are_paged_and_searched(running):
    for name in ("b", "A", "c"):
        await put(running, name, description=f"of {name}")
    first = (await running.admin.get("/pools?limit=2")).json
    assert [pool["name"] for pool in first["items"]] == ["A", "b"]
    rest = (await running.admin.get(f"/pools?limit=2&cursor={first['next']}")).json
    assert ([pool["name"] for pool in rest["items"]], rest["next"]) == (["c"], None)
    found = (await running.admin.get("/pools?q=OF a")).json
    assert [pool["name"] for pool in found["items"]] == ["A"]
    expect_refused(await running.admin.get("/pools?limit=0"), 422, "invalid")


async def test_ices_are_counted_and_found_by_their_pool(running):
    await connected(running, "here", "ci-cd")
    await running.provision("away")
    await running.provision("other")
    for name in ("here", "away"):
        await running.label(name, gpu="yes")
    await put(running)
    await put(running, "machines", ice_type="ci-cd")
    await running.settled()
    counts = {
        pool["name"]: pool["ices"] for pool in (await running.admin.get("/pools")).json["items"]
    }
    assert counts == {
        "gpu": {"total": 2, "connected": 1, "busy": 0},
        "machines": {"total": 1, "connected": 1, "busy": 0},
    }
    found = (await running.admin.get("/ices?pool=GPU&sort=-name")).json
    assert [ice["ice_name"] for ice in found["items"]] == ["here", "away"]
    assert (await running.admin.get("/ice-counts?pool=machines")).json["status"]["registered"] == 1
    answer = await running.admin.post(
        "/ices/bulk", {"action": "disconnect", "dry_run": True, "filter": {"pool": "gpu"}}
    )
    assert [item["ice_name"] for item in answer.json["items"]] == ["away", "here"]
    for path in ("/ices?pool=none", "/ice-counts?pool=none"):
        refused = expect_refused(await running.admin.get(path), 422, "invalid")
        assert refused["field"] == "pool"


async def test_members_do_not_learn_which_pools_there_are(running):
    await put(running)
    alice = await running.api("alice")
    for name in ("gpu", "none"):
        expect_refused(await alice.get(f"/pools/{name}"), 403, "forbidden")
        expect_refused(await alice.get(f"/ices?pool={name}"), 403, "forbidden")
    eve = await running.api("eve", Role.AUDITOR)
    assert (await eve.get("/ices?pool=gpu")).status == 200
    expect_refused(await eve.call("PUT", "/pools/gpu", json=GPU), 403, "forbidden")
    expect_refused(await eve.call("DELETE", "/pools/gpu"), 403, "forbidden")


# --- API tokens for a pool -----------------------------------------------------------------------


async def test_a_token_for_a_pool_ends_with_it(running):
    await put(running, "GPU")
    answer = await running.admin.post("/api-tokens", {"user": "root", "name": "job", "pool": "gpu"})
    assert answer.status == 201, answer
    made = answer.json["api_token"]
    assert (made["pool"], made["ice_name"], made["accounts"]) == ("GPU", None, False)
    listed = (await running.admin.get("/api-tokens?q=gpu")).json["items"]
    assert [token["id"] for token in listed] == [made["id"]]
    [event] = [
        each for each in await events_of(running, "create-api-token") if each["detail"]["pool"]
    ]
    assert event["detail"]["pool"] == "GPU"
    job = Api(running.session, running.url, answer.json["token"])
    for path in ("/pools", "/pools/gpu", "/ices", "/ices?pool=gpu", "/me", "/users/root", "/nodes"):
        refused = expect_refused(await job.get(path), 403, "forbidden")
        assert refused["detail"] in (
            "This API token may operate the pool GPU and nothing else.",
            "Only admins and auditors see pools.",
        )
    await running.provision("mine", "ci-cd")
    expect_refused(await job.get("/ices/mine"), 404, "not-registered")
    assert (await running.admin.call("DELETE", "/pools/gpu")).status == 204
    expect_refused(await job.get("/pools"), 401, "unauthenticated")
    [event] = await events_of(running, "delete-pool")
    assert event["detail"]["api_tokens_revoked"] == 1
    await put(running, "GPU")
    expect_refused(await job.get("/pools"), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"pool": "none"}, "pool"),
        ({"pool": ""}, "pool"),
        ({"pool": "gpu", "ice": "mine"}, "pool"),
        ({"pool": "gpu", "accounts": True}, "accounts"),
    ],
)
async def test_which_tokens_are_refused(running, more, field):
    await running.provision("mine", "ci-cd")
    await put(running)
    answer = await running.admin.post("/api-tokens", {"user": "root", "name": "job", **more})
    assert expect_refused(answer, 422, "invalid")["field"] == field


async def test_a_key_of_a_pools_token_brings_no_operation_that_another_requested(running):
    await put(running)
    callers = [running.admin, *[await running.api("root", pool="gpu") for _ in range(2)]]

    async def requested(api, **body):
        answer = await api.post(
            "/pools/gpu/operations", {"kind": "remote-execute", "idempotency_key": "job-1", **body}
        )
        return answer.json["id"]

    ids = [await requested(api, params=place) for place, api in enumerate(callers)]
    assert len(set(ids)) == len(callers)
    assert ids == [await requested(api, deadline="2020-01-01T00:00:00Z") for api in callers]


async def test_a_token_for_a_pool_administers_nothing(running):
    """The last admin who has a password or a token for everything stays one."""
    accounts = running.gateway.services.accounts
    await put(running)
    await running.api("bob", Role.ADMIN, pool="gpu")
    for token in await accounts.tokens():
        if token.user == "root":
            last = token
    answer = await running.admin.call("PATCH", "/users/root", json={"role": "member"})
    expect_refused(answer, 409, "last-admin")
    assert last.pool is None


async def test_a_pool_in_use_stays(running):
    await put(running)
    engine = running.gateway.admin.engine

    async def schedule(transaction):
        assert isinstance(await pools.find(transaction, "GPU"), Pool)
        await transaction.run(
            "INSERT INTO ice_schedules (id, name, pool, params, cron, timezone, timeout, grace,"
            " enabled, requested_by, via, createdon) VALUES ('1', 'nightly', 'gpu', '1', '0 0 * * *', 'UTC',"
            " 60, 600, 0, 'root', 'api', '2026-11-29T00:00:00Z')"
        )

    await engine.write(schedule)
    refused = expect_refused(await running.admin.call("DELETE", "/pools/gpu"), 409, "in-use")
    assert refused["detail"] == "the schedule nightly is of this pool"
    service: PoolService = running.gateway.services.pools
    assert isinstance(await service.delete(ROOT, "gpu"), Problem)
