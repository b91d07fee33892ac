"""Labels, notes and the filters, orders and counts of ICEs."""

from __future__ import annotations

import pytest
import pytest_asyncio

from gateway.core.roles import Role
from tests.support.harness import ADMIN, expect_refused, harness

changes_nothing = pytest.mark.asyncio(loop_scope="module")


async def names(running, query, api=None):
    answer = await (api or running.admin).get(f"/ices?{query}")
    assert answer.status == 200, answer
    return [ice["ice_name"] for ice in answer.json["items"]]


async def describe(running, name="lab-1", status=200, **body):
    answer = await running.admin.call("PATCH", f"/ices/{name}", json=body)
    assert answer.status == status, answer
    return answer.json


async def events(running, action):
    return (await running.admin.get(f"/events?action={action}")).json["items"]


# --- labels and notes ----------------------------------------------------------------------------


async def test_labels_are_merged_and_the_note_is_set(running):
    await running.provision("lab-1")
    ice = await describe(running, labels={"os": "windows", "site": "paris"})
    assert (ice["labels"], ice["note"]) == ({"os": "windows", "site": "paris"}, "")
    ice = await describe(running, "LAB-1", labels={"os": "linux", "site": None}, note="in loan")
    assert (ice["labels"], ice["note"], ice["generation"]) == ({"os": "linux"}, "in loan", 1)
    assert (await running.admin.get("/ices/lab-1")).json == ice
    ice = await describe(running, note="")
    assert (ice["labels"], ice["note"]) == ({"os": "linux"}, "")
    logged = await events(running, "label")
    assert [event["detail"] for event in logged] == [
        {"generation_before": 1, "labels": {"os": "windows", "site": "paris"}},
        {"generation_before": 1, "labels": {"os": "linux", "site": None}, "note": "in loan"},
        {"generation_before": 1, "note": ""},
    ]
    assert {event["ice_name"] for event in logged} == {"lab-1"}


async def test_what_changes_nothing_leaves_no_event(running):
    await running.provision("lab-1")
    await describe(running, labels={"os": "windows"}, note="x")
    await describe(running, labels={"os": "windows", "none": None}, note="x")
    assert len(await events(running, "label")) == 1


async def test_if_match_does_not_guard_them(running):
    await running.provision("lab-1")
    answer = await running.admin.call(
        "PATCH", "/ices/lab-1", json={"note": "x"}, headers={"If-Match": '"9"'}
    )
    assert (answer.status, answer.headers["ETag"]) == (200, '"1"')


async def test_they_outlive_a_reregistration_and_another_user(running):
    await running.add_user("bob")
    ice = await running.provision("lab-1")
    await describe(running, labels={"os": "windows"}, note="the old one")
    await ice.connect()
    answer = await running.admin.post("/ices/lab-1/reregister", {"provisionedto": "bob"})
    assert answer.json["ice"]["labels"] == {"os": "windows"}
    assert answer.json["ice"]["note"] == "the old one"
    assert await names(running, "q=bob%20windows") == ["lab-1"]
    assert await names(running, "q=alice") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"labels": {"OS": "x"}}, "labels.OS"),
        ({"labels": {"os": "x" * 64}}, "labels[...]"),
        ({"labels": {"os": 1}}, "labels[...]"),
        ({"labels": {"os": "\x00"}}, "labels.os"),
        ({"labels": {f"k{number}": "" for number in range(33)}}, "labels"),
        ({"labels": None}, "labels"),
        ({"note": "x" * 1001}, "note"),
        ({"note": "\x00"}, "note"),
        ({"note": None}, "note"),
        ({}, "body"),
        ([], "body"),
    ],
    ids=str,
)
@changes_nothing
async def test_bad_labels_and_notes_are_refused(fleet, body, field):
    before = await events(fleet, "label")
    answer = await fleet.admin.call("PATCH", "/ices/lab-1", json=body)
    assert expect_refused(answer, 422, "invalid")["field"] == field
    assert len(await events(fleet, "label")) == len(before)


