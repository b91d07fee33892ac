"""Bulk actions, and changes of user."""

from __future__ import annotations

import pytest

from gateway.core.roles import Role
from tests.support.harness import ADMIN, expect_refused
from tests.support.work import asked

changes_nothing = pytest.mark.asyncio(loop_scope="module")


async def bulk(running, status=200, **body):
    answer = await running.admin.post("/ices/bulk", body)
    assert answer.status == status, answer
    return answer.json


def outcomes(answer):
    return [(item["ice_name"], item["status"], item.get("code")) for item in answer["items"]]


async def last_seq(running):
    return (await running.gateway.services.audit.head()).seq


# --- provision -----------------------------------------------------------------------------------


async def test_many_are_provisioned_and_each_refused_alone(running):
    await running.provision("taken")
    ices = [
        {
            "ice_name": "lab-1",
            "ice_type": "normal",
            "provisionedto": "ALICE",
            "labels": {"os": "x"},
        },
        {"ice_name": "build-1", "ice_type": "ci-cd"},
        {"ice_name": "TAKEN", "ice_type": "ci-cd"},
        {"ice_name": "Lab-1", "ice_type": "ci-cd"},
        {"ice_name": "bad name", "ice_type": "ci-cd"},
        {"ice_name": "nobodys", "ice_type": "normal", "provisionedto": "nobody"},
        {"ice_name": "userless", "ice_type": "normal"},
    ]
    answer = await bulk(running, action="provision", ices=ices)
    assert outcomes(answer) == [
        ("lab-1", 201, None),
        ("build-1", 201, None),
        ("TAKEN", 409, "ice-exists"),
        ("Lab-1", 409, "ice-exists"),
        ("bad name", 422, "invalid"),
        ("nobodys", 422, "invalid"),
        ("userless", 422, "invalid"),
    ]
    assert (answer["dropped"], answer["unconfirmed"]) == ([], [])
    for item in answer["items"][:2]:
        await (await running.ice(item["token"]).connect()).round_trip()
    assert not any("token" in item for item in answer["items"][2:])
    ice = (await running.admin.get("/ices/lab-1")).json
    assert (ice["provisionedto"], ice["labels"]) == ("alice", {"os": "x"})


async def test_a_dry_run_changes_nothing(running):
    await running.provision("lab-1")
    ices = [{"ice_name": name, "ice_type": "ci-cd"} for name in ("lab-1", "build-1")]
    seq = await last_seq(running)
    answer = await bulk(running, action="provision", ices=ices, dry_run=True)
    assert outcomes(answer) == [("lab-1", 409, "ice-exists"), ("build-1", 201, None)]
    assert (await running.admin.get("/ices/build-1")).status == 404
    for action in ("reprovision", "deregister", "disconnect", "label"):
        more = {"labels": {"a": "b"}} if action == "label" else {}
        answer = await bulk(running, action=action, ice_names=["lab-1"], dry_run=True, **more)
        assert not any("token" in item for item in answer["items"])
        assert [item["generation"] for item in answer["items"]] == [1]
    assert await last_seq(running) == seq


async def test_a_bad_label_refuses_the_whole(running):
    ices = [{"ice_name": "lab-1", "ice_type": "ci-cd", "labels": {"os": "\x00"}}]
    assert (await bulk(running, 422, action="provision", ices=ices))["field"] == "ices[0].labels.os"


# --- reprovision, reregister, generations, filters -----------------------------------------------


async def test_tokens_of_many_are_replaced(running):
    old = await running.provision("lab-1")
    connection = await (await running.provision("lab-2")).connect()
    answer = await bulk(running, action="reprovision", ice_names=["lab-1", "lab-2", "none"])
    assert outcomes(answer) == [
        ("lab-1", 200, None),
        ("lab-2", 409, "wrong-status"),
        ("none", 404, "not-registered"),
    ]
    assert (await old.refused()).code == "token-replaced"
    await running.ice(answer["items"][0]["token"]).connect()
    answer = await bulk(running, action="reregister", ice_names=["lab-2"])
    await connection.expect_dropped(4102)
    assert [drop["code"] for drop in answer["dropped"]] == [4102]
    await running.ice(answer["items"][0]["token"]).connect()


async def test_a_generation_that_moved_on_is_refused(running):
    for name in ("lab-1", "lab-2"):
        await running.provision(name)
    await running.act("lab-2", "reprovision")
    answer = await bulk(
        running, action="reprovision", ice_names=["lab-1", "lab-2"], generations=[1, 1]
    )
    assert outcomes(answer) == [("lab-1", 200, None), ("lab-2", 412, "stale")]


