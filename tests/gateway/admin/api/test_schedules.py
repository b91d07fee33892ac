"""`/schedules`: who may do what, what is refused, and what is answered."""

from __future__ import annotations

from gateway.core.roles import Role
from gateway.core.times import from_text, utc_now
from tests.support.harness import expect_refused
from tests.support.work import connected, expect_run, finished, take

NIGHTLY = {
    "name": "nightly",
    "ice_name": "lab-1",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
}


async def made(api, **how):
    answer = await api.post("/schedules", NIGHTLY | how)
    assert answer.status == 201, answer
    return answer.json


def expect_invalid(answer, field):
    assert expect_refused(answer, 422, "invalid")["field"] == field, answer


async def change(api, schedule, **changes):
    return await api.call("PATCH", f"/schedules/{schedule['id']}", json=changes)


async def events(running, action):
    found = (await running.admin.get(f"/events?action={action}")).json["items"]
    return [(one["actor"], one["ice_name"], one["detail"]) for one in found]


async def test_a_schedule_from_its_making_to_its_end(running):
    await running.provision()
    answer = await running.admin.post("/schedules", NIGHTLY | {"ice_name": "LAB-1", "params": [1]})
    one = answer.json
    path = f"/schedules/{one['id']}"
    assert answer.headers["Location"].endswith(path)
    now = utc_now()
    upcoming = [from_text(text) for text in one.pop("next")]
    assert len(upcoming) == 5
    assert upcoming == sorted(upcoming)
    assert upcoming[0] > now
    assert from_text(one.pop("createdon")) <= now
    assert one == {
        "id": one["id"],
        "name": "nightly",
        "ice_name": "lab-1",
        "pool": None,
        "params": [1],
        "cron": "30 2 * * *",
        "timezone": "Europe/Berlin",
        "timeout": 86400,
        "grace": 600,
        "enabled": True,
        "last": None,
        "fault": None,
        "requested_by": "root",
    }
    assert (await running.admin.get(path)).json["params"] == [1]
    changed = await change(running.admin, one, enabled=False, name="weekly", params={"a": 1})
    assert (changed.status, changed.json["name"], changed.json["next"]) == (200, "weekly", [])
    assert changed.json["params"] == {"a": 1}
    expect_invalid(await change(running.admin, one), "body")
    gone = await running.admin.call("DELETE", path)
    assert (gone.status, gone.headers["Cache-Control"]) == (204, "no-store")
    expect_refused(await running.admin.get(path), 404, "not-found")
    assert (await running.admin.get("/schedules")).json == {"items": [], "next": None}
    [(actor, ice, detail)] = await events(running, "create-schedule")
    assert (actor, ice, detail["schedule"]) == ("root", "lab-1", one["id"])
    [(_, _, detail)] = await events(running, "change-schedule")
    assert detail == {
        "schedule": one["id"],
        "name": "weekly",
        "name_before": "nightly",
        "enabled": False,
        "enabled_before": True,
        "params_changed": True,
        "generation_before": 1,
    }
    assert len(await events(running, "delete-schedule")) == 1


NOT_VALID = (
    ("cron", {"cron": "* * * * * *"}),
    ("cron", {"cron": "*/61 * * * *"}),
    ("cron", {"cron": "0 0 L * *"}),
    ("cron", {"cron": "0 0 30 2 *"}),
    ("cron", {"cron": " " * 257}),
    ("timezone", {"timezone": "Europe/Atlantis"}),
    ("timezone", {"timezone": "../../etc/passwd"}),
    ("name", {"name": ""}),
    ("name", {"name": "a\nb"}),
    ("timeout", {"timeout": 0}),
    ("timeout", {"timeout": 10**9}),
    ("grace", {"grace": -1}),
    ("grace", {"grace": 1.5}),
    ("enabled", {"enabled": None}),
    ("ice_name", {"ice_name": None}),
    ("pool", {"pool": "builders"}),
    ("until", {"until": "2030-01-01T00:00:00Z"}),
)


async def test_what_is_not_valid_is_named(running):
    await running.provision()
    one = await made(running.admin)
    for field, how in NOT_VALID:
        expect_invalid(await running.admin.post("/schedules", NIGHTLY | how), field)
        if field not in ("ice_name", "pool"):
            for schedule in (one, {"id": "none"}):
                expect_invalid(await change(running.admin, schedule, **how), field)


