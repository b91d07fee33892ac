"""Pausing and resuming ICEs: who may, what is shown, events, filters, counts, many at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.roles import Role
from gateway.core.times import to_text
from tests.support.harness import expect_refused

LATER = to_text(datetime.now(UTC) + timedelta(hours=1))
PAST = "2026-01-01T00:00:00Z"


async def pause(api, name="lab-1", status=200, action="pause", **body):
    answer = await api.post(f"/ices/{name}/{action}", body or None)
    assert answer.status == status, answer
    return answer.json


async def logged(running, action):
    return (await running.admin.get(f"/events?action={action}")).json["items"]


async def names(running, query):
    answer = await running.admin.get(f"/ices?{query}")
    return [ice["ice_name"] for ice in answer.json["items"]]


# --- one ICE -------------------------------------------------------------------------------------


async def test_an_ice_is_paused_and_resumed(running):
    await running.provision()
    ice = await pause(running.admin, note="maintenance", until=LATER)
    at = ice["paused"].pop("at")
    assert ice["paused"] == {"by": "root", "until": LATER, "note": "maintenance"}
    assert at <= to_text(datetime.now(UTC))
    ice = await pause(running.admin, "LAB-1")
    assert ice["paused"]["until"] is None, "repeated, note and end were expected to be replaced"
    assert ice["paused"]["note"] == ""
    assert (await running.admin.get("/ices/lab-1")).json == ice
    ice = await pause(running.admin, action="resume")
    assert ice["paused"] is None
    [first, second] = await logged(running, "pause")
    assert (first["ice_name"], first["generation"], first["actor"]) == ("lab-1", 1, "root")
    assert first["detail"] == {"generation_before": 1, "until": LATER, "note": "maintenance"}
    assert second["detail"] == {"generation_before": 1, "until": None, "note": ""}
    [resumed] = await logged(running, "resume")
    assert resumed["detail"] == {"generation_before": 1, "pausedby": "root"}


async def test_to_resume_what_is_not_paused_changes_nothing(running):
    await running.provision()
    assert (await pause(running.admin, action="resume"))["paused"] is None
    assert await logged(running, "resume") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"until": PAST}, "until"),
        ({"until": "tomorrow"}, "until"),
        ({"until": 5}, "until"),
        ({"note": "x" * 1001}, "note"),
        ({"note": "\x00"}, "note"),
        ({"note": None}, "note"),
        ({"why": "x"}, "why"),
    ],
    ids=str,
)
async def test_bad_pauses_are_refused(running, body, field):
    await running.provision()
    answer = await running.admin.post("/ices/lab-1/pause", body)
    assert expect_refused(answer, 422, "invalid")["field"] == field
    many = await running.admin.post(
        "/ices/bulk", {"action": "pause", "ice_names": ["lab-1"], **body}
    )
    assert expect_refused(many, 422, "invalid")["field"] == field
    assert await logged(running, "pause") == []


async def test_in_every_status_but_deregistered(running):
    ice = await running.provision()
    await pause(running.admin)
    await ice.connect()
    await pause(running.admin, note="again")
    await running.act("lab-1", "deregister")
    for action in ("pause", "resume"):
        answer = await running.admin.post(f"/ices/lab-1/{action}")
        assert "deregistered" in expect_refused(answer, 409, "wrong-status")["detail"]
    await running.add_user("bob")
    answer = await running.admin.post("/ices/lab-1/reregister", {"provisionedto": "bob"})
    assert answer.json["ice"]["paused"]["note"] == "again", "it outlives a reregistration"
    assert (await running.admin.get("/ices/lab-1")).json["paused"]["note"] == "again"


async def test_if_match_guards_the_generation(running):
    await running.provision()
    for action in ("pause", "resume"):
        answer = await running.admin.post(f"/ices/lab-1/{action}", headers={"If-Match": '"2"'})
        expect_refused(answer, 412, "stale")
        answer = await running.admin.post(f"/ices/lab-1/{action}", headers={"If-Match": '"2", "1"'})
        assert (answer.status, answer.headers["ETag"]) == (200, '"1"')


async def test_a_pause_ends_by_time(running):
    await running.provision()
    until = datetime.now(UTC) + timedelta(seconds=0.3)
    ice = await pause(running.admin, until=to_text(until), note="short")
    assert ice["paused"]["note"] == "short"
    await running.eventually("/ices/lab-1", lambda answer: answer.json["paused"] is None)
    assert await names(running, "paused=true") == []
    assert await names(running, "paused=false") == ["lab-1"]
    assert (await running.admin.get("/ice-counts")).json["paused"] == 0
    await pause(running.admin, action="resume")
    assert await logged(running, "resume") == [], "nothing was expected to be left to resume"


# --- who may -------------------------------------------------------------------------------------


async def test_the_tagged_user_pauses_and_resumes_their_own(running):
    await running.provision()
    await running.provision("build-1", "ci-cd")
    await running.add_user("bob")
    alice = await running.api("alice")
    ice = await pause(alice, note="at lunch")
    assert (ice["paused"]["by"], ice["paused"]["note"]) == ("alice", "at lunch")
    assert (await pause(alice, action="resume"))["paused"] is None
    await pause(alice, "build-1", 404)
    await pause(await running.api("bob"), status=404)
    await pause(await running.api("eve", Role.AUDITOR), status=403)
    await pause(await running.api("alice", ice="lab-1"), status=403)


async def test_what_an_admin_paused_only_an_admin_resumes(running):
    await running.provision()
    alice = await running.api("alice")
    await pause(alice)
    await pause(running.admin, note="broken")
    for action in ("pause", "resume"):
        answer = await alice.post(f"/ices/lab-1/{action}", headers={"If-Match": '"9"'})
        assert "admin" in expect_refused(answer, 403, "forbidden")["detail"]
    assert (await alice.get("/ices/lab-1")).json["paused"]["note"] == "broken"
    await pause(running.admin, action="resume")
    await pause(alice, note="mine")
    await pause(running.admin, action="resume")


# --- lists and many at once ----------------------------------------------------------------------


async def test_the_filter_and_the_counts(running):
    for name in ("lab-1", "lab-2", "lab-3"):
        await running.provision(name)
    await pause(running.admin, "lab-2")
    await pause(running.admin, "lab-3", until=LATER)
    assert await names(running, "paused=true") == ["lab-2", "lab-3"]
    assert await names(running, "paused=false") == ["lab-1"]
    assert await names(running, "paused=true&sort=-name&limit=1") == ["lab-3"]
    assert (await running.admin.get("/ice-counts")).json["paused"] == 2
    assert (await running.admin.get("/ice-counts?q=lab-2")).json["paused"] == 1


async def test_many_are_paused_and_each_refused_alone(running):
    for name in ("lab-1", "lab-2"):
        await running.provision(name)
    await (await running.provision("gone")).connect()
    await running.act("gone", "deregister")
    wanted = {"ice_names": ["lab-1", "LAB-2", "gone", "none"], "note": "x", "until": LATER}

    async def bulk(action, **body):
        answer = await running.admin.post("/ices/bulk", {"action": action, **body})
        assert answer.status == 200, answer
        return [(item["status"], item.get("code")) for item in answer.json["items"]]

    outcomes = [(200, None), (200, None), (409, "wrong-status"), (404, "not-registered")]
    assert await bulk("pause", **wanted, dry_run=True) == outcomes
    assert await names(running, "paused=true") == []
    assert await bulk("pause", **wanted) == outcomes
    ice = (await running.admin.get("/ices/lab-2")).json
    assert (ice["paused"]["note"], ice["paused"]["until"]) == ("x", LATER)
    assert await bulk("resume", filter={"paused": True}, dry_run=True) == [(200, None)] * 2
    stale = {"ice_names": ["lab-1", "lab-2"], "generations": [1, 7]}
    assert await bulk("resume", **stale) == [(200, None), (412, "stale")]
    assert await names(running, "paused=true") == ["lab-2"]
    assert len(await logged(running, "resume")) == 1
