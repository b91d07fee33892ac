"""`origin` and `subject` of users over the API, and what they decide: logins, passwords, API tokens."""

from __future__ import annotations

import pytest

from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.services.logins import NotLoggedIn
from gateway.store.accounts import find_user
from tests.contract.domain import ISSUER
from tests.support.clock import StandingClock
from tests.support.harness import Api, expect_refused, harness, hold_to_description
from tests.support.pages import PASSWORD, has_password

NEW = "a quite new password"
SSO = {"sso__issuer": ISSUER, "sso__client_id": "ice", "sso__roles": "lab=member"}


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def patch(api, user, **body):
    return await api.call("PATCH", f"/users/{user}", json=body)


async def linked(running, user, subject):
    answer = await patch(running.admin, user, origin="sso", subject=subject)
    assert answer.status == 200, answer
    return answer.json


async def made(api, **body):
    answer = await api.post("/api-tokens", {"name": "ci", **body})
    assert answer.status == 201, f"making a token gave {answer}"
    return answer.json["api_token"], Api(api.session, api.base, answer.json["token"])


async def signed_on(running, user):
    """The cookie of a login of this user by single sign-on."""

    async def unit(transaction):
        found = await find_user(transaction, user)
        return await running.gateway.services.logins.begin(transaction, found, "192.0.2.1")

    return await running.gateway.engine.write(unit)


@pytest.mark.gateway(**SSO)
async def test_a_user_is_linked_by_an_admin_alone(running):
    before = (await running.admin.get("/users/alice")).json
    assert (before["origin"], before["subject"]) == ("local", None)
    user = await linked(running, "ALICE", "a-1")
    assert (user["origin"], user["subject"], user["has_password"]) == ("sso", "a-1", False)
    await running.add_user("bob")
    taken = await patch(running.admin, "bob", origin="sso", subject="a-1")
    expect_refused(taken, 409, "subject-in-use")
    eve = await running.api("eve", Role.AUDITOR)
    expect_refused(await patch(eve, "bob", origin="local"), 403, "forbidden")
    _, narrow = await made(running.admin, user="root")
    refused = expect_refused(await patch(narrow, "bob", origin="local"), 403, "forbidden")
    assert "`accounts`" in refused["detail"]
    assert (await patch(running.admin, "alice", origin="local")).json["subject"] is None


@pytest.mark.gateway(**SSO)
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"origin": "sso"}, "subject"),
        ({"origin": "sso", "subject": "x" * 256}, "subject"),
        ({"origin": "sso", "subject": None}, "subject"),
        ({"origin": "local", "subject": "x"}, "subject"),
        ({"subject": "x"}, "subject"),
        ({"origin": None}, "origin"),
        ({"origin": "ldap"}, "origin"),
    ],
)
async def test_what_no_origin_may_be(running, body, field):
    eve = await running.api("eve", Role.AUDITOR)
    for api in (running.admin, eve):  # 422 comes before 403
        refused = expect_refused(await patch(api, "alice", **body), 422, "invalid")
        assert refused["field"] == field


async def test_without_an_issuer_nobody_is_linked(running):
    answer = await patch(running.admin, "alice", origin="sso", subject="a-1")
    assert expect_refused(answer, 422, "invalid")["field"] == "origin"


@pytest.mark.gateway(**SSO)
async def test_a_user_of_an_issuer_has_no_password(running):
    await has_password(running, "alice", Role.MEMBER)
    await linked(running, "alice", "a-1")
    alice = await running.api("alice")
    expect_refused(await patch(running.admin, "alice", password=NEW), 409, "no-password")
    # A token of theirs rests, so that they ask by a login.
    expect_refused(await alice.get("/me"), 401, "unauthenticated")
    logins = running.gateway.services.logins
    cookie = await signed_on(running, "alice")
    assert (await logins.authenticate(cookie)).caller.user == "alice"
    assert (await alice.get("/me")).json["api_token"]["state"] == "good", "the login wakes it"
    own = await alice.post("/me/password", {"old": PASSWORD, "new": NEW})
    expect_refused(own, 409, "no-password")
    # Even a hash that is there lets nobody in, and the answer does not say why.
    hashed = await running.passwords.hash(Secret(PASSWORD))
    await running.gateway.engine.write(
        lambda t: t.run("UPDATE users SET password_hash = $1 WHERE name = 'alice'", hashed)
    )
    assert await logins.log_in("alice", Secret(PASSWORD), "192.0.2.1") == NotLoggedIn()
    [event] = (
        await running.eventually("/events?action=login-failed", lambda a: a.json["items"])
    ).json["items"]
    assert event["detail"] == {"user": "alice", "count": 1, "why": "sso-only"}


@pytest.mark.gateway(**SSO, sso__required="true")
async def test_where_single_sign_on_is_required_a_user_is_marked_local(running):
    for name in ("root", "before"):
        await has_password(running, name)
    await running.gateway.engine.write(
        lambda t: t.run("UPDATE users SET origin = NULL WHERE name = 'before'")
    )
    logins = running.gateway.services.logins

    async def lets_in(name):
        return isinstance(await logins.log_in(name, Secret(PASSWORD), "192.0.2.1"), Secret)

    assert [await lets_in(name) for name in ("root", "before")] == [True, False]
    expect_refused(await patch(running.admin, "root", role="member"), 409, "last-admin")
    assert (await patch(running.admin, "before", origin="local")).json["has_password"]
    assert await lets_in("before")
    assert (await patch(running.admin, "root", role="member")).status == 200


async def test_tokens_rest_and_logins_end_by_the_settings(tmp_path):
    clock = StandingClock()
    options = SSO | {"sso__tokens_after": "2h", "sso__lifetime": "1h", "admin__login_idle": "9h"}
    async with harness(tmp_path, clock=clock, **options) as running:
        await linked(running, "alice", "a-1")
        await running.provision("lab-1")
        token, api = await made(running.admin, user="alice", ice="lab-1")
        assert token["state"] == "resting"
        expect_refused(await api.get("/operations"), 401, "unauthenticated")
        logins = running.gateway.services.logins
        cookie = await signed_on(running, "alice")
        assert (await api.get("/operations")).status == 200
        clock.skip(minutes=59)
        assert await logins.authenticate(cookie) is not None
        assert (await running.admin.get("/users/alice")).json["logins"] == 1
        clock.skip(minutes=1)
        assert await logins.authenticate(cookie) is None
        assert (await running.admin.get("/users/alice")).json["logins"] == 0
        assert (await api.get("/operations")).status == 200
        clock.skip(hours=1)
        expect_refused(await api.get("/operations"), 401, "unauthenticated")
        [*_, shown] = (await running.admin.get("/api-tokens?q=alice")).json["items"]
        assert shown["state"] == "resting"