async def test_who_may_schedule_what(running):
    """A member their own ICE, an auditor nothing, and a token for an ICE or a pool not even that."""
    await running.provision()
    await running.provision("lab-2", "ci-cd")
    await running.make_pool("builders", {"os": "linux"})
    alice, bob = await running.api("alice"), await running.api("bob", Role.MEMBER)
    auditor = await running.api("eve", Role.AUDITOR)
    of_ice = await made(running.admin)
    of_pool = await made(running.admin, ice_name=None, pool="BUILDERS")
    assert of_pool["pool"] == "builders"
    mine = await made(alice)
    for api, body, status, code in (
        (bob, {}, 404, "not-registered"),
        (alice, {"ice_name": "lab-2"}, 404, "not-registered"),
        (alice, {"ice_name": "none"}, 404, "not-registered"),
        (alice, {"ice_name": None, "pool": "builders"}, 403, "forbidden"),
        (alice, {"ice_name": None, "pool": "none"}, 403, "forbidden"),
        (auditor, {}, 403, "forbidden"),
        (auditor, {"ice_name": None, "pool": "none"}, 404, "not-found"),
        (running.admin, {"ice_name": None, "pool": "none"}, 404, "not-found"),
        (await running.api("alice", ice="lab-1"), {}, 403, "forbidden"),
    ):
        expect_refused(await api.post("/schedules", NIGHTLY | body), status, code)
    ids = {of_ice["id"], of_pool["id"], mine["id"]}
    for api, seen in (
        (running.admin, ids),
        (auditor, ids),
        (alice, {of_ice["id"], mine["id"]}),
        (bob, set()),
    ):
        found = (await api.get("/schedules")).json["items"]
        assert {one["id"] for one in found} == seen
        for each in ids:
            shown = (await api.get(f"/schedules/{each}")).status
            assert shown == (200 if each in seen else 404)
            assert (await api.get(f"/schedules/{each}/occurrences")).status == shown
    for api, one, status in (
        (alice, of_ice, 200),
        (alice, of_pool, 404),
        (bob, of_ice, 404),
        (auditor, of_ice, 403),
    ):
        assert (await change(api, one, grace=5)).status == status
        if status != 200:
            assert (await api.call("DELETE", f"/schedules/{one['id']}")).status == status
            assert (await api.post(f"/schedules/{one['id']}/run")).status == status


async def test_listings_are_filtered_and_come_in_pages(running):
    await running.provision()
    await running.make_pool("builders", {"os": "linux"})
    first = await made(running.admin)
    second = await made(running.admin, name="weekly")
    third = await made(running.admin, ice_name=None, pool="builders")
    for query, found in (
        ("ice_name=LAB-1", [second, first]),
        ("pool=Builders", [third]),
        ("q=week", [second]),
        ("q=BUILD", [third]),
        ("ice_name=none", []),
    ):
        answer = await running.admin.get(f"/schedules?{query}")
        assert [one["id"] for one in answer.json["items"]] == [one["id"] for one in found]
    page = (await running.admin.get("/schedules?limit=2")).json
    rest = (await running.admin.get(f"/schedules?limit=2&cursor={page['next']}")).json
    assert [one["id"] for one in rest["items"]] == [first["id"]]
    assert rest["next"] is None
    expect_invalid(await running.admin.get("/schedules?cursor=!"), "cursor")


async def test_run_now_and_its_history(running):
    ice = await connected(running)
    one = await made(running.admin, enabled=False, params={"suite": "smoke"})
    path = f"/schedules/{one['id']}"
    alice = await running.api("alice")
    answer = await alice.post(f"{path}/run")
    assert answer.status == 202
    operation = answer.json
    assert answer.headers["Location"].endswith(f"/admin/api/v1/operations/{operation['id']}")
    assert (operation["kind"], operation["schedule"]) == ("schedule", one["id"])
    assert (operation["requested_by"], operation["params"]) == ("alice", {"suite": "smoke"})
    waiting = (await running.admin.post(f"{path}/run")).json
    assert await take(ice) == operation["id"]
    again = (await running.admin.get(f"/operations/{waiting['id']}")).json
    assert (again["state"], again["waits"]) == ("queued", "operation-before")
    await finished(ice, operation["id"])
    assert (await expect_run(ice))["id"] == waiting["id"]
    found = (await alice.get(f"/operations?schedule={one['id']}")).json["items"]
    assert {each["id"] for each in found} == {operation["id"], waiting["id"]}
    runs = await events(running, "run-schedule")
    assert [(actor, detail["operation"]) for actor, _, detail in runs] == [
        ("alice", operation["id"]),
        ("root", waiting["id"]),
    ]
    await running.act("lab-1", "deregister")
    expect_refused(await alice.post(f"{path}/run"), 409, "wrong-status")
    assert (await alice.get(f"{path}/occurrences")).json == {"items": [], "next": None}


async def test_another_user_of_the_ice_gets_none_of_the_former_ones(running):
    await running.provision()
    await running.add_user("bob")
    alice, bob = await running.api("alice"), await running.api("bob")
    mine, of_root = await made(alice), await made(running.admin)
    answer = await running.admin.post("/ices/lab-1/reprovision", {"provisionedto": "bob"})
    assert answer.status == 200
    assert [one["id"] for one in (await bob.get("/schedules")).json["items"]] == [of_root["id"]]
    assert (await alice.get("/schedules")).json["items"] == []
    expect_refused(await bob.get(f"/schedules/{mine['id']}"), 404, "not-found")
    shown = (await running.admin.get(f"/schedules/{mine['id']}")).json
    assert (shown["enabled"], shown["next"]) == (False, [])
    enabled = await change(running.admin, mine, enabled=True)
    assert enabled.json["requested_by"] == "root"
    assert (await bob.get(f"/schedules/{mine['id']}")).status == 200


async def test_a_pool_that_a_schedule_names_is_not_deleted(running):
    await running.make_pool("builders", {"os": "linux"})
    one = await made(running.admin, ice_name=None, pool="builders")
    expect_refused(await running.admin.call("DELETE", "/pools/builders"), 409, "in-use")
    assert (await running.admin.call("DELETE", f"/schedules/{one['id']}")).status == 204
    assert (await running.admin.call("DELETE", "/pools/builders")).status == 204


async def test_large_params_are_taken_up_to_their_bound(running):
    await running.provision()
    one = await made(running.admin, params="x" * 999_998)
    assert len((await running.admin.get(f"/schedules/{one['id']}")).json["params"]) == 999_998
    refused = await running.admin.post("/schedules", NIGHTLY | {"params": "x" * 999_999})
    expect_invalid(refused, "params")
