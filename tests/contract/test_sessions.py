"""`ice_sessions` and `ice_connections`: who is connected, and what became of connections."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.store import sessions
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from gateway.store.sessions import KEPT, events_of
from tests.contract.domain import (
    NOW,
    RULE_BROKEN,
    a_connection,
    a_connection_event,
    add_registered,
    change,
    deregistered,
    minutes,
    opened,
    record,
    refusing,
    reregistered,
)


@pytest.fixture
async def ice(engine):
    return await add_registered(engine)


@pytest.fixture
def shown(engine):
    """The connection that everybody is shown, None where there is none."""

    async def connection(name="lab-1"):
        found = (await IceListing(engine).find(name)).connection
        listed = [
            item.ice.ice_name
            for item in await IceListing(engine).page(IceFilter(connected=True), 9)
        ]
        assert (name in listed) is (found is not None), "page and find were expected to agree"
        return found

    return connection


async def test_a_session_is_shown_from_opening_to_closing(engine, ice, shown):
    connection = a_connection("s1")
    await record(engine, opened=[opened(ice, connection)])
    assert await shown() == connection
    hello = replace(connection, version="1.2", platform="Plan 9", hostname="Grüße")
    await record(engine, greeted=[hello, a_connection("unknown")])
    assert await shown() == hello
    await record(engine, closed=["s1", "unknown"])
    assert await shown() is None


async def test_the_latest_session_is_shown(engine, ice, shown):
    first, second = a_connection("z"), a_connection("a", "node-b")
    await record(engine, opened=[opened(ice, first), opened(ice, second)])
    assert await shown() == second, "the session with the highest number was expected"
    await record(engine, closed=["z"])
    assert await shown() == second, "the end of an older session was expected to change nothing"
    await record(engine, opened=[opened(ice, a_connection("m"))], closed=["a"])
    assert (await shown()).session == "m"


async def test_a_session_of_an_older_generation_is_not_shown(engine, ice, shown):
    await record(engine, opened=[opened(ice, a_connection("s1"))])
    gone = deregistered(ice)
    await change(engine, (ice, gone))
    assert await shown() is None, "the session of a deregistered ICE was expected to be hidden"
    back = reregistered(gone)
    await change(engine, (gone, back))
    await record(engine, opened=[opened(back, a_connection("s2"))])
    assert (await shown()).session == "s2"


async def test_clearing_forgets_the_sessions_of_one_node(engine, ice, shown):
    other = await add_registered(engine, "lab-2")
    await record(
        engine,
        opened=[
            opened(ice, a_connection("s1", "node-a")),
            opened(other, a_connection("s2", "node-b")),
        ],
    )
    await engine.write(lambda transaction: sessions.clear(transaction, "node-a"))
    assert await shown() is None
    assert (await shown("lab-2")).session == "s2"


async def test_a_batch_with_a_session_of_nobody_is_not_written(engine, ice, shown):
    strange = replace(opened(ice, a_connection("s2")), ice_name="lab-2")
    with refusing(RULE_BROKEN, "a session of an ICE without an entry"):
        await record(engine, opened=[opened(ice, a_connection("s1")), strange])
    assert await shown() is None


# --- what became of connections ------------------------------------------------------------------


@pytest.fixture
def happened(engine, ice):
    async def of(name="lab-1"):
        return await events_of(engine.fetch, name)

    return of


async def test_connection_events_are_bounded_to_the_last(engine, happened):
    await add_registered(engine, "lab-2")
    other = a_connection_event("admitted", ice_name="lab-2")
    given = [
        a_connection_event("closed", str(number), minutes(number)) for number in range(KEPT + 30)
    ]
    await record(engine, connection_events=[other, *given[:KEPT]])
    await record(engine, connection_events=given[KEPT:])
    assert await happened() == given[: -KEPT - 1 : -1], f"the last {KEPT}, newest first, expected"
    assert await happened("lab-2") == [other], "one ICE was expected not to push out another's"
    [(rows,)] = await engine.fetch("SELECT count(*) FROM ice_connections")
    assert rows == KEPT + 1


async def test_what_is_new_is_kept_even_if_the_clock_was_set_back(engine, happened):
    given = [
        a_connection_event("closed", str(number), minutes(number), retry_after=number / 8)
        for number in range(KEPT)
    ]
    await record(engine, connection_events=given)
    late = a_connection_event("admitted", at=minutes(-60))
    await record(engine, connection_events=[late])
    assert await happened() == [late, *given[:0:-1]], "the oldest was expected to go"


async def test_repeated_refusals_are_counted_together(engine, happened):
    refusal = a_connection_event("refused", "key-mismatch", NOW)
    elsewhere = replace(refusal, address="192.0.2.8")
    otherwise = replace(refusal, code="token-expired")
    again = replace(refusal, first=minutes(1), at=minutes(5), count=3)
    await record(engine, connection_events=[refusal, elsewhere, otherwise])
    await record(engine, connection_events=[a_connection_event("admitted", at=minutes(4)), again])
    newest, *_ = found = await happened()
    assert newest == replace(refusal, at=minutes(5), count=4), "one row from first to last expected"
    assert {elsewhere, otherwise} < set(found), "another address or code was expected apart"
    assert len(found) == 4


async def test_a_refusal_that_goes_on_is_not_pushed_out(engine, happened):
    refusal = a_connection_event("refused", "key-mismatch", NOW)
    await record(engine, connection_events=[refusal])
    given = [a_connection_event("admitted", at=minutes(number)) for number in range(1, KEPT + 1)]
    await record(engine, connection_events=given[:-1])
    again = replace(refusal, first=minutes(KEPT + 1), at=minutes(KEPT + 1))
    await record(engine, connection_events=[given[-1], again])
    newest = (await happened())[0]
    assert newest == replace(refusal, at=again.at, count=2), "the newest event was expected"
    assert len(await happened()) == KEPT


async def test_last_seen_is_when_a_session_last_began_or_ended(engine, happened):
    async def last_seen():
        return (await IceListing(engine).find("lab-1")).lastseen

    assert await last_seen() is None
    await record(engine, connection_events=[a_connection_event("admitted", at=minutes(1))])
    await record(engine, connection_events=[a_connection_event("closed", "1000", minutes(2))])
    await record(
        engine, connection_events=[a_connection_event("refused", "key-mismatch", minutes(3))]
    )
    assert await last_seen() == minutes(2), "a refusal was expected not to count as seen"
