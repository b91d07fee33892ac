"""`ice_events`: numbered without gaps, chained, filtered, and never changed afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.core.audit_event import GENESIS, Actor, Via
from gateway.store import events
from gateway.store.events import EventFilter, Events
from tests.contract.domain import RULE_BROKEN, an_event, an_ice, append, log, refusing, soon, told

COLUMNS = "seq, at, actor, via, address, action, ice_name, generation, detail, previous"


async def assert_chained(engine, count):
    """Whoever has the rows and a JSON encoder can check the log."""
    rows = await engine.fetch(f"SELECT {COLUMNS} FROM ice_events ORDER BY seq")  # noqa: S608
    assert [row[0] for row in rows] == list(range(1, count + 1)), "numbers without gaps expected"
    previous = GENESIS
    for row, entry in zip(rows, await log(engine), strict=True):
        assert row[-1] == entry.previous == previous, f"event {row[0]} breaks the chain"
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        assert entry.digest() == previous, f"event {row[0]} was expected to hash to its columns"


async def test_events_are_numbered_and_chained_whoever_fails_beside_them(engine):
    async def failing(transaction):
        events.append(transaction, [an_event("undone")])
        raise ValueError

    appends = [append(engine, an_event(number=number)) for number in range(200)]
    appends[100:100] = [engine.write(failing) for _ in range(3)]
    done = await soon(asyncio.gather(*appends, return_exceptions=True), "the end of 200 appends")
    assert [type(end) for end in done] == [list] * 100 + [ValueError] * 3 + [list] * 100
    await assert_chained(engine, 1 + 200)  # alice was added first
    ends = sorted(told([end[0] for end in done if isinstance(end, list)]), key=lambda one: one[0])
    assert ends == told((await log(engine))[1:]), "every append was expected to tell its number"


async def test_two_processes_continue_one_chain(engine, open_store):
    async with open_store() as elsewhere:
        for _ in range(3):
            both = [append(each, an_event()) for each in (engine, elsewhere) for _ in range(10)]
            await soon(asyncio.gather(*both), "the end of all appends")
    await assert_chained(engine, 1 + 60)


async def test_an_event_is_read_as_it_was_appended(engine):
    given = [
        replace(
            an_event("change", an_ice(), z=1, a={"ü": [None, True, 0.5, '\n"\\\x00\u2028😀']}),
            actor=Actor("Grüße", Via.COMMAND, "host.example"),
        ),
        an_event("second"),
    ]
    logged = await append(engine, *given)
    assert told(logged) == told((await log(engine))[1:]) == [(2, given[0]), (3, given[1])]
    await assert_chained(engine, 3)
    assert await append(engine) == [], "appending nothing was expected to do nothing"


async def test_the_log_is_filtered_and_paged(engine):
    ice, other = an_ice("Lab-1"), an_ice("lab-2")
    bob = Actor("bob", Via.API, "")
    given = [an_event("a", ice), an_event("b", ice), an_event("a", other), an_event("a")]
    await append(engine, *given, *(replace(event, actor=bob) for event in given))
    log_of = Events(engine.fetch)
    assert await log_of.last() == 9
    for where, expected in (
        (None, [2, 3, 4, 5, 6, 7, 8, 9]),
        (EventFilter(ice_name="LAB-1"), [2, 3, 6, 7]),
        (EventFilter(actor="bob"), [6, 7, 8, 9]),
        (EventFilter(action="a"), [2, 4, 5, 6, 8, 9]),
        (EventFilter("lab-1", "bob", "a"), [6]),
        (EventFilter(actor="nobody"), []),
    ):
        seen: list[int] = []
        while page := await log_of.after(seen[-1] if seen else 1, 3, where):
            assert len(page) <= 3, "a page was expected to keep to its limit"
            seen += [entry.seq for entry in page]
        assert seen == expected, f"the events of {where} were expected, oldest first"


@pytest.mark.parametrize("few", [0, 5_000], ids=["found by number", "found by time"])
async def test_events_of_a_time_are_listed_by_number_even_after_a_clock_step(engine, few):
    start = an_event().at
    minutes = [1, 2, 9, 3, 4, 5]  # the third by a clock that was fast
    await append(engine, *(replace(an_event(), at=start + timedelta(minutes=m)) for m in minutes))
    log_of = Events(engine.fetch, few)
    where = EventFilter(since=start + timedelta(minutes=2), until=start + timedelta(minutes=5))
    assert [entry.seq for entry in await log_of.after(0, 10, where)] == [3, 5, 6]
    assert [entry.seq for entry in await log_of.before(100, 10, where)] == [6, 5, 3]
    assert [entry.seq for entry in await log_of.before(6, 1, where)] == [5]
    assert await log_of.before(3, 10, where) == []


async def test_the_log_of_a_new_store_is_empty(open_store):
    async with open_store(serving=True) as engine:
        assert await Events(engine.follow).last() == 0
        assert await Events(engine.follow).after(0, 10) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ice_events SET actor = 'nobody' WHERE seq = 2",
        "UPDATE ice_events SET seq = 9 WHERE seq = 3",
        "DELETE FROM ice_events",
        "DELETE FROM ice_events WHERE seq = 3",
        *(
            f"INSERT INTO ice_events ({COLUMNS}) SELECT {seq}, at, actor, via, address, action,"  # noqa: S608
            " ice_name, generation, detail, previous FROM ice_events WHERE seq = 3"
            for seq in (-1, 0, 2, 5)
        ),
    ],
)
async def test_the_log_is_append_only(engine, statement):
    await append(engine, an_event("first"), an_event("second"))
    before = await log(engine)
    with refusing(RULE_BROKEN, statement):
        await engine.write(lambda transaction: transaction.run(statement))
    assert await log(engine) == before
    await append(engine, an_event("next"))
    await assert_chained(engine, 4)
