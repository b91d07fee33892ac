"""What becomes of the ICEs of a user who is disabled: in one transaction, and also if an ICE registers meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.accounts import ApiToken
from gateway.core.ice import Status
from gateway.core.operation import State
from gateway.core.problems import Problem
from gateway.core.times import to_text
from gateway.services.bulk_actions import MAX_ISSUED
from gateway.services.leavers import NextUser
from gateway.store import accounts, ices
from gateway.store.accounts import Accounts
from gateway.store.engine import StoreUnavailable
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyStore
from tests.contract.domain import (
    NOW,
    ROOT,
    Halt,
    account_service,
    add,
    add_registered,
    add_user,
    an_event,
    an_ice,
    change,
    deregistered,
    digest,
    log,
    minutes,
    registered,
    soon,
)

TO_BOB = NextUser("BOB")


@pytest.fixture
async def book(engine, tmp_path):
    """The service, and the users alice, who leaves, and Bob, with a key to seal tokens for him."""
    await add_user(engine, "Bob")
    KeyStore(tmp_path / "token.keys").for_sealing(may_create=True)
    return account_service(engine, tmp_path / "token.keys")


async def fleet(engine):
    """One ICE of alice in each status, and two that are not hers."""
    await add(engine, an_ice("Lab-1"))
    await add_registered(engine, "lab-2")
    gone = await add_registered(engine, "lab-3")
    await change(engine, (gone, deregistered(gone)))
    await add_registered(engine, "bobs", "Bob")
    await add_registered(engine, "ci-1", None)


async def find(engine, name):
    return (await IceListing(engine).find(name)).ice


async def states(engine):
    found = [await find(engine, name) for name in ("Lab-1", "lab-2", "lab-3", "bobs", "ci-1")]
    return [(ice.status, ice.provisionedto, ice.generation) for ice in found]


async def actions(engine, after):
    return [(one.event.action, one.event.ice_name) for one in await log(engine) if one.seq > after]


OTHERS = [(Status.REGISTERED, "Bob", 1), (Status.REGISTERED, None, 1)]
GONE = (Status.DEREGISTERED, "alice", 2)


@pytest.mark.parametrize(
    ("wanted", "expected", "logged"),
    [
        ("keep", [(Status.PROVISIONED, "alice", 1), (Status.REGISTERED, "alice", 1), GONE], []),
        (
            "deregister",
            [(Status.PROVISIONED, "alice", 1), (Status.DEREGISTERED, "alice", 2), GONE],
            [("deregister", "lab-2")],
        ),
        (
            TO_BOB,
            [(Status.PROVISIONED, "Bob", 2), (Status.PROVISIONED, "Bob", 2), GONE],
            [("reprovision", "Lab-1"), ("reregister", "lab-2")],
        ),
    ],
    ids=["keep", "deregister", "to"],
)
async def test_what_becomes_of_the_ices(engine, book, wanted, expected, logged):
    await fleet(engine)
    [*_, last] = await log(engine)
    done = await book.disable(ROOT, "ALICE", wanted)
    assert done.user.disabledon == NOW
    assert await states(engine) == expected + OTHERS
    assert await actions(engine, last.seq) == [*logged, ("disable-user", None)]
    assert [(each.ice.ice_name, each.action) for each in done.left.ices] == [
        (name, {ice: action for action, ice in logged}.get(name))
        for name in ("Lab-1", "lab-2", "lab-3")
    ]
    first = await find(engine, "Lab-1")
    assert first.expired(NOW) is (wanted != TO_BOB), "an unused token expires with its user"
    for each in done.left.ices:
        ice = await find(engine, each.ice.ice_name)
        if wanted == TO_BOB and each.action is not None:
            assert digest(each.token.reveal()) == ice.ice_token
        else:
            assert each.token is None


async def test_a_leaver_who_was_disabled_before_is_cleared_up_later(engine, book):
    await fleet(engine)
    await book.disable(ROOT, "alice")
    [*_, last] = await log(engine)
    await book.disable(ROOT, "alice", "deregister")
    assert (await states(engine))[1] == (Status.DEREGISTERED, "alice", 2)
    await book.disable(ROOT, "alice", TO_BOB)
    assert (await states(engine))[0] == (Status.PROVISIONED, "Bob", 2)
    assert await actions(engine, last.seq) == [("deregister", "lab-2"), ("reprovision", "Lab-1")]


async def test_what_the_leaver_may_do_with_a_moved_ice_ends(engine, book):
    await fleet(engine)
    for name, ice in (("t1", "lab-2"), ("t2", "lab-3")):
        token = ApiToken(name, "alice", "ci", digest(name), NOW, ice_name=ice)
        await engine.write(lambda t, new=token: accounts.add_token(t, new, an_event("token")))
    row = {
        "id": "o1",
        "ice_name": "lab-2",
        "kind": "execute",
        "params": "{}",
        "state": State.QUEUED.value,
        "requested_by": "alice",
        "created": to_text(NOW),
        "deadline": to_text(minutes(5)),
    }
    names = ", ".join(row)
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    sql = f"INSERT INTO ice_operations ({names}) VALUES ({places})"  # noqa: S608 - our own columns
    await engine.write(lambda t: t.run(sql, *row.values()))
    await book.disable(ROOT, "alice", TO_BOB)
    revoked = {token.id: token.revokedon for token in await Accounts(engine).tokens()}
    assert revoked == {"t1": NOW, "t2": None}, "the deregistered ICE stays with alice"
    [(state, former)] = await engine.fetch("SELECT state, former_user FROM ice_operations")
    assert (state, former) == (State.CANCELLED, "alice")


async def test_a_refusal_changes_nothing(engine, book):
    for name in ("gone", "carol"):
        await add_user(engine, name)
    many = [an_ice(f"c-{number}", "carol") for number in range(MAX_ISSUED + 1)]
    rows = [(ice, an_event("provision", ice), {}) for ice in many]
    await engine.write(lambda t: ices.insert_many(t, rows))
    await book.disable(ROOT, "gone")
    await fleet(engine)
    before = await log(engine), await states(engine)
    for user, wanted, says in (
        ("alice", NextUser("nobody"), "ices.to: there is no user"),
        ("alice", NextUser(""), "ices.to: there is no user"),
        ("alice", NextUser("gone"), "ices.to: this user is disabled"),
        ("alice", NextUser("Alice"), "ices.to: this is the user who is disabled"),
        ("carol", TO_BOB, "ices: at most 1,000 at once, and carol has 1,001"),
    ):
        refused = await book.disable(ROOT, user, wanted)
        assert isinstance(refused, Problem)
        assert refused.code == "invalid"
        assert refused.detail.startswith(says)
        assert (await book.user(user)).disabledon is None
    assert (await log(engine), await states(engine)) == before


async def test_without_a_key_nothing_is_half_done(engine, book, tmp_path):
    (tmp_path / "token.keys").unlink()
    await fleet(engine)
    before = await log(engine), await states(engine)
    unsealed = account_service(engine, tmp_path / "token.keys")
    refused = await unsealed.disable(ROOT, "alice", TO_BOB)
    assert refused.code == "keys-unavailable"
    assert (await book.user("alice")).disabledon is None
    assert (await log(engine), await states(engine)) == before
    done = await unsealed.disable(ROOT, "alice", "deregister")
    assert done.user.disabledon == NOW, "that needs no key"


class Broken:
    """An engine on which users cannot be stored."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.fetch = engine.fetch

    async def write(self, unit):
        return await self._engine.write(lambda transaction: unit(BrokenTransaction(transaction)))


