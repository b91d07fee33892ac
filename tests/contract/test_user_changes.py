"""How a change decides on the way in which a user logs in, and who counts as an admin then."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.core.accounts import ApiToken, Origin, TokenState, User
from gateway.core.audit_event import Actor, Via
from gateway.core.problems import Problem
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.services.local_admins import missing_local_admin
from gateway.services.user_changes import Change
from gateway.store import accounts, logins
from gateway.store.logins import Login
from tests.contract.domain import (
    ISSUER,
    NOW,
    ROOT,
    account_service,
    an_event,
    an_ice,
    digest,
    log,
    login_rules,
    minutes,
)
from tests.contract.domain import (
    add as add_ice,
)

PASSWORD = Secret("a long enough password")
TO_SSO = Change(origin=Origin.SSO, subject="a-1")
TO_LOCAL = Change(origin=Origin.LOCAL)


@pytest.fixture
async def book(engine, tmp_path):
    """The accounts of a gateway with an issuer: root is a local admin, alice from before."""
    made = account_service(engine, tmp_path / "token.keys", login_rules())
    await add(engine, User("root", Role.ADMIN, "hash", NOW, origin=Origin.LOCAL))
    return made


async def add(engine, user):
    assert await engine.write(lambda t: accounts.add_user(t, user, an_event("add-user")))


async def log_in(engine, user, at=NOW):
    login = Login(digest(f"{user} {at}"), user, "::1", at, at)
    oldest = login_rules().oldest(at)
    await engine.write(lambda t: logins.add(t, login, an_event("log-in"), oldest))


async def count_logins(engine, user):
    [(count,)] = await engine.fetch("SELECT count(*) FROM logins WHERE user_name = $1", user)
    return count


async def changes_of(engine, action="set-login"):
    return [one.event.detail for one in await log(engine) if one.event.action == action]


def refused(answer, code, field=None):
    assert isinstance(answer, Problem), answer
    assert (answer.code, answer.more.get("field")) == (code, field)
    return answer.detail


async def test_a_user_of_a_fleet_is_linked_and_made_local_again(engine, book):
    alice = replace(await book.user("alice"), password_hash="hash")
    await engine.write(lambda t: accounts.update_user(t, alice))
    await log_in(engine, "alice")
    done = await book.change(ROOT, "ALICE", TO_SSO)
    user = done.user
    assert (user.origin, user.issuer, user.subject) == (Origin.SSO, ISSUER, "a-1")
    assert (user.password_hash, done.logins_ended) == (None, 1), "the password is forgotten"
    assert await count_logins(engine, "alice") == 0
    assert (await book.user("alice")).identity == user.identity

    before = await log(engine)
    assert (await book.change(ROOT, "alice", TO_SSO)).user == await book.user("alice")
    assert await log(engine) == before, "what changes nothing is no event"

    await log_in(engine, "alice")
    both = replace(TO_LOCAL, password=PASSWORD)
    done = await book.change(ROOT, "alice", both)
    assert (done.user.identity, done.logins_ended) == ((Origin.LOCAL, None, None), 1)
    assert done.user.password_hash is not None
    shared = {"user": "alice", "logins_ended": 1}
    assert await changes_of(engine) == [
        {**shared, "origin": "sso", "issuer": ISSUER, "subject": "a-1"},
        {**shared, "origin": "local", "issuer": None, "subject": None, "logins_ended": 0},
    ], "the new password has ended the login already"


async def test_one_who_is_only_marked_local_stays_logged_in(engine, book):
    await log_in(engine, "alice")
    done = await book.change(ROOT, "alice", TO_LOCAL)
    assert (done.user.origin, done.logins_ended) == (Origin.LOCAL, 0)
    assert await count_logins(engine, "alice") == 1
    assert len(await changes_of(engine)) == 1


async def test_another_subject_ends_the_logins_too(engine, book):
    await book.change(ROOT, "alice", TO_SSO)
    await log_in(engine, "alice")
    done = await book.change(ROOT, "alice", replace(TO_SSO, subject="A-1"))
    assert (done.user.subject, done.logins_ended) == ("A-1", 1), "case counts"


async def test_a_subject_is_of_one_user(engine, book):
    await book.change(ROOT, "alice", TO_SSO)
    await add(engine, User("bob", Role.MEMBER, None, NOW))
    before = await log(engine)
    detail = refused(await book.change(ROOT, "bob", TO_SSO), "subject-in-use")
    assert "alice" in detail
    assert (await book.user("bob")).origin is None
    assert await log(engine) == before
    await book.change(ROOT, "alice", TO_LOCAL)
    assert (await book.change(ROOT, "bob", TO_SSO)).user.subject == "a-1"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (Change(origin=Origin.SSO), "subject"),
        (Change(origin=Origin.SSO, subject=""), "subject"),
        (Change(origin=Origin.SSO, subject="x" * 256), "subject"),
        (Change(origin=Origin.SSO, subject="zoë"), "subject"),
        (Change(origin=Origin.LOCAL, subject="a"), "subject"),
        (Change(role=Role.MEMBER, subject="a"), "subject"),
    ],
)
async def test_origin_and_subject_go_together(book, wanted, field):
    refused(await book.change(ROOT, "alice", wanted), "invalid", field)
    assert (await book.user("alice")).identity == (None, None, None)


async def test_without_an_issuer_nobody_is_linked(engine, tmp_path):
    book = account_service(engine, tmp_path / "token.keys")
    assert "sso.issuer" in refused(await book.change(ROOT, "alice", TO_SSO), "invalid", "origin")
    assert (await book.change(ROOT, "alice", TO_LOCAL)).user.origin is Origin.LOCAL


async def test_a_user_of_single_sign_on_gets_no_password(engine, book):
    await book.change(ROOT, "alice", TO_SSO)
    refused(await book.set_password(ROOT, "alice", PASSWORD), "no-password")
    refused(await book.change(ROOT, "root", replace(TO_SSO, password=PASSWORD)), "no-password")
    assert (await book.user("root")).origin is Origin.LOCAL, "all of it or nothing"


# --- who counts as an admin ----------------------------------------------------------------------


async def admins(engine, rules):
    return await accounts.Accounts(engine).administering(rules, minutes(5), 10)


async def test_with_an_issuer_only_those_count_who_can_log_in_by_password(engine, book):
    await add(engine, User("before", Role.ADMIN, "hash", NOW))
    await add(engine, User("token", Role.ADMIN, None, NOW, origin=Origin.LOCAL))
    sso = User("sso", Role.ADMIN, None, NOW, origin=Origin.SSO, issuer=ISSUER, subject="s")
    await add(engine, sso)
    for number, user in enumerate(("token", "sso")):
        token = ApiToken(f"t{number}", user, "x", digest(user), NOW)
        await engine.write(lambda t, token=token: accounts.add_token(t, token, an_event("t")))
    assert await admins(engine, login_rules()) == ["before", "root"]
    assert await admins(engine, login_rules(required=True)) == ["root"]
    # Without an issuer an API token is enough, unless it rests.
    off = login_rules(issuer="")
    assert await admins(engine, off) == ["before", "root", "token"]
    assert "sso" in await admins(engine, replace(off, tokens_after=None))
    await log_in(engine, "sso")
    assert "sso" in await admins(engine, off)
    assert "sso" not in await admins(engine, replace(off, tokens_after=timedelta(minutes=5)))


async def test_the_last_local_admin_stays_one(engine, book):
    sso = User("boss", Role.ADMIN, None, NOW, origin=Origin.SSO, issuer=ISSUER, subject="b")
    await add(engine, sso)
    for wanted in (Change(role=Role.AUDITOR), Change(disabled=True), TO_SSO):
        assert "local user" in refused(await book.change(ROOT, "root", wanted), "last-admin")
    assert await book.last_admins([await book.user("root"), sso]) == {"root"}
    # It does not matter for those who do not count.
    assert (await book.change(ROOT, "boss", Change(role=Role.MEMBER))).user.role is Role.MEMBER
    command = Actor("root", Via.COMMAND, "host")
    assert (await book.change(command, "root", TO_SSO)).user.origin is Origin.SSO


async def test_an_admin_from_before_counts_until_single_sign_on_is_required(engine, tmp_path):
    keys = tmp_path / "token.keys"
    await add(engine, User("root", Role.ADMIN, "hash", NOW, origin=Origin.LOCAL))
    await add(engine, User("before", Role.ADMIN, "hash", NOW))
    required = account_service(engine, keys, login_rules(required=True))
    refused(await required.set_role(ROOT, "root", Role.MEMBER), "last-admin")
    optional = account_service(engine, keys, login_rules())
    assert (await optional.set_role(ROOT, "root", Role.MEMBER)).user.role is Role.MEMBER


async def test_the_command_that_provides_a_local_admin_is_named(engine):
    async def command(**rules):
        return await missing_local_admin(engine.fetch, login_rules(**rules), NOW)

    assert await command(issuer="") is None
    assert await command() == "ice-gateway users add NAME --role admin"
    await add(engine, User("be fore", Role.ADMIN, "hash", NOW))
    assert await command() is None
    assert await command(required=True) == "ice-gateway users set-login 'be fore' local"
    await add(engine, User("root", Role.ADMIN, "hash", NOW, origin=Origin.LOCAL))
    assert await command(required=True) is None


# --- API tokens ----------------------------------------------------------------------------------


async def test_api_tokens_rest_until_the_next_login(engine, tmp_path):
    rules = login_rules(tokens_after=timedelta(minutes=5))
    book = account_service(engine, tmp_path / "token.keys", rules)
    await add(engine, User("root", Role.ADMIN, "hash", NOW, origin=Origin.LOCAL))
    await add_ice(engine, an_ice("Lab-1"))
    made = await book.create_token(ROOT, "alice", "ci", 0.0, "Lab-1")
    assert made.state is TokenState.GOOD
    assert await book.authenticate(made.secret) is not None
    await book.change(ROOT, "alice", TO_SSO)
    assert await book.token_states([made.token]) == [TokenState.RESTING]
    assert await book.authenticate(made.secret) is None
    assert (await book.create_token(ROOT, "alice", "ci", 0.0)).state is TokenState.RESTING
    await log_in(engine, "alice", minutes(-4))
    assert await book.authenticate(made.secret) is not None, "a login wakes them"
    await log_in(engine, "alice", minutes(-5))
    assert await book.authenticate(made.secret) is None
    never = account_service(engine, tmp_path / "token.keys", replace(rules, tokens_after=None))
    assert await never.authenticate(made.secret) is not None
    await book.change(ROOT, "alice", TO_LOCAL)
    assert await book.authenticate(made.secret) is not None
