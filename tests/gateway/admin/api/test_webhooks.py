"""`/webhooks`: what is refused, what is answered, and what is never shown."""

from __future__ import annotations

import pytest

from gateway.core.roles import Role
from gateway.core.times import from_text, utc_now
from gateway.core.webhook import MAX_WEBHOOKS
from gateway.store.webhooks import SetAside, Webhooks, set_aside
from tests.support.harness import ADMIN, Api, expect_refused
from tests.support.receiver import receiving

changes_nothing = pytest.mark.asyncio(loop_scope="module")

HOOK = {
    "name": "ops",
    "url": "https://hooks.example.com/T0/x",
    "events": ["deregister", "ice.away"],
}
ALLOW = pytest.mark.gateway(webhooks__allow=["127.0.0.0/8"])


async def made(running, **how):
    answer = await running.admin.post("/webhooks", HOOK | how)
    assert answer.status == 201, answer
    return answer.json


async def test_a_webhook_from_its_making_to_its_end(running):
    answer = await running.admin.post("/webhooks", HOOK | {"enabled": False})
    one, secret = answer.json["webhook"], answer.json["secret"]
    path = f"/webhooks/{one['id']}"
    assert answer.status == 201
    assert answer.headers["Location"].endswith(path)
    assert secret.startswith("whsec_")
    assert from_text(one.pop("createdon")) <= utc_now()
    position = one.pop("position")
    assert one == {
        "id": one["id"],
        "name": "ops",
        "url": HOOK["url"],
        "events": HOOK["events"],
        "enabled": False,
        "failing": None,
        "set_aside": 0,
        "createdby": "root",
    }
    shown = await running.admin.get(path)
    assert shown.json["position"] == position
    assert secret.encode() not in shown.body
    changed = await running.admin.call(
        "PATCH", path, json={"name": "new", "url": "https://b.example/", "events": ["*"]}
    )
    assert (changed.status, changed.json["name"]) == (200, "new")
    assert changed.json["events"] == ["*"]
    assert (await running.admin.get("/webhooks?q=ne")).json["items"] == [changed.json]
    assert (await running.admin.get("/webhooks?q=other")).json == {"items": [], "next": None}
    gone = await running.admin.call("DELETE", path)
    assert (gone.status, gone.headers["Cache-Control"]) == (204, "no-store")
    expect_refused(await running.admin.get(path), 404, "not-found")
    log = await running.admin.get("/events?limit=200")
    assert secret.encode() not in log.body
    assert b"T0/x" not in log.body, "a path may hold a credential"
    found = [one["detail"] for one in log.json["items"] if "webhook" in one["action"]]
    assert found[0] == {
        "webhook": one["id"],
        "name": "ops",
        "url": "https://hooks.example.com",
        "events": HOOK["events"],
        "enabled": False,
    }
    assert found[1] == {
        "webhook": one["id"],
        "name": "new",
        "name_before": "ops",
        "url": "https://b.example",
        "url_before": "https://hooks.example.com",
        "events": ["*"],
        "events_before": HOOK["events"],
    }
    assert found[2] == {"webhook": one["id"], "name": "new"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"url": "http://hooks.example.com"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "http://127.0.0.1:1/"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["nonsense"]}, "events"),
        ({"events": [1]}, "events[0]"),
        ({"secret": "mine"}, "secret"),
    ],
)
@changes_nothing
async def test_what_no_webhook_may_be(shared, change, field):
    answer = await shared.admin.post("/webhooks", HOOK | change)
    assert expect_refused(answer, 422, "invalid")["field"] == field
    answer = await shared.admin.call("PATCH", "/webhooks/none", json=change)
    assert expect_refused(answer, 422, "invalid")["field"] == field
    assert (await shared.admin.get("/webhooks")).json["items"] == []


async def test_what_is_not_valid_is_refused_whoever_asks(running):
    auditor = await running.api("eve", Role.AUDITOR)
    bad = {"url": "https://10.0.0.1/"}
    expect_refused(await auditor.post("/webhooks", HOOK | bad), 422, "invalid")
    expect_refused(await auditor.post("/webhooks", HOOK), 403, "forbidden")
    one = (await made(running, enabled=False))["webhook"]
    path = f"/webhooks/{one['id']}"
    expect_refused(await auditor.call("PATCH", path, json=bad), 422, "invalid")
    expect_refused(await auditor.call("PATCH", path, json={"name": "x"}), 403, "forbidden")


