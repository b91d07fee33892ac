"""`users` and `api_tokens`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.accounts import MAX_USER_NAME, ApiToken, fold_user
from gateway.core.problems import Problem
from gateway.core.roles import Role
from gateway.core.times import to_text
from gateway.store import accounts, logins
from gateway.store.accounts import Accounts
from gateway.store.logins import Login
from tests.contract.domain import (
    NOW,
    ROOT,
    RULE_BROKEN,
    account_service,
    add,
    add_user,
    an_event,
    an_ice,
    digest,
    log,
    login_rules,
    minutes,
    refusing,
)


@pytest.mark.parametrize("name", ["\0", "alice\0", "\\u0000"])
async def test_a_list_of_names_may_hold_any_text(engine, name):
    async def unit(transaction):
        return await accounts.find_users(transaction, [name, "alice"])

    assert list(await engine.write(unit)) == ["alice"]
    assert await Accounts(engine).disabled_among([name]) == set()


async def add_token(engine, token):
    await engine.write(lambda t: accounts.add_token(t, token, an_event("token", id=token.id)))


async def revoke(engine, token_id, now):
    return await engine.write(
        lambda t: accounts.revoke_token(t, token_id, now, an_event("revoke", id=token_id))
    )


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Alice", "aLICE"),
        ("STRASSE", "straße"),
        ("\N{LATIN SMALL LIGATURE FI}ona", "FIONA"),
        ("Zoë", "ZOE\u0308"),
        ("\N{KELVIN SIGN}im", "kim"),
        ("Ａda", "ada"),  # noqa: RUF001 - of full width
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
async def test_a_user_name_is_unique_with_case_folded(open_store, name, other):
    async with open_store(serving=True) as engine:
        assert await add_user(engine, name, Role.AUDITOR, "hash")
        before = await log(engine)
        assert not await add_user(engine, other), f"{other} was expected to be taken by {name}"
        assert await log(engine) == before, "a refused user was expected to leave no event"
        table = Accounts(engine)
        found = await table.user(other)
        assert (found.name, found.role, found.password_hash) == (name, Role.AUDITOR, "hash")
        assert (found.createdon, found.disabledon) == (NOW, None)
        assert [listed.user for listed in await table.after("", "", 10)] == [found]


def test_what_is_too_long_for_a_name_is_folded_in_part():
    longest = "e\u0301" * MAX_USER_NAME
    assert fold_user(longest) == "\u00e9" * MAX_USER_NAME
    marks = fold_user("\u0301\u0316" * 500_000)
    assert MAX_USER_NAME < len(marks) <= 8 * MAX_USER_NAME


async def test_users_differ_in_what_folding_leaves(engine):
    for name in ("zoe", "Zoë", "al ice", "Bob"):
        assert await add_user(engine, name), f"{name} was expected to be free"
    names = [listed.user.name for listed in await Accounts(engine).after("", "", 10)]
    assert names == ["al ice", "alice", "Bob", "zoe", "Zoë"], "all users by folded name expected"


async def test_a_user_is_changed(engine):
    table = Accounts(engine)
    user = await table.user("alice")
    changed = replace(user, role=Role.ADMIN, password_hash="hash", disabledon=minutes(1))
    await engine.write(lambda t: accounts.update_user(t, changed))
    assert await table.user("ALICE") == changed
    assert await table.user("nobody") is None


async def test_an_api_token_is_found_by_its_hash_until_the_end(engine):
    table = Accounts(engine)
    newer = ApiToken("a2", "alice", "laptop", digest("two"), minutes(2), expireson=minutes(9))
    await add(engine, an_ice("Lab-1"))
    token = ApiToken("b1", "alice", "ci", digest("one"), minutes(1), ice_name="Lab-1")
    for each in (newer, token):
        await add_token(engine, each)
    assert await table.tokens() == [token, newer], "all tokens, oldest first, were expected"
    assert await table.token("a2") == newer
    assert await table.by_token(digest("two")) == (newer, await table.user("alice"))
    assert await table.by_token(digest("three")) is None
    assert await table.token("c3") is None

    assert await revoke(engine, "b1", minutes(3))
    [*_, revoked] = before = await log(engine)
    assert revoked.event.detail == {"id": "b1"}
    assert not await revoke(engine, "b1", minutes(4)), "a token is revoked once"
    assert not await revoke(engine, "c3", minutes(4)), "an unknown token cannot be revoked"
    assert await log(engine) == before, "a revocation of nothing was expected to be no event"
    found, _ = await table.by_token(digest("one"))
    assert found == replace(token, revokedon=minutes(3))
    assert await table.token("a2") == newer


async def test_a_token_that_is_refused_leaves_no_event(engine):
    before = await log(engine)
    with refusing(RULE_BROKEN, "an API token of an unknown user"):
        await add_token(engine, ApiToken("b1", "nobody", "x", digest("one"), NOW))
    with refusing(RULE_BROKEN, "an API token for an unknown ICE"):
        await add_token(engine, ApiToken("b1", "alice", "x", digest("one"), NOW, ice_name="lab-9"))
    assert await log(engine) == before


async def test_users_are_found_by_what_is_asked_of_them(engine):
    table = Accounts(engine)
    for name in ("Zoe", "zed", "z%d", "Zora"):
        await add_user(engine, name)
    assert await table.any()
    zora = await table.user("zora")
    gone = replace(zora, disabledon=NOW)
    await engine.write(lambda t: accounts.update_user(t, gone))
    assert await table.enabled_names("Z", 10) == ["z%d", "zed", "Zoe"]
    assert await table.enabled_names("z", 1) == ["z%d"]
    assert await table.enabled_names("%", 10) == ["z%d"]
    assert await table.enabled_names("zora", 10) == []
    assert await table.enabled_among(["ZOE", "zora", "nobody"]) == {"zoe"}
    assert await table.disabled_among(["zed", "Zora", "nobody"]) == {"Zora"}
    assert await table.disabled_among([]) == set()


async def test_whether_another_user_administers(engine):
    await add_user(engine, "root", Role.ADMIN, "hash")
    await add_user(engine, "tagged", Role.ADMIN)

    rules = login_rules(issuer="")

    async def found(name):
        names = [name, "Alice"]
        [user, alice], admins = await engine.write(
            lambda t: accounts.find_with_admins(t, names, rules, minutes(5))
        )
        assert alice.name == "alice"
        return user, admins

    root, admins = await found("ROOT")
    assert (root.name, root.administers, admins) == ("root", True, {"root"})
    await add_user(engine, "Boss", Role.ADMIN, "hash")
    assert (await found("root"))[1] == {"root", "Boss"}
    ended = ApiToken("t1", "tagged", "x", digest("x"), NOW, expireson=minutes(5))
    narrow = ApiToken("t2", "tagged", "y", digest("y"), NOW, ice_name="Lab-1")
    await add(engine, an_ice("Lab-1"))
    for token in (ended, narrow):
        await add_token(engine, token)
    boss, admins = await found("boss")
    assert (boss.name, admins) == ("Boss", {"root", "Boss"})
    await engine.write(lambda t: accounts.update_user(t, replace(boss, disabledon=NOW)))
    assert await found("root") == (root, {"root"})
    assert await found("nobody") == (None, {"root"})
    await add_token(engine, ApiToken("t3", "tagged", "z", digest("z"), NOW))
    assert await found("root") == (root, {"root", "tagged"}), "a good API token is enough"
    assert await Accounts(engine).administering(rules, minutes(5), 2) == ["root", "tagged"]
    assert await Accounts(engine).administering(rules, minutes(5), 1) == ["root"]


async def test_of_admins_who_disable_each_other_one_stays(engine, tmp_path):
    book = account_service(engine, tmp_path / "token.keys")
    for name in ("ann", "ben", "cat"):
        await add_user(engine, name, Role.ADMIN, "hash")
    done = await asyncio.gather(*(book.disable(ROOT, name) for name in ("ben", "cat", "ann")))
    refused = [one.code for one in done if isinstance(one, Problem)]
    assert refused == ["last-admin"]
    assert sum(listed.user.administers for listed in await book.after("", "", 10)) == 1


async def test_users_and_tokens_are_listed_in_portions(engine):
    table = Accounts(engine)
    for name in ("Zoë", "b_b", "bob"):
        await add_user(engine, name)
    await add(engine, an_ice("Lab-1"))

    async def users(text, after, limit=9):
        return [(one.user.name, one.ices) for one in await table.after(text, after, limit)]

    assert await users("", "", 2) == [("alice", 1), ("b_b", 0)]
    assert await users("", "b_b") == [("bob", 0), ("Zoë", 0)]
    assert await users("B_", "") == [("b_b", 0)]
    assert (await table.listed("ZOË")).user.name == "Zoë"
    assert await table.listed("none") is None

    for number, (user, label, ice) in enumerate(
        [("Zoë", "CI Ä", None), ("bob", "x_y", "Lab-1"), ("bob", "ci", None)]
    ):
        token = ApiToken(f"t{number}", user, label, digest(label), NOW, ice_name=ice)
        await add_token(engine, replace(token, accounts=number == 0, madeby="token x"))

    async def ids(text="", user=None, limit=9, place=None):
        where = accounts.TokenFilter(text, user)
        return [one.id for one in await table.tokens_before(where, limit, place)]

    first = await table.token("t0")
    assert (first.accounts, first.madeby, first.lastused) == (True, "token x", None)
    assert await ids() == ["t2", "t1", "t0"], "newest first, then by id"
    assert await ids(limit=1, place=(await table.token("t2")).place) == ["t1"]
    assert await ids(user="bob") == ["t2", "t1"]
    for text, wanted in (("CI", ["t2", "t0"]), ("Ä", ["t0"]), ("zOË", ["t0"]), ("_", ["t1"])):
        assert await ids(text) == wanted, text
    assert await ids("LAB") == await ids("t1") == ["t1"]
    found, total = await table.tokens_page(accounts.TokenFilter("ci"), 1, 1)
    assert ([one.id for one in found], total) == (["t0"], 2)

    await engine.write(lambda t: accounts.see_token(t, "t0", minutes(3)))
    assert (await table.token("t0")).lastused == minutes(3)


async def test_of_one_users_logins_the_newest_are_kept(engine):
    oldest = login_rules().oldest(NOW)
    for number in range(logins.MAX_LOGINS + 2):
        login = Login(f"hash {number}", "alice", "::1", minutes(number), minutes(number))
        await engine.write(lambda t, login=login: logins.add(t, login, an_event("log-in"), oldest))
    rows = await engine.fetch("SELECT min(createdon), count(*) FROM logins")
    assert rows == [(to_text(minutes(2)), logins.MAX_LOGINS)]
