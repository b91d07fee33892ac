"""Users of an issuer, their logins, and what an issuer sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.accounts import Origin, User
from gateway.core.roles import Role
from gateway.store import accounts, logins, restore_mark, sso
from gateway.store.logins import Login
from gateway.store.tables import SSO_SCHEMA
from tests.contract.domain import (
    ISSUER,
    NOW,
    RULE_BROKEN,
    an_event,
    digest,
    login_rules,
    minutes,
    refusing,
)


async def test_a_digest_is_good_once_until_it_has_expired(engine):
    async def use(until, now):
        return await engine.write(lambda t: sso.use(t, digest("a"), until, now))

    assert await use(minutes(2), NOW)
    assert not await use(minutes(2), NOW)
    assert await use(minutes(9), minutes(3))
    assert len(await engine.fetch("SELECT digest FROM sso_used")) == 1


async def add_sso_user(engine, name, subject, issuer=ISSUER):
    user = User(name, Role.MEMBER, None, NOW, origin=Origin.SSO, issuer=issuer, subject=subject)
    assert await engine.write(lambda t: accounts.add_user(t, user, an_event("add-user")))
    return user


async def log_in(engine, user, sid=None, at=NOW, rules=None):
    login = Login(digest(f"{user} {sid} {at}"), user, "::1", at, at, sid)
    oldest = (rules or login_rules()).oldest(at)
    await engine.write(lambda t: logins.add(t, login, an_event("log-in"), oldest))


async def counts(engine, now=NOW):
    rules = login_rules()
    return await logins.counts(engine.fetch, rules.oldest(now), now - rules.idle)


async def test_a_user_is_found_by_the_subject_of_their_issuer(engine):
    async def found(issuer, subject):
        return await engine.write(lambda t: accounts.find_by_subject(t, issuer, subject))

    user = await add_sso_user(engine, "carol", "c-1")
    other = await add_sso_user(engine, "carol2", "c-1", "https://other.example.org")
    assert await found(ISSUER, "c-1") == user
    assert await found("https://other.example.org", "c-1") == other
    assert await found(ISSUER, "C-1") is None, "case counts"
    assert await found(ISSUER + "/", "c-1") is None


async def test_a_subject_belongs_to_one_user(engine):
    carol = await add_sso_user(engine, "carol", "c-1")
    with refusing(RULE_BROKEN, "a subject of another user"):
        await engine.write(lambda t: accounts.update_user(t, replace(carol, name="alice")))


@pytest.mark.parametrize(
    ("subject", "sid", "ended"),
    [
        ("c-1", None, {"carol": 3}),
        ("c-1", "s-1", {"carol": 2}),  # and the one whose session is not known
        (None, "s-1", {"carol": 1, "dave": 1}),
        ("c-1", "s-9", {"carol": 1}),
        ("c-9", None, {}),
        ("C-1", None, {}),
    ],
)
async def test_an_issuer_ends_the_logins_that_it_names(engine, subject, sid, ended):
    await add_sso_user(engine, "carol", "c-1")
    await add_sso_user(engine, "dave", "d-1")
    await add_sso_user(engine, "erin", "c-1", "https://other.example.org")
    for user, its_sid in (("carol", "s-1"), ("carol", "s-2"), ("dave", "s-1"), ("erin", "s-1")):
        await log_in(engine, user, its_sid)
    await log_in(engine, "carol")
    before = await counts(engine)
    assert await engine.write(lambda t: logins.end_by_subject(t, ISSUER, subject, sid)) == ended
    left = {user: count - ended.get(user, 0) for user, count in before.items()}
    assert await counts(engine) == {user: count for user, count in left.items() if count}


async def test_an_issuer_that_names_nothing_ends_nothing(engine):
    with pytest.raises(ValueError, match="subject or a session"):
        await engine.write(lambda t: logins.end_by_subject(t, ISSUER, None, None))


async def test_a_login_by_single_sign_on_has_a_lifetime_of_its_own(engine):
    await add_sso_user(engine, "carol", "c-1")
    for user in ("alice", "carol"):
        await log_in(engine, user)
    later = minutes(8 * 60)
    for name in ("alice", "carol"):
        await engine.write(lambda t, name=name: logins.see(t, digest(f"{name} None {NOW}"), later))
    assert await counts(engine, minutes(7 * 60 + 59)) == {"alice": 1, "carol": 1}
    assert await counts(engine, later) == {"alice": 1}

    async def kept():
        return await engine.fetch("SELECT user_name FROM logins ORDER BY createdon, user_name")

    await log_in(engine, "alice", at=minutes(9 * 60))
    assert await kept() == [("alice",), ("alice",)], "the next login deletes what has ended"
    await log_in(engine, "carol", at=minutes(13 * 60))
    assert await kept() == [("alice",), ("carol",)]


async def test_the_review_after_a_restore_knows_subjects_of_a_schema_that_has_them(engine):
    await add_sso_user(engine, "carol", "c-1")
    carol = (await restore_mark.standing(engine.fetch)).users["carol"]
    assert (carol.issuer, carol.subject) == (ISSUER, "c-1")
    older = (await restore_mark.standing(engine.fetch, SSO_SCHEMA - 1)).users["carol"]
    assert (older.issuer, older.subject) == (None, None)