async def test_too_many_labels_together_are_refused(running):
    await running.provision("lab-1")
    await describe(running, labels={f"k{number}": "" for number in range(32)})
    refused = await describe(running, status=422, labels={"one-more": ""})
    assert refused["field"] == "labels"
    await describe(running, labels={"one-more": "", "k0": None})


@pytest.mark.parametrize("body", [{"ice_name": "x"}, {"note": "x", "status": 1}, {"generation": 2}])
@changes_nothing
async def test_nothing_else_of_an_ice_can_be_changed(fleet, body):
    for name in ("lab-1", "none"):
        answer = await fleet.admin.call("PATCH", f"/ices/{name}", json=body)
        assert expect_refused(answer, 405, "method-not-allowed")["detail"] == (
            "ICE Names cannot be changed or deleted"
        )
        assert answer.headers["Allow"] == "GET, HEAD, PATCH"


async def test_only_admins_describe(running):
    await running.provision("lab-1")
    for api in (await running.api("alice"), await running.api("eve", Role.AUDITOR)):
        answer = await api.call("PATCH", "/ices/lab-1", json={"note": "mine"})
        expect_refused(answer, 403, "forbidden")
    expect_refused(
        await running.admin.call("PATCH", "/ices/x", json={"note": ""}), 404, "not-registered"
    )


# --- filters, orders, counts ---------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory):
    """For tests that change nothing: one ICE connected, one offline, one that waits, one whose user is disabled."""
    async with harness(tmp_path_factory.mktemp("shared")) as running:
        await furnish(running)
        yield running


async def furnish(running):
    await running.add_user("Grüße")
    for name, user in (
        ("lab-1", "alice"),
        ("Lab-2", "alice"),
        ("pc-3", "Grüße"),
        ("pc-4", "alice"),
    ):
        answer = await running.admin.post(
            "/ices", {"ice_name": name, "ice_type": "normal", "provisionedto": user}
        )
        ice = running.ice(answer.json["token"])
        if name == "lab-1":
            connection = await ice.connect()
            connection.hello(version="1.10", platform="Windows 11", hostname="DESK-7.example")
        if name == "Lab-2":
            connection = await ice.connect()
            connection.hello(version="1.9", platform="Linux", hostname="desk-8.example")
            await connection.close()
    await describe(
        running, "lab-1", labels={"os": "windows", "site": "paris"}, note="the Loan machine"
    )
    await describe(running, "lab-2", labels={"os": "windows"}, note='say "os":"linux"')
    await running.gateway.services.accounts.disable(ADMIN, "Grüße")
    await running.eventually("/ices/lab-2", lambda answer: answer.json["connection"] is None)
    await running.settled()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=desk-7", ["lab-1"]),
        ("q=DESK%20lab", ["lab-1", "Lab-2"]),
        ("q=127.0.0.1%20loan", ["lab-1"]),
        ("q=gr%C3%BCsse", ["pc-3"]),
        ("q=os=windows%20paris", ["lab-1"]),
        ("q=nothing%20lab", []),
        ("label=os=windows", ["lab-1", "Lab-2"]),
        ("label=os=windows&label=site=paris", ["lab-1"]),
        ("label=os=WINDOWS", []),
        ("label=os=linux", []),
        ("label=os=", []),
        ("version_below=1.10", ["Lab-2"]),
        ("version_below=2", ["lab-1", "Lab-2"]),
        ("attention=owner-disabled", ["pc-3"]),
        ("attention=token-expired", ["pc-3"]),
        ("attention=refused", []),
        ("connected=true", ["lab-1"]),
        ("connected=false&status=registered", ["Lab-2"]),
        ("lastseen_after=2020-01-01T00:00:00Z", ["lab-1", "Lab-2"]),
        ("lastseen_before=2020-01-01T00:00:00%2B01:00", []),
        ("sort=version", ["Lab-2", "lab-1", "pc-3", "pc-4"]),
        ("sort=-version", ["lab-1", "Lab-2", "pc-3", "pc-4"]),
        ("sort=-name", ["pc-4", "pc-3", "Lab-2", "lab-1"]),
        ("sort=provisionedon", ["lab-1", "Lab-2", "pc-3", "pc-4"]),
        ("sort=-provisionedon", ["pc-4", "pc-3", "Lab-2", "lab-1"]),
        ("sort=lastseen", ["lab-1", "Lab-2", "pc-3", "pc-4"]),
    ],
)
@changes_nothing
async def test_ices_are_found(fleet, query, expected):
    assert await names(fleet, query) == expected