class BrokenTransaction:
    def __init__(self, transaction) -> None:
        self.appended = transaction.appended
        self.fetch, self.hold = transaction.fetch, transaction.hold
        self._run = transaction.run

    async def run(self, sql, *params):
        if sql.startswith("UPDATE users"):
            raise StoreUnavailable("the disk is full")
        return await self._run(sql, *params)


async def test_a_failure_on_the_way_leaves_nothing_half_done(engine, book, tmp_path):
    await fleet(engine)
    before = await log(engine), await states(engine)
    broken = account_service(Broken(engine), tmp_path / "token.keys")
    with pytest.raises(StoreUnavailable):
        await broken.disable(ROOT, "alice", TO_BOB)
    assert (await book.user("alice")).disabledon is None
    assert (await log(engine), await states(engine)) == before


async def waits_for_a_lock(engine):
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while not await engine.fetch(waiting):  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("wanted", ["deregister", TO_BOB], ids=str)
async def test_a_registration_that_is_first_is_seen(open_store, engine, book, wanted):
    """It commits on another node, while the user is being disabled here."""
    ice = an_ice("lab-1")
    await add(engine, ice)
    halt = Halt()

    async def register(transaction):
        event = an_event("register", ice)
        [logged] = await ices.register(transaction, [(ice, registered(ice), event)])
        await halt.stop()
        return logged

    async with open_store() as elsewhere:
        first = asyncio.create_task(elsewhere.write(register))
        await soon(halt.reached.wait(), "the registration")
        second = asyncio.create_task(book.disable(ROOT, "alice", wanted))
        if engine.shared:
            await soon(waits_for_a_lock(engine), "the wait for the registration")
        halt.go()
        assert await soon(first, "the registration") is not None
        done = await soon(second, "the end of the user")
    [left] = done.left.ices
    expected = {
        "deregister": (Status.DEREGISTERED, "deregister"),
        TO_BOB: (Status.PROVISIONED, "reregister"),
    }[wanted]
    assert (left.ice.status, left.action) == expected
    assert (await find(engine, "lab-1")).status is expected[0]


async def test_two_who_give_their_ices_to_each_other(open_store, engine, book, tmp_path):
    """One of the two finds the other disabled."""
    await add_registered(engine, "lab-1")
    await add_registered(engine, "bobs", "Bob")
    async with open_store() as elsewhere:
        there = account_service(elsewhere, tmp_path / "token.keys")
        done = await soon(
            asyncio.gather(
                book.disable(ROOT, "alice", TO_BOB),
                there.disable(ROOT, "Bob", NextUser("alice")),
            ),
            "the end of both",
        )
    [refused] = [one for one in done if isinstance(one, Problem)]
    assert refused.more["field"] == "ices.to"