async def test_a_filter_finds_names_and_generations_at_a_dry_run(running):
    for name in ("lab-1", "lab-2", "pc-1"):
        await (await running.provision(name)).connect()
    await running.act("lab-2", "deregister")
    where = {"q": "lab", "label": []}
    answer = await bulk(running, action="deregister", filter=where, dry_run=True)
    assert answer["items"] == [
        {"ice_name": "lab-1", "status": 200, "generation": 1},
        {"ice_name": "lab-2", "status": 409, "code": "wrong-status", "generation": 2},
    ]
    names = [item["ice_name"] for item in answer["items"] if item["status"] == 200]
    generations = [item["generation"] for item in answer["items"] if item["status"] == 200]
    done = await bulk(running, action="deregister", ice_names=names, generations=generations)
    assert outcomes(done) == [("lab-1", 200, None)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "deregister", "filter": {"q": "x"}}, "filter"),
        ({"action": "deregister", "filter": {"colour": "x"}, "dry_run": True}, "filter"),
        ({"action": "deregister", "filter": {}, "ice_names": [], "dry_run": True}, "ice_names"),
        ({"action": "deregister", "ice_names": ["a"], "generations": []}, "generations"),
        ({"action": "deregister", "ice_names": ["a"], "labels": {}}, "labels"),
        ({"action": "provision", "ice_names": ["a"]}, "ice_names"),
        ({"action": "provision", "ices": [{"ice_name": "a", "ice_type": "ci-cd"}] * 1001}, "ices"),
        ({"action": "label", "ice_names": ["a"]}, "body"),
        ({"action": "label", "ice_names": ["a"], "note": "x" * 1001}, "note"),
    ],
)
@changes_nothing
async def test_a_bad_body_is_refused_whole(shared, body, field):
    assert (await bulk(shared, 422, **body))["field"] == field


async def test_many_are_labelled(running):
    for name in ("lab-1", "lab-2"):
        await running.provision(name)
    answer = await bulk(
        running, action="label", ice_names=["lab-1", "LAB-2", "x"], labels={"os": "x"}, note="n"
    )
    assert outcomes(answer) == [
        ("lab-1", 200, None),
        ("LAB-2", 200, None),
        ("x", 404, "not-registered"),
    ]
    for name in ("lab-1", "lab-2"):
        ice = (await running.admin.get(f"/ices/{name}")).json
        assert (ice["labels"], ice["note"]) == ({"os": "x"}, "n")


# --- another user --------------------------------------------------------------------------------


async def test_a_change_of_user_takes_everything_from_the_former_one(running):
    await running.add_user("bob")
    ice = await running.provision("lab-1")
    await (await ice.connect()).leave()
    alice, of_ice = await running.api("alice"), await running.api("alice", ice="lab-1")
    operation = await asked(alice, "lab-1")
    answer = await running.admin.post("/ices/lab-1/reregister", {"provisionedto": "BOB"})
    assert (answer.status, answer.json["ice"]["provisionedto"]) == (200, "bob")
    bob = await running.api("bob")
    assert (await alice.get("/ices/lab-1")).status == 404
    assert (await of_ice.get("/ices/lab-1")).status == 401, "its API tokens are revoked"
    assert (await bob.get("/ices/lab-1")).status == 200
    for api in (alice, bob):
        assert (await api.get("/operations")).json["items"] == []
        assert (await api.get(f"/operations/{operation}")).status == 404
    shown = (await running.admin.get(f"/operations/{operation}")).json
    assert (shown["state"], shown["requested_by"]) == ("cancelled", "alice")
    [event] = (await running.admin.get("/events?action=reregister")).json["items"]
    assert event["detail"]["provisionedto"] == "bob"
    assert event["detail"]["provisionedto_before"] == "alice"
    await (await running.ice(answer.json["token"]).connect()).leave()
    mine = await asked(bob, "lab-1")
    assert [item["id"] for item in (await bob.get("/operations")).json["items"]] == [mine]


async def test_reprovision_names_another_user_too(running):
    await running.add_user("bob")
    await running.provision("lab-1")
    answer = await running.admin.post("/ices/lab-1/reprovision", {"provisionedto": "bob"})
    assert answer.json["ice"]["provisionedto"] == "bob"
    same = await running.admin.post("/ices/lab-1/reprovision", {"provisionedto": "bob"})
    assert (same.status, same.json["ice"]["generation"]) == (200, 3)
    events = (await running.admin.get("/events?action=reprovision")).json["items"]
    assert ["provisionedto" in event["detail"] for event in events] == [True, False]


async def test_who_may_not_own_it(running):
    await running.add_user("eve", Role.AUDITOR)
    await running.gateway.services.accounts.disable(ADMIN, "eve")
    await running.provision("lab-1")
    await running.provision("build-1", "ci-cd")
    refused = [("lab-1", "nobody"), ("lab-1", "eve"), ("lab-1", None), ("build-1", "alice")]
    for name, user in refused:
        answer = await running.admin.post(f"/ices/{name}/reprovision", {"provisionedto": user})
        assert expect_refused(answer, 422, "invalid")["field"] == "provisionedto"


async def test_null_is_accepted_as_the_user_of_a_ci_cd_ice(running):
    await running.provision("build-1", "ci-cd")
    answer = await running.admin.post("/ices/build-1/reprovision", {"provisionedto": None})
    assert (answer.status, answer.json["ice"]["generation"]) == (200, 2)


async def test_the_ice_of_a_disabled_user_needs_another_one(running):
    await running.add_user("bob")
    ice = await running.provision("lab-1")
    await (await running.provision("lab-2")).connect()
    await running.gateway.services.accounts.disable(ADMIN, "alice")
    assert (await ice.refused()).code == "token-expired"
    for name, action in (("lab-1", "reprovision"), ("lab-2", "reregister")):
        refused = await running.admin.post(f"/ices/{name}/{action}")
        expect_refused(refused, 409, "owner-disabled")
        many = await bulk(running, action=action, ice_names=[name])
        assert outcomes(many) == [(name, 409, "owner-disabled")]
        answer = await running.admin.post(f"/ices/{name}/{action}", {"provisionedto": "bob"})
        assert answer.status == 200
