"""`ice_tokens`: found with case folded, listed, changed by compare-and-set with the event beside it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.core.accounts import fold_user
from gateway.core.attention import Attention, Expectations
from gateway.core.audit_event import Actor, Via
from gateway.core.ice import IceType, Status
from gateway.core.labels import MAX_LABELS
from gateway.core.search import MAX_WORDS
from gateway.core.version_key import version_key
from gateway.store import ices, sessions
from gateway.store.engine import Part, StoreUnavailable
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from gateway.store.ice_loader import IceLoader
from gateway.store.ice_order import Order, SortKey
from gateway.store.ices import Stale
from gateway.store.postgres.engine import open_postgres
from gateway.store.tables import needs_keys
from tests.contract.domain import (
    NOW,
    ROOT,
    RULE_BROKEN,
    Between,
    Halt,
    a_connection,
    a_connection_event,
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
    opened,
    record,
    refusing,
    registered,
    reregistered,
    soon,
    told,
)


async def entry(engine, name="lab-1"):
    """The entry as the table holds it."""
    listed = await IceListing(engine).find(name)
    return listed and listed.ice


# --- found, inserted -----------------------------------------------------------------------------


async def test_an_ice_is_found_as_it_was_inserted_with_case_folded(engine):
    table = IceListing(engine)
    assert not await needs_keys(engine.fetch), "the table of a new store was expected to be empty"
    ice = an_ice("Lab-1")
    logged = await add(engine, ice)
    assert await needs_keys(engine.fetch)
    found = await table.find("lAB-1")
    assert (found.ice, found.lastseen, found.connection) == (ice, None, None)
    assert told((await log(engine))[-1:]) == told([logged]), "insert was expected to tell its event"
    many = await engine.write(lambda t: ices.find_many(t, ["LAB-1", "lab-2"]))
    assert many == {"lab-1": ice}
    assert await table.find("lab-2") is None


@pytest.mark.parametrize("name", ["Lab-1", "lab-1"])
async def test_a_taken_name_is_refused_whatever_its_case(engine, name):
    ice = an_ice("Lab-1")
    await add(engine, ice)
    before = await log(engine)
    other = replace(an_ice(name, None), ice_token=digest("another token"))
    assert await add(engine, other) is None, f"{name} was expected to be taken by Lab-1"
    assert await entry(engine) == ice, "a refused insert was expected to leave the entry alone"
    assert await log(engine) == before, "a refused insert was expected to leave no event"


# --- compare and swap ----------------------------------------------------------------------------


async def test_a_life_is_stored_as_the_rules_made_it(engine):
    ice = an_ice()
    await add(engine, ice)
    for step in (registered, deregistered, reregistered, registered):
        new = step(ice)
        [logged] = await change(engine, (ice, new))
        assert await entry(engine) == new, f"the table was expected to hold what {step} gave"
        assert told((await log(engine))[-1:]) == told([logged])
        ice = new


@pytest.mark.parametrize(
    "stale",
    [
        {"ice_token": digest("another token")},
        {"ice_type": IceType.CI_CD},
        {"status": Status.PROVISIONED},
        {"generation": 2},
        {"ice_name": "lab-2"},
    ],
    ids=lambda stale: next(iter(stale)),
)
async def test_a_stale_swap_leaves_neither_change_nor_event(engine, stale):
    ice = await add_registered(engine)
    before = await log(engine)
    with refusing(Stale, f"a swap of an entry whose old value has another {stale}"):
        await change(engine, (replace(ice, **stale), deregistered(ice)))
    assert await entry(engine) == ice
    assert await log(engine) == before


async def test_a_change_whose_event_cannot_be_written_is_undone(engine):
    ice = await add_registered(engine)
    nowhere = replace(an_event(), actor=Actor("root", Via.API, None))
    for unit in (
        lambda t: ices.replace(t, [(ice, deregistered(ice), nowhere)]),
        lambda t: ices.insert(t, an_ice("lab-2"), nowhere),
    ):
        with refusing(RULE_BROKEN, "a change with an event that has no address"):
            await engine.write(unit)
    assert await entry(engine) == ice, "row and event were expected to share a transaction"
    assert await entry(engine, "lab-2") is None


async def test_of_two_swaps_that_race_exactly_one_wins(engine, open_store):
    async with open_store() as elsewhere:
        for name, other in (("lab-1", engine), ("lab-2", elsewhere)):
            old = await add_registered(engine, name)
            before = len(await log(engine))
            news = (deregistered(old), reregistered(old))
            raced = await asyncio.gather(
                change(engine, (old, news[0])),
                change(other, (old, news[1])),
                return_exceptions=True,
            )
            won = [new for new, done in zip(news, raced, strict=True) if isinstance(done, list)]
            lost = [done for done in raced if isinstance(done, Stale)]
            assert (len(won), len(lost)) == (1, 1), f"one winner, one Stale expected, not {raced}"
            assert await entry(engine, name) == won[0]
            assert len(await log(engine)) == before + 1, "the winner's event alone was expected"


async def register(engine, *changes, work=ices.register):
    """What each registration learns: of an ICE, or of an ICE and what it is to become."""
    pairs = [one if isinstance(one, tuple) else (one, registered(one)) for one in changes]
    items = [(old, new, an_event("register", new, key=new.key_thumbprint)) for old, new in pairs]
    parts = (Part(work, item) for item in items)
    return await asyncio.gather(*map(engine.write, parts), return_exceptions=True)


async def several(engine, count=4):
    found = [an_ice(f"lab-{number}") for number in range(count)]
    for ice in found:
        await add(engine, ice)
    return found


async def test_a_stale_registration_is_refused_alone(engine):
    first, stale, *others = await several(engine)
    await change(engine, (stale, registered(stale)))
    before = len(await log(engine))
    done = await register(engine, first, stale, *others)
    assert done[1] is None, "another change had come first"
    assert told([done[0], *done[2:]]) == told((await log(engine))[before:])
    for ice in (first, *others):
        assert await entry(engine, ice.ice_name) == registered(ice)


async def test_a_registration_that_breaks_a_rule_fails_alone(engine):
    first, bad, *others = await several(engine)
    without_key = replace(registered(bad), key_thumbprint=None)
    done = await register(engine, first, (bad, without_key), *others)
    assert isinstance(done[1], RULE_BROKEN)
    assert await entry(engine, bad.ice_name) == bad
    for ice in (first, *others):
        assert await entry(engine, ice.ice_name) == registered(ice)


async def test_nodes_that_register_the_same_ices_wait_in_one_order(tables_url):
    """Otherwise each could hold an ICE that the other waits for, until PostgreSQL undoes one of the two."""
    ran = []

    async def counting(transaction, items):
        ran.append(len(items))
        return await ices.register(transaction, items)

    async with contextlib.AsyncExitStack() as stack:
        one, other, holder = [
            await stack.enter_async_context(
                open_postgres(tables_url, node=node, tell=lambda _: None)
            )
            for node in ("one", "other", None)
        ]
        await add_user(one, "alice")
        a, b, c, *_ = await several(one)
        held = Halt()

        async def holding(transaction):
            sql = "SELECT ice_name FROM ice_tokens WHERE ice_name = $1"
            await transaction.hold(sql, c.ice_name)
            await held.stop()

        task = asyncio.create_task(holder.write(holding))
        await soon(held.reached.wait(), "the lock of an ICE")
        done = asyncio.gather(
            register(one, a, c, b, work=counting), register(other, b, c, a, work=counting)
        )
        await soon(until_waiting(holder, 2), "two nodes that wait")
        held.go()
        await soon(task, "the end of the lock")
        assert sum(logged is not None for logged in itertools.chain(*await done)) == 3
        assert ran == [3, 3], "each node's transaction was expected to run once"


async def until_waiting(engine, count):
    """Return when so many transactions wait for a lock; there is no event to wait for."""
    waits = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
    while await engine.fetch(waits) != [(count,)]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_of_two_registrations_of_one_ice_the_first_counts(engine):
    first, other, *_ = await several(engine)
    second = replace(registered(first), key_thumbprint="another key")
    done = await register(engine, first, (first, second), other)
    assert done[1] is None, "the second was expected to read again"
    assert None not in (done[0], done[2])
    assert await entry(engine, first.ice_name) == registered(first)


async def test_a_registration_whose_token_expired_meanwhile_is_stale(engine):
    """Disabling the user lets it expire, and changes neither status nor generation."""
    ice = an_ice()
    await add(engine, ice)
    await engine.write(lambda t: ices.expire_unused(t, "alice", minutes(1)))
    assert await register(engine, ice) == [None]
    expired = replace(ice, expireson=minutes(1))
    assert await entry(engine) == expired
    await change(engine, (expired, registered(expired)))


async def test_a_swap_of_many_is_all_or_nothing(engine):
    olds = [await add_registered(engine, f"lab-{number}") for number in range(3)]
    before = await log(engine)
    stale = [*olds[:2], replace(olds[2], generation=7)]
    with refusing(Stale, "a swap of many of which the last is stale"):
        await change(engine, *((old, deregistered(old)) for old in stale))
    assert [await entry(engine, ice.ice_name) for ice in olds] == olds
    assert await log(engine) == before

    logged = await change(engine, *((old, deregistered(old)) for old in olds))
    assert [found.event.ice_name for found in logged] == ["lab-0", "lab-1", "lab-2"]
    assert [await entry(engine, ice.ice_name) for ice in olds] == [*map(deregistered, olds)]
    assert await change(engine) == [], "a swap of none was expected to do nothing"


# --- listed --------------------------------------------------------------------------------------

# By folded name in the order of code points, whatever collation the engine would have.
ORDER = ["build-1", "delta", "lab-10", "Lab-2", "lab_1", "Zeta.x"]


@pytest.fixture
async def laboratory(engine):
    """Six ICEs of every type and status, one of them connected; users whose names need escapes."""
    for user in ("Grüße", "50%_off", "back\\slash"):
        await add_user(engine, user)
    for name, user in (
        ("Zeta.x", "50%_off"),
        ("lab-10", "alice"),
        ("delta", "back\\slash"),
        ("build-1", None),
    ):
        await add(engine, an_ice(name, user))
    connected = await add_registered(engine, "Lab-2")
    await record(engine, [opened(connected, a_connection("s1"))])
    gone = await add_registered(engine, "lab_1", "Grüße")
    await change(engine, (gone, deregistered(gone)))
    return IceListing(engine)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, ORDER),
        ({"status": Status.REGISTERED}, ["Lab-2"]),
        ({"status": Status.DEREGISTERED}, ["lab_1"]),
        ({"ice_type": IceType.CI_CD}, ["build-1"]),
        ({"provisionedto": fold_user("ALICE")}, ["lab-10", "Lab-2"]),
        ({"provisionedto": fold_user("GRÜSSE")}, ["lab_1"]),
        ({"connected": True}, ["Lab-2"]),
        ({"connected": False}, ["build-1", "delta", "lab-10", "lab_1", "Zeta.x"]),
        ({"words": ("ab-",)}, ["lab-10", "Lab-2"]),
        ({"words": ("zeta.x",)}, ["Zeta.x"]),
        ({"words": (fold_user("GRÜSS"),)}, ["lab_1"]),
        ({"words": ("%",)}, ["Zeta.x"]),
        ({"words": ("_",)}, ["lab_1", "Zeta.x"]),
        ({"words": ("\\",)}, ["delta"]),
        ({"words": ("l_b",)}, []),
        (
            {"needs_attention": True, "now": minutes(60)},
            ["build-1", "delta", "lab-10", "Zeta.x"],
        ),
        ({"needs_attention": True, "now": minutes(59)}, []),
        ({"words": ("lab",), "status": Status.PROVISIONED, "connected": False}, ["lab-10"]),
    ],
    ids=str,
)
async def test_a_page_holds_what_the_filter_lets_through(laboratory, where, expected):
    page = await laboratory.page(IceFilter(**where), 100)
    assert [listed.ice.ice_name for listed in page] == expected


async def test_outdated_and_inactive_ices_are_found_counted_and_listed_alike(engine):
    table = IceListing(engine, Expectations(version_key("2.4"), timedelta(days=30)))
    for name, version, ends in (
        ("old", "2.3", True),
        ("new", "2.10", True),
        ("strange", "x", True),
        ("online", "2.4rc1", False),
        ("gone", "1.0", True),
    ):
        ice = await add_registered(engine, name)
        session = opened(ice, a_connection(f"s of {name}", version=version))
        await record(engine, [session], newest=[session])
        if ends:
            closed = a_connection_event("closed", "1000", ice_name=name, at=minutes(10))
            await record(engine, closed=[f"s of {name}"], connection_events=[closed])
    await change(engine, (ice, deregistered(ice)))
    await add_registered(engine, "never-seen")  # registered at minutes(1)
    await add(engine, an_ice("unused"))
    month = timedelta(days=30)

    async def agree(now, where, says):
        """The names that a filter finds, and for which an entry says so."""
        found = [listed.ice.ice_name for listed in await table.page(IceFilter(**where, now=now), 9)]
        entries = await table.page(IceFilter(), 9)
        assert found == [listed.ice.ice_name for listed in entries if says(listed)]
        assert await table.count(IceFilter(**where, now=now)) == len(found)
        return found

    for passed, expected in (
        (minutes(1) + month, []),
        (minutes(2) + month, ["never-seen"]),
        (minutes(11) + month, ["never-seen", "new", "old", "strange"]),
    ):
        inactive = lambda listed, now=passed: listed.is_inactive(now)  # noqa: E731
        assert await agree(passed, {"inactive": True}, inactive) == expected
        others = await agree(passed, {"inactive": False}, lambda one: not inactive(one))  # noqa: B023
        assert len(others) == 7 - len(expected)
        for where in (IceFilter(), IceFilter(words=("old",))):
            counts = await table.counts(where, passed)
            assert counts.inactive == len(
                [name for name in expected if name == "old" or not where.words]
            )
            assert counts.attention[Attention.OUTDATED] == (1 if where.words else 2)
    outdated = lambda listed: Attention.OUTDATED in listed.attention(NOW)  # noqa: E731
    assert await agree(NOW, {"attention": Attention.OUTDATED}, outdated) == ["old", "online"]
    assert await agree(NOW, {"needs_attention": True}, outdated) == ["old", "online"]
    for expectations in (Expectations(), Expectations(version_key("0.1"), timedelta(days=9_000))):
        table = IceListing(engine, expectations)
        counts = await table.counts(IceFilter(), minutes(0) + month)
        assert (counts.inactive, counts.attention[Attention.OUTDATED]) == (0, 0)
        assert not await table.page(IceFilter(inactive=True, now=NOW), 9)
        assert not await table.page(IceFilter(attention=Attention.OUTDATED, now=NOW), 9)


@pytest.fixture
async def fleet(laboratory, engine):
    """The laboratory with ties and gaps in what is sorted: versions, owners, sessions of two nodes."""
    for number, version in enumerate(("1.10", "1.9", None, "unreadable", "1.9", "1.10"), 1):
        ice = await add_registered(engine, f"Lab-2{number}", "alice" if number % 2 else "50%_off")
        connection = a_connection(f"of {number}", f"node-{'ab'[number % 2]}", version=version)
        session = opened(ice, connection)
        happened = a_connection_event("admitted", ice_name=ice.ice_name, at=minutes(number // 2))
        await record(engine, [session], (), (), [happened], newest=[session])
    await engine.write(lambda t: sessions.confirm(t, "node-a", minutes(2)))
    await record(engine, closed=["of 1", "of 4"])
    return laboratory


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_follow_each_other_without_gap_or_repetition(engine, descending):
    """By mark and by offset, in every order, whether all ICEs or those with a word are listed.

    PostgreSQL looks for those with a word among three names first, which fill some of the pages.
    """
    table = IceListing(engine, tried=3)
    for by, where in itertools.product(SortKey, [IceFilter(), IceFilter(words=("lab",))]):
        order = Order(by, descending)
        values = {
            listed.ice.ice_name: sorted_by(listed, by) for listed in await table.page(where, 100)
        }
        assert len(values) == (9 if where.words else 12)
        there = sorted(
            (name for name, value in values.items() if value is not None),
            key=lambda name: (values[name], name.lower()),
            reverse=descending,
        )
        without = sorted({*values} - {*there}, key=str.lower)
        if by is SortKey.NAME:
            without = without[:: -1 if descending else 1]
        expected = [*there, *without]
        by_offset = [
            listed.ice.ice_name
            for start in range(0, 14, 2)
            for listed in await table.page(where, 2, order=order, offset=start)
        ]
        assert by_offset == expected, f"{order} was expected to hold from page to page"
        if by in MARKED:
            by_mark, after = [], None
            while page := await table.page(where, 2, order=order, after=after):
                by_mark += [listed.ice.ice_name for listed in page]
                after = page[-1].mark(order)
            assert by_mark == expected, f"the marks of {order} were expected to leave out no ICE"


MARKED = (SortKey.NAME, SortKey.LAST_SEEN, SortKey.VERSION, SortKey.PROVISIONED)
"""What the API sorts by."""


def sorted_by(listed, by):
    """The value of an ICE, None if it has none."""
    match by:
        case SortKey.TYPE:
            return listed.ice.ice_type
        case SortKey.USER:
            return listed.ice.provisionedto and fold_user(listed.ice.provisionedto)
        case SortKey.STATUS:
            return listed.ice.status
        case _:
            return listed.mark(Order(by)).value


async def test_an_ice_is_connected_as_long_as_it_has_a_session_of_its_generation(engine):
    table = IceListing(engine)

    async def nodes():
        """The nodes of the connected ICEs; the filter, the counts and the entries agree."""
        connected = await table.page(IceFilter(connected=True), 9)
        offline = await table.page(IceFilter(connected=False), 9)
        counts = await table.counts(IceFilter(), NOW)
        assert (counts.connected, counts.total) == (len(connected), len(connected) + len(offline))
        assert not any(listed.connection for listed in offline)
        return [listed.connection.node for listed in connected]

    ice = await add_registered(engine)
    await record(engine, [opened(ice, a_connection("s1", "node-a"))])
    assert await nodes() == ["node-a"]
    await record(engine, [opened(ice, a_connection("s2", "node-b"))])
    assert await nodes() == ["node-b"]
    await record(engine, closed=["s2"])
    assert await nodes() == ["node-a"], "the older session was expected to be shown again"
    await record(engine, [opened(ice, a_connection("s3", "node-b"))], closed=["s1"])
    await engine.write(lambda transaction: sessions.clear(transaction, "node-b"))
    assert await nodes() == []
    await record(engine, [opened(ice, a_connection("s4", "node-c"))])
    await change(engine, (ice, reregistered(ice)))
    assert await nodes() == [], "a session of an older generation was expected to be gone"
    await record(engine, [opened(ice, a_connection("s5", "node-c"))])
    assert await nodes() == [], "so was one that is written late"
    await record(engine, [opened(reregistered(ice), a_connection("s6", "node-c"))])
    await record(engine, closed=["s4", "s5"])
    assert await nodes() == ["node-c"]
    await engine.write(sessions.clear_all)
    assert await nodes() == []


async def test_standing_gives_generation_and_status_of_exact_names(laboratory):
    standing = await laboratory.standing(["Lab-2", "lab_1", "LAB-10", "nobody"])
    assert standing == {"Lab-2": (1, Status.REGISTERED), "lab_1": (2, Status.DEREGISTERED)}


# --- looked up for admissions --------------------------------------------------------------------


@pytest.fixture
def between(engine):
    return Between(engine)


async def test_a_look_up_never_joins_a_query_that_already_runs(engine, between):
    loader = IceLoader(between)
    ice = await add_registered(engine)
    gate = between.hold("look_up")
    early = asyncio.create_task(loader.find("lab-1"))
    await soon(gate.reached.wait(), "the first query")
    [logged] = await change(engine, (ice, deregistered(ice)))
    late = asyncio.create_task(loader.find("lab-1"))
    await asyncio.wait([late], timeout=0)  # it has asked by now
    gate.open.set()
    old, new = await soon(asyncio.gather(early, late), "an answer to both look-ups")
    assert old.ice == ice, "the query that ran was expected to answer with its own snapshot"
    assert new.ice == deregistered(ice), "who asks after a commit was expected to see it"
    assert (old.seq, new.seq) == (logged.seq - 1, logged.seq), "numbers of the same snapshots"
    assert new.at >= old.at


async def test_look_ups_that_wait_are_answered_together(engine, between):
    loader = IceLoader(between)
    all_ices = [an_ice(f"lab-{number}") for number in range(20)]
    for ice in all_ices:
        await add(engine, ice)
    gate = between.hold("look_up")
    first = asyncio.create_task(loader.find("lab-0"))
    await soon(gate.reached.wait(), "the first query")
    names = [*(ice.ice_name for ice in all_ices), "lab-3", "LAB-3", "nobody"]
    waiting = [asyncio.create_task(loader.find(name)) for name in names]
    impatient = asyncio.create_task(loader.find("lab-4"))
    await asyncio.wait([impatient], timeout=0)
    impatient.cancel()
    gate.open.set()
    await soon(first, "the first answer")
    readings = await soon(asyncio.gather(*waiting), "an answer to all that waited")
    assert [reading.ice for reading in readings] == [*all_ices, all_ices[3], None, None]
    assert between.calls["look_up"] == 2, "one query was expected for all that waited"


async def test_a_query_asks_for_so_many_at_the_most(engine, between):
    """What a storm asked for while a query ran is not worked on in one turn of the loop."""
    loader = IceLoader(between, max_batch=3)
    all_ices = [an_ice(f"lab-{number}") for number in range(7)]
    for ice in all_ices:
        await add(engine, ice)
    gate = between.hold("look_up")
    first = asyncio.create_task(loader.find("lab-0"))
    await soon(gate.reached.wait(), "the first query")
    order = []

    async def find(name):
        reading = await loader.find(name)
        order.append(name)
        return reading.ice

    waiting = [asyncio.create_task(find(ice.ice_name)) for ice in all_ices]
    await asyncio.wait(waiting, timeout=0)
    gate.open.set()
    await soon(first, "the first answer")
    assert await soon(asyncio.gather(*waiting), "an answer to all that waited") == all_ices
    assert between.calls["look_up"] == 4, "seven were expected in queries of three"
    assert order == [ice.ice_name for ice in all_ices], "who asked first was to be answered first"


async def test_an_ice_is_found_by_the_hash_of_its_token_in_the_same_query(engine, between):
    loader = IceLoader(between)
    ice = await add_registered(engine)
    [logged] = await change(engine, (ice, replace(ice, key_id=None)))
    named_so = await add_registered(
        engine, digest("lab-1")
    )  # the name is the hash of another's token
    gate = between.hold("look_up")
    first = asyncio.create_task(loader.find("lab-1"))
    await soon(gate.reached.wait(), "the first query")
    waiting = [
        asyncio.create_task(look_up)
        for look_up in (
            loader.find_by_token(digest("lab-1")),
            loader.find(digest("lab-1")),
            loader.find_by_token(digest("nobody")),
            loader.find_by_token(digest("lab-1")),
            loader.find("lab-1"),
        )
    ]
    gate.open.set()
    await soon(first, "the first answer")
    readings = await soon(asyncio.gather(*waiting), "an answer to all that waited")
    found = replace(ice, key_id=None)
    assert [reading.ice for reading in readings] == [found, named_so, None, found, found]
    assert {reading.seq for reading in readings} == {logged.seq + 2}, "they are of one snapshot"
    assert between.calls["look_up"] == 2


async def test_the_proof_that_comes_with_garbage_is_not_stored(engine):
    if not engine.shared:
        pytest.skip("a single gateway stores no proofs")
    loader = IceLoader(engine)
    await add_registered(engine)
    await add_registered(engine, "lab-2")
    together = (
        loader.find_by_token(digest("lab-1"), "proof-1"),
        loader.find_by_token(digest("nobody"), "proof-2"),
        loader.find("lab-2", "proof-3"),
    )
    answers = await soon(asyncio.gather(*together), "the answers")
    assert [(reading.ice is None, reading.replayed) for reading in answers] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert (await loader.find_by_token(digest("lab-1"), "proof-1")).replayed
    assert sorted(await engine.fetch("SELECT digest FROM ice_proofs")) == [
        ("proof-1",),
        ("proof-3",),
    ]


async def test_a_look_up_that_fails_fails_its_askers_only(engine, between):
    loader = IceLoader(between)
    await add(engine, an_ice())
    gate = between.hold("look_up", fails=True)
    failing = [asyncio.create_task(loader.find(name)) for name in ("lab-1", "lab-1", "lab-2")]
    await soon(gate.reached.wait(), "the first query")
    waiting = asyncio.create_task(loader.find("lab-1"))
    await asyncio.wait([waiting], timeout=0)
    gate.open.set()
    failures = await soon(asyncio.gather(*failing, return_exceptions=True), "three failures")
    assert [type(failure) for failure in failures] == [StoreUnavailable] * 3
    assert (await soon(waiting, "the next query's answer")).ice == an_ice()
    assert (await soon(loader.find("lab-1"), "an answer after all")).ice == an_ice()


async def test_times_and_nulls_come_back_as_they_went(engine):
    """To the microsecond, aware, and None where there is none."""
    await add(engine, replace(an_ice("build-1", None), expireson=None, provisionedon=minutes(0.01)))
    found = await entry(engine, "build-1")
    assert (found.provisionedon, found.expireson) == (minutes(0.01), None)
    assert found.provisionedto is None
    assert (await log(engine))[-1].event.actor == ROOT


async def test_a_filter_may_have_all_conditions_at_once(engine):
    await engine.write(
        lambda t: ices.insert_many(t, [(an_ice("lab-1"), an_event("provision"), {"os": "linux"})])
    )
    where = IceFilter(
        status=Status.PROVISIONED,
        words=("lab",) * MAX_WORDS,
        labels=(("os", "linux"),) * MAX_LABELS,
        now=NOW,
    )
    assert [listed.ice.ice_name for listed in await IceListing(engine).page(where, 9)] == ["lab-1"]
    assert (await IceListing(engine).counts(where, NOW)).total == 1


async def test_names_and_generations_are_read_alone(engine):
    for name in ("lab-2", "Lab-1", "ci-1"):
        await engine.write(lambda t, name=name: ices.insert(t, an_ice(name), an_event("provision")))
    found = IceFilter(words=("lab",))
    assert await IceListing(engine).generations(found, 9) == [("Lab-1", 1), ("lab-2", 1)]
    assert await IceListing(engine).generations(found, 1) == [("Lab-1", 1)]