async def test_a_change_of_nothing_is_refused(running):
    one = (await made(running, enabled=False))["webhook"]
    answer = await running.admin.call("PATCH", f"/webhooks/{one['id']}", json={})
    assert expect_refused(answer, 422, "invalid")["field"] == "body"


async def test_there_are_so_many_and_they_are_listed_in_pages(running):
    for number in range(MAX_WEBHOOKS):
        await made(running, name=f"w{number}", enabled=False)
    answer = await running.admin.post("/webhooks", HOOK)
    assert expect_refused(answer, 422, "invalid")["field"] == "name"
    page = (await running.admin.get("/webhooks?limit=30")).json
    rest = (await running.admin.get(f"/webhooks?limit=30&cursor={page['next']}")).json
    names = [one["name"] for one in page["items"] + rest["items"]]
    assert sorted(names) == sorted(f"w{number}" for number in range(MAX_WEBHOOKS))
    assert rest["next"] is None


async def test_a_token_without_accounts_makes_and_changes_none(running):
    one = (await made(running, enabled=False))["webhook"]
    accounts = running.gateway.services.accounts
    token = await accounts.create_token(ADMIN, "root", "leaked", 0, None)
    leaked = Api(running.session, running.url, token.secret.reveal())
    expect_refused(await leaked.post("/webhooks", HOOK), 403, "forbidden")
    path = f"/webhooks/{one['id']}"
    answer = await leaked.call("PATCH", path, json={"url": "https://evil.example"})
    expect_refused(answer, 403, "forbidden")
    assert (await leaked.get(path)).status == 200
    auditor = await running.api("eve", Role.AUDITOR)
    assert (await auditor.get(path)).status == 200
    expect_refused(await auditor.post(f"{path}/test"), 403, "forbidden")


@ALLOW
async def test_a_test_is_sent_and_what_became_of_it_is_listed(running):
    async with receiving() as receiver:
        issued = await made(running, url=receiver.url, enabled=False)
        receiver.secret = issued["secret"]
        path = f"/webhooks/{issued['webhook']['id']}"
        receiver.answers = [500]
        failed = (await running.admin.post(f"{path}/test")).json
        assert (failed["status"], failed["error"]) == (500, "answered 500")
        answer = await running.admin.post(f"{path}/test")
        assert (answer.status, answer.json["status"], answer.json["type"]) == (200, 204, "test")
        data = receiver.taken[0][1]["data"]
        assert data == {"webhook": issued["webhook"]["id"], "name": "ops"}
    listed = (await running.admin.get(f"{path}/deliveries")).json
    assert listed == {"items": [answer.json, failed], "next": None}
    page = (await running.admin.get(f"{path}/deliveries?limit=1")).json
    rest = (await running.admin.get(f"{path}/deliveries?limit=1&cursor={page['next']}")).json
    assert [page["items"], rest["items"]] == [[answer.json], [failed]]


@ALLOW
async def test_what_was_set_aside_is_listed_and_sent_again(running):
    async with receiving() as receiver:
        issued = await made(running, url=receiver.url, enabled=False)
        webhook = issued["webhook"]["id"]
        path = f"/webhooks/{webhook}"
        for number in (1, 2):
            one = SetAside(f"log-{number}", "provision", '{"a":1}', utc_now(), 9, "answered 500")
            await running.gateway.engine.write(lambda t, it=one: set_aside(t, webhook, it))
        listed = (await running.admin.get(f"{path}/set-aside?limit=1")).json
        assert [one["message"] for one in listed["items"]] == ["log-2"]
        rest = (await running.admin.get(f"{path}/set-aside?cursor={listed['next']}")).json
        assert [one["message"] for one in rest["items"]] == ["log-1"]
        assert "body" not in rest["items"][0]
        assert (await running.admin.get(path)).json["set_aside"] == 2
        answer = await running.admin.post(f"{path}/set-aside/log-1/send")
        assert (answer.status, answer.json["status"]) == (200, 204)
        assert receiver.taken == [("log-1", {"a": 1})]
        expect_refused(await running.admin.post(f"{path}/set-aside/log-1/send"), 404, "not-found")
        assert len(await Webhooks(running.gateway.engine.fetch).set_aside(webhook)) == 1


async def test_a_name_that_leads_to_this_machine_is_not_called(running):
    issued = await made(running, url="https://localhost:1/", enabled=False)
    answer = await running.admin.post(f"/webhooks/{issued['webhook']['id']}/test")
    assert answer.json["status"] is None
    assert "webhooks.allow" in answer.json["error"]