@pytest.mark.parametrize(
    "sort", ["name", "-name", "version", "-version", "lastseen", "-provisionedon"]
)
@changes_nothing
async def test_pages_of_any_order_follow_each_other(fleet, sort):
    whole = await names(fleet, f"sort={sort}")
    seen, cursor = [], ""
    while cursor is not None:
        page = (await fleet.admin.get(f"/ices?sort={sort}&limit=1&cursor={cursor}")).json
        seen += [ice["ice_name"] for ice in page["items"]]
        cursor = page["next"]
    assert seen == whole
    assert len(whole) == 4


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("sort=status", "sort"),
        ("q=" + "+".join("abcdefghijklmnopq"), "q"),
        ("attention=lonely", "attention"),
        ("label=windows", "label"),
        ("version_below=nightly", "version_below"),
        ("lastseen_before=yesterday", "lastseen_before"),
        ("lastseen_before=0001-01-01T00:00:00%2B14:00", "lastseen_before"),
        ("lastseen_after=9999-12-31T23:59:59-14:00", "lastseen_after"),
        ("lastseen_before=2026-01-01T00:00:00", "lastseen_before"),
        ("cursor=bGFiLTE&sort=version", "cursor"),
        ("status=registered&status=provisioned", "status"),
        ("&".join(["label=a=b"] * 33), "label"),
    ],
)
@changes_nothing
async def test_bad_filters_are_refused(fleet, query, field):
    refused = expect_refused(await fleet.admin.get(f"/ices?{query}"), 422, "invalid")
    assert refused["field"].partition("[")[0] == field


@changes_nothing
async def test_a_cursor_of_another_order_is_refused(fleet):
    cursor = (await fleet.admin.get("/ices?limit=1")).json["next"]
    refused = await fleet.admin.get(f"/ices?limit=1&sort=version&cursor={cursor}")
    assert expect_refused(refused, 422, "invalid")["field"] == "cursor"


@changes_nothing
async def test_what_was_known_stays_when_an_ice_is_gone(fleet):
    gone = (await fleet.admin.get("/ices/lab-2")).json
    assert gone["connection"] is None
    assert gone["last"] == {
        "address": "127.0.0.1",
        "version": "1.9",
        "platform": "Linux",
        "hostname": "desk-8.example",
    }
    there = (await fleet.admin.get("/ices/lab-1")).json
    assert there["last"]["hostname"] == there["connection"]["hostname"] == "DESK-7.example"
    assert (await fleet.admin.get("/ices/pc-4")).json["last"] is None


@changes_nothing
async def test_counts(fleet):
    counts = (await fleet.admin.get("/ice-counts")).json
    assert counts == {
        "total": 4,
        "status": {"provisioned": 2, "registered": 2, "deregistered": 0},
        "connected": 1,
        "offline": 1,
        "inactive": 0,
        "paused": 0,
        "attention": {
            "refused": 0,
            "duplicate": 0,
            "token-expired": 1,
            "owner-disabled": 1,
            "outdated": 0,
        },
    }
    some = (await fleet.admin.get("/ice-counts?q=lab&connected=true")).json
    assert (some["total"], some["connected"], some["offline"]) == (1, 1, 0)
    member = await fleet.api("bob", Role.MEMBER)
    assert (await member.get("/ice-counts")).json["total"] == 0
    assert (await (await fleet.api("alice")).get("/ice-counts")).json["total"] == 3
    refused = await fleet.admin.get("/ice-counts?limit=1")
    assert expect_refused(refused, 422, "invalid")["field"] == "limit"


async def test_a_refused_attempt_needs_attention(running):
    ice = await running.provision("lab-1")
    await ice.connect()
    thief = running.ice(ice.token)
    await thief.refused()
    answer = await running.eventually("/ices/lab-1", lambda answer: answer.json["attention"])
    assert answer.json["attention"] == ["refused"]
    assert await names(running, "attention=refused") == ["lab-1"]
