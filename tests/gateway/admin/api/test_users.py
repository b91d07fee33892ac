"""`/users`, `/me` and `/api-tokens`: who changes whose account, and what a token may not."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from urllib.parse import quote

import pytest

from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.times import from_text, to_text, utc_now
from tests.support.harness import API, Api, expect_refused, hold_to_description
from tests.support.pages import PASSWORD, has_password

changes_nothing = pytest.mark.asyncio(loop_scope="module")

NEW = "a quite new password"


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def made(api, **body):
    answer = await api.post("/api-tokens", {"name": "ci", **body})
    assert answer.status == 201, f"making a token gave {answer}"
    return answer.json["api_token"], Api(api.session, api.base, answer.json["token"])


async def users_of(api, query=""):
    return [user["name"] for user in (await api.get(f"/users{query}")).json["items"]]


async def patch(api, user, **body):
    return await api.call("PATCH", f"/users/{user}", json=body)


async def actions(running, after):
    return [one.event.action for one in await running.gateway.admin.events.after(after, 100)]


async def test_user_is_added_listed_and_changed_at_once(running):
    admin = running.admin
    answer = await admin.post("/users", {"name": "Zoë 1%", "role": "member", "password": PASSWORD})
    assert answer.status == 201, answer
    assert answer.headers["Location"] == f"{API}/users/{quote('Zoë 1%', safe='')}"
    user = answer.json
    assert (await admin.get(answer.headers["Location"].removeprefix(API))).json == user
    assert (await admin.get(f"/users/{quote('ZOË 1%')}")).json == user, "case is folded"
    assert (user["role"], user["has_password"], user["logins"]) == ("member", True, 0)
    assert (user["ices"], user["disabledon"], user["lastlogin"]) == (0, None, None)
    expect_refused(
        await admin.post("/users", {"name": "ALICE", "role": "member"}), 409, "user-exists"
    )

    first = (await admin.get("/users?limit=2")).json
    assert [one["name"] for one in first["items"]] == ["alice", "root"]
    assert await users_of(admin, f"?limit=2&cursor={first['next']}") == ["Zoë 1%"]
    assert await users_of(admin, "?q=1%25") == ["Zoë 1%"]

    seq = await running.gateway.admin.events.last()
    body = {"role": "auditor", "disabled": True, "password": NEW}
    changed = (await patch(admin, quote("Zoë 1%"), **body)).json
    assert changed["role"] == "auditor"
    assert changed["disabledon"] is not None
    assert await actions(running, seq) == ["set-password", "set-role", "disable-user"]
    assert (await patch(admin, quote("Zoë 1%"), disabled=False)).json["disabledon"] is None
    assert (await actions(running, seq))[-1] == "enable-user"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ".", "role": "member"}, "name"),
        ({"name": "..", "role": "member"}, "name"),
        ({"name": "a/b", "role": "member"}, "name"),
        ({"name": "a\\b", "role": "member"}, "name"),
        ({"name": "a", "role": "boss"}, "role"),
        ({"name": "a", "role": "member", "password": "short"}, "password"),
        ({"name": "a", "role": "member", "origin": "sso"}, "origin"),
    ],
)
async def test_what_no_new_user_may_be(running, body, field):
    eve = await running.api("eve", Role.AUDITOR)
    for api in (running.admin, eve):  # 422 comes before 403
        assert expect_refused(await api.post("/users", body), 422, "invalid")["field"] == field


async def test_change_of_a_user_is_all_or_nothing(running):
    admin = running.admin
    expect_refused(await patch(admin, "alice"), 422, "invalid")
    expect_refused(await patch(admin, "alice", name="bob"), 422, "invalid")
    short = await patch(admin, "alice", role="admin", password="short")
    expect_refused(short, 422, "invalid")
    expect_refused(await patch(admin, "nobody", role="admin"), 404, "not-found")
    await has_password(running, "root")
    both = await patch(admin, "root", role="auditor", password=NEW)
    expect_refused(both, 409, "last-admin")
    expect_refused(await patch(admin, "root", disabled=True), 409, "last-admin")
    # An admin without a password and without an API token could not administer.
    await running.add_user("tagged", Role.ADMIN)
    expect_refused(await patch(admin, "root", role="member"), 409, "last-admin")
    login = await running.gateway.services.logins.log_in("root", Secret(PASSWORD), "192.0.2.1")
    assert isinstance(login, Secret), "the old password was to stay"
    root = (await admin.get("/users/root")).json
    assert (root["role"], root["logins"]) == ("admin", 1)
    assert from_text(root["lastlogin"]) <= utc_now()


async def test_a_leavers_ices_go_to_another_user(running):
    admin = running.admin
    await running.add_user("bob")
    connection = await (await running.provision("lab-1")).connect()
    await running.provision("lab-2")
    await (await running.provision("lab-3")).connect()
    await running.act("lab-3", "deregister")
    seq = await running.gateway.admin.events.last()
    answer = await patch(admin, "ALICE", disabled=True, ices={"to": "BOB"})
    await connection.expect_dropped(4102)
    assert answer.status == 200, answer
    user = answer.json
    left = user.pop("left")
    assert (await admin.get("/users/alice")).json == user
    assert user["ices"] == 1, "a deregistered ICE stays"
    assert [(drop["ice_name"], drop["code"]) for drop in left["dropped"]] == [("lab-1", 4102)]
    assert left["unconfirmed"] == []
    tokens = [one.pop("token", None) for one in left["items"]]
    assert left["items"] == [
        {"ice_name": "lab-1", "status": "provisioned", "action": "reregister"},
        {"ice_name": "lab-2", "status": "provisioned", "action": "reprovision"},
        {"ice_name": "lab-3", "status": "deregistered"},
    ]
    for token in tokens[:2]:
        await (await running.ice(token).connect()).round_trip()
    assert (await admin.get("/ices/lab-1")).json["provisionedto"] == "bob"
    assert await actions(running, seq) == [
        *("reprovision", "reregister", "disable-user", "register", "register"),
    ]


async def test_a_leavers_ices_are_deregistered_or_kept(running):
    admin = running.admin
    connection = await (await running.provision("lab-1")).connect()
    unused = await running.provision("lab-2")
    plain = await patch(admin, "alice", disabled=True)
    assert "left" not in plain.json
    kept = (await patch(admin, "alice", disabled=True, ices="keep")).json["left"]
    assert kept["items"] == [
        {"ice_name": "lab-1", "status": "registered"},
        {"ice_name": "lab-2", "status": "provisioned"},
    ]
    await connection.round_trip()
    left = (await patch(admin, "alice", disabled=True, ices="deregister")).json["left"]
    await connection.expect_dropped(4101)
    assert [(one["ice_name"], one.get("action")) for one in left["items"]] == [
        ("lab-1", "deregister"),
        ("lab-2", None),
    ]
    assert [drop["code"] for drop in left["dropped"]] == [4101]
    assert (await unused.refused()).code == "token-expired"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ices": "deregister"}, "ices"),
        ({"disabled": False, "ices": "keep"}, "ices"),
        ({"disabled": True, "ices": "burn"}, "ices"),
        ({"disabled": True, "ices": None}, "ices"),
        ({"disabled": True, "ices": {}}, "ices"),
        ({"disabled": True, "ices": {"to": "bob", "and": 1}}, "ices"),
        ({"disabled": True, "ices": {"to": "nobody"}}, "ices.to"),
        ({"disabled": True, "ices": {"to": "alice"}}, "ices.to"),
    ],
)
@changes_nothing
async def test_what_cannot_become_of_a_leavers_ices(shared, body, field):
    refused = expect_refused(await patch(shared.admin, "alice", **body), 422, "invalid")
    assert refused["field"] == field
    assert (await shared.admin.get("/users/alice")).json["disabledon"] is None


async def test_one_of_two_admins_who_disable_each_other_stays(running):
    for name in ("root", "boss"):
        await has_password(running, name)
    boss = await running.api("boss")
    answers = await asyncio.gather(
        patch(running.admin, "boss", disabled=True), patch(boss, "root", disabled=True)
    )
    assert sorted(answer.status for answer in answers) in ([200, 401], [200, 409])


async def test_members_and_auditors(running):
    eve = await running.api("eve", Role.AUDITOR)
    alice = await running.api("alice")
    assert await users_of(eve) == ["alice", "eve", "root"]
    expect_refused(await patch(eve, "alice", disabled=True), 403, "forbidden")
    assert (await alice.get("/users/ALICE")).json["name"] == "alice"
    for name in ("root", "nobody"):
        expect_refused(await alice.get(f"/users/{name}"), 404, "not-found")
        expect_refused(await patch(alice, name, disabled=True), 404, "not-found")
    expect_refused(await patch(alice, "alice", role="admin"), 403, "forbidden")
    expect_refused(await alice.get("/users"), 403, "forbidden")
    [own] = (await alice.get("/api-tokens")).json["items"]
    theirs = (await eve.get("/api-tokens")).json["items"]
    assert [one["user"] for one in theirs] == ["alice", "eve", "root"], "newest first"
    assert theirs[0].keys() == own.keys()
    for token, status in ((own, 403), (theirs[1], 404)):
        path = f"/api-tokens/{token['id']}"
        assert (await alice.call("DELETE", path)).status == status
        assert (await alice.get(path)).status == (404 if token is theirs[1] else 200)
    me = (await alice.get("/me")).json
    assert (me["name"], me["role"], me["api_token"]["id"]) == ("alice", "member", own["id"])


async def test_api_tokens_are_made_listed_and_revoked(running):
    admin = running.admin
    await running.provision("lab-1")
    for expires in ("2001-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "tomorrow"):
        refused = await admin.post(
            "/api-tokens", {"user": "alice", "name": "x", "expires": expires}
        )
        assert expect_refused(refused, 422, "invalid")["field"] == "expires"
    for body, field in (
        ({"user": "nobody", "name": "x"}, "user"),
        ({"user": "alice", "name": ""}, "name"),
        ({"user": "alice", "name": "x", "ice": "lab-9"}, "ice"),
        ({"user": "alice", "name": "x", "ice": "lab-1", "accounts": True}, "accounts"),
        ({"user": "alice", "name": "x", "pool": "p"}, "pool"),
    ):
        assert (
            expect_refused(await admin.post("/api-tokens", body), 422, "invalid")["field"] == field
        )
    me = (await admin.get("/me")).json["api_token"]
    never, _ = await made(admin, user="alice", expires=None)
    day = utc_now() + timedelta(days=1)
    dated, _ = await made(admin, user="alice", expires=to_text(day))
    token, api = await made(admin, user="ALICE", ice="LAB-1", name="Nightly")
    assert (never["expireson"], dated["expireson"]) == (None, to_text(day))
    assert from_text(token["expireson"]) - from_text(token["createdon"]) == timedelta(days=90)
    assert (token["user"], token["ice_name"], token["lastused"]) == ("alice", "lab-1", None)
    assert token["madeby"] == f"token {me['id']}"
    assert me["madeby"] == "command of root"
    assert (await admin.get(f"/api-tokens/{token['id']}")).json == token

    async def found(query):
        return [one["id"] for one in (await admin.get(f"/api-tokens?{query}")).json["items"]]

    for query in ("q=NIGHT", "q=lab-1", f"q={token['id']}"):
        assert await found(query) == [token["id"]], query
    assert await found("q=alic") == [token["id"], dated["id"], never["id"]]
    first = (await admin.get("/api-tokens?limit=2")).json
    rest = await found(f"cursor={first['next']}")
    assert [one["id"] for one in first["items"]] + rest == await found("")

    assert (await api.get("/operations")).status == 200
    path = f"/api-tokens/{token['id']}"
    await running.eventually(path, lambda answer: answer.json["lastused"] is not None)
    seq = await running.gateway.admin.events.last()
    for _ in range(2):  # again, too
        assert (await admin.call("DELETE", path)).status == 204
    assert await actions(running, seq) == ["revoke-api-token"]
    expect_refused(await api.get("/operations"), 401, "unauthenticated")
    expect_refused(await admin.call("DELETE", "/api-tokens/none"), 404, "not-found")


async def test_token_without_accounts_makes_nothing_that_outlives_it(running):
    await has_password(running, "root")
    _, api = await made(running.admin, user="root")
    _, trusted = await made(running.admin, user="root", accounts=True)
    for answer in (
        await api.post("/users", {"name": "bob", "role": "admin"}),
        await patch(api, "alice", disabled=True),
        await api.post("/api-tokens", {"user": "root", "name": "more"}),
        await api.post("/me/password", {"old": PASSWORD, "new": NEW}),
    ):
        assert "`accounts`" in expect_refused(answer, 403, "forbidden")["detail"]
    [*_, oldest] = (await api.get("/api-tokens")).json["items"]
    assert (await api.call("DELETE", f"/api-tokens/{oldest['id']}")).status == 204
    assert (await trusted.post("/users", {"name": "bob", "role": "admin"})).status == 201


async def test_own_password(running):
    await has_password(running, "alice", Role.MEMBER)
    logins = running.gateway.services.logins
    cookie = await logins.log_in("alice", Secret(PASSWORD), "192.0.2.1")
    alice = await running.api("alice")
    short = await alice.post("/me/password", {"old": PASSWORD, "new": "short"})
    assert expect_refused(short, 422, "invalid")["field"] == "new"
    wrong = await alice.post("/me/password", {"old": "wrong", "new": NEW})
    assert expect_refused(wrong, 403, "forbidden")["detail"] == "The old password is wrong."
    assert await logins.authenticate(cookie), "nothing was to be changed"
    assert (await alice.post("/me/password", {"old": PASSWORD, "new": NEW})).status == 204
    assert await logins.authenticate(cookie) is None
    for _ in range(5):
        await alice.post("/me/password", {"old": "wrong", "new": NEW})
    throttled = await alice.post("/me/password", {"old": NEW, "new": PASSWORD})
    expect_refused(throttled, 429, "too-many-attempts")
    assert re.fullmatch("[1-9][0-9]*", throttled.headers["Retry-After"])
    failed = (
        await running.eventually("/events?action=login-failed", lambda a: a.json["items"])
    ).json
    assert failed["items"][0]["actor"] == "alice"
