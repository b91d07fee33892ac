"""`/enrolment-keys` and `/enrolments`: what a key may be, who decides, and how they are listed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gateway.core.roles import Role
from gateway.core.times import to_text, utc_now
from tests.support.harness import API, Api, expect_refused, hold_to_description
from tests.support.machine import CI_CD, KEY, Machine, new_key

changes_nothing = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def wait(running, secret, hostname):
    """A machine asks; the id of its enrolment."""
    status, answer = await Machine(running.session, running.url, secret, hostname).ask()
    assert status == 202, answer
    return answer["enrolment"]


async def test_a_key_is_made_listed_and_revoked(running):
    expires = to_text(utc_now() + timedelta(days=1)).partition(".")[0]
    more = {"labels": {"b": "1", "a": "2"}, "expires": f"{expires}Z"}
    answer = await running.admin.post("/enrolment-keys", {**KEY, **more})
    key = answer.json["enrolment_key"]
    assert key["expires"] == f"{expires}.000000Z"
    assert answer.json["secret"].startswith(f"iceek_{key['id']}_")
    where = answer.headers["Location"].removeprefix(API)
    assert (await running.admin.get(where)).json == key
    assert (key["uses"], key["max_uses"], key["approval"]) == (0, 1, False)
    assert (key["createdby"], key["revokedon"]) == ("root", None)
    assert list(key["labels"]) == ["a", "b"]
    for _ in range(2):
        assert (await running.admin.call("DELETE", where)).status == 204
    assert (await running.admin.get(where)).json["revokedon"] is not None
    actions = [each["action"] for each in (await running.admin.get("/events")).json["items"]]
    assert actions.count("create-enrolment-key") == actions.count("revoke-enrolment-key") == 1
    expect_refused(await running.admin.call("DELETE", "/enrolment-keys/none"), 404, "not-found")


async def test_listings_are_paged(running):
    for number in range(3):
        await new_key(running, name=f"key {number}")
    _, secret = await new_key(running, approval=True, max_uses=9)
    first = (await running.admin.get("/enrolment-keys?limit=3")).json
    assert [key["name"] for key in first["items"]] == ["lab PCs", "key 2", "key 1"]
    rest = (await running.admin.get(f"/enrolment-keys?limit=3&cursor={first['next']}")).json
    assert ([key["name"] for key in rest["items"]], rest["next"]) == (["key 0"], None)
    asked = [await wait(running, secret, f"pc-{number}") for number in range(3)]
    await running.admin.post(f"/enrolments/{asked[1]}/reject")
    page = (await running.admin.get("/enrolments?limit=2")).json
    assert [each["id"] for each in page["items"]] == asked[:2]
    page = (await running.admin.get(f"/enrolments?limit=2&cursor={page['next']}")).json
    assert ([each["id"] for each in page["items"]], page["next"]) == (asked[2:], None)
    page = (await running.admin.get("/enrolments?state=rejected")).json
    assert [each["id"] for each in page["items"]] == [asked[1]]
    assert page["items"][0]["decidedby"] == "root"
    expect_refused(await running.admin.get("/enrolments?state=x"), 422, "invalid")


async def test_a_decision_is_made_once(running):
    _, secret = await new_key(running, CI_CD, approval=True)
    enrolment = await wait(running, secret, "runner-1")
    assert (await running.admin.post(f"/enrolments/{enrolment}/approve")).status == 200
    for decision in ("approve", "reject"):
        answer = await running.admin.post(f"/enrolments/{enrolment}/{decision}")
        expect_refused(answer, 409, "already-decided")
        answer = await running.admin.post(f"/enrolments/none/{decision}")
        expect_refused(answer, 404, "not-found")
    [event] = (await running.admin.get("/events?action=approve-enrolment")).json["items"]
    assert event["detail"]["ice_name"] == "ci-runner-1"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"ice_type": "other"}, "ice_type"),
        ({"provisionedto": None}, "provisionedto"),
        ({"provisionedto": "nobody-here"}, "provisionedto"),
        ({"provisionedto": "*"}, "provisionedto"),
        ({"name_prefix": "ab"}, "name_prefix"),
        ({"name_prefix": "-lab"}, "name_prefix"),
        ({"name_prefix": "x" * 64}, "name_prefix"),
        ({"max_uses": 0}, "max_uses"),
        ({"max_uses": 10_001}, "max_uses"),
        ({"expires": "2020-01-01T00:00:00Z"}, "expires"),
        ({"expires": "2999-01-01T00:00:00Z"}, "expires"),
        ({"expires": None}, "expires"),
        ({"labels": {"A": "x"}}, "labels.A"),
        ({"colour": "red"}, "colour"),
    ],
)
@changes_nothing
async def test_keys_that_cannot_be(shared, change, field):
    answer = await shared.admin.post("/enrolment-keys", {**KEY, **change})
    assert (answer.status, answer.json["field"]) == (422, field), answer


async def test_who_may_do_what(running):
    _, secret = await new_key(running, approval=True)
    enrolment = await wait(running, secret, "pc-1")
    [key] = (await running.admin.get("/enrolment-keys")).json["items"]
    auditor, member = await running.api("audrey", Role.AUDITOR), await running.api("alice")
    assert (await auditor.get("/enrolment-keys")).status == 200
    assert (await auditor.get("/enrolments")).status == 200
    for api in (auditor, member):
        assert (await api.post("/enrolment-keys", KEY)).status == 403
        assert (await api.call("DELETE", f"/enrolment-keys/{key['id']}")).status == 403
        assert (await api.post(f"/enrolments/{enrolment}/approve")).status == 403
    assert (await member.get("/enrolments")).status == 403
    weak = await running.admin.post("/api-tokens", {"user": "root", "name": "weak"})
    weak_api = Api(running.session, running.url, weak.json["token"])
    assert (await weak_api.post("/enrolment-keys", KEY)).status == 403
    assert (await weak_api.post(f"/enrolments/{enrolment}/approve")).status == 403
    assert (await weak_api.get("/enrolments")).status == 200
