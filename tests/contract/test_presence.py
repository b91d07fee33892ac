"""Presence: written in groups, kept while the store is away, and then written as it is by then."""

from __future__ import annotations

import asyncio

import pytest

from client.protocol import Hello
from gateway.node.presence import ConnectionChange, Pace, Presence
from gateway.node.session import Session
from gateway.store import sessions
from gateway.store.engine import OutcomeUnknown
from gateway.store.ice_listing import IceListing
from gateway.store.sessions import ConnectionEvent, events_of
from tests.contract.domain import (
    NOW,
    Between,
    a_connection,
    add_registered,
    minutes,
    opened,
    record,
    soon,
)


class Node:
    """A node with one ICE, whose presence can lose its store."""

    def __init__(self, engine, ice, **pace) -> None:
        self.engine = engine
        self.ice = ice
        self.between = Between(engine)
        self.now = NOW
        self.presence = Presence(self.between, "node-a", lambda: self.now, pace=Pace(**pace))
        self.news: list[ConnectionChange] = []
        self.refusals: list[ConnectionEvent] = []
        self.told = asyncio.Event()
        self.silence = self.presence.subscribe(self._hear)

    def _hear(self, news) -> None:
        (self.news if isinstance(news, ConnectionChange) else self.refusals).append(news)
        self.told.set()

    def session(self, session_id="s1") -> Session:
        return Session(
            self.ice, session_id=session_id, seq=0, address="192.0.2.7", since=NOW, observer=None
        )

    def opens(self, session_id="s1") -> Session:
        session = self.session(session_id)
        self.presence.opened(session)
        return session

    def greets(self, session) -> None:
        session.hello = Hello(version="1.2", platform="Plan 9", hostname="desk")
        self.presence.greeted(session)

    def closes(self, session, *, superseded=False) -> None:
        self.presence.closed(session, 1000, superseded=superseded)

    async def fail_to_write(self, meanwhile=lambda: None, *, during: bool = False) -> None:
        """Flush without a store; `meanwhile` happens during the attempt or right after it."""
        gate = self.between.hold("write", fails=True)
        attempt = asyncio.create_task(self.presence.flush())
        await soon(gate.reached.wait(), "an attempt to write")
        if during:
            meanwhile()
        gate.open.set()
        await soon(attempt, "the end of the attempt")
        if not during:
            meanwhile()

    async def connection(self):
        return (await IceListing(self.engine).find("lab-1")).connection

    async def open_sessions(self) -> list[str]:
        rows = await self.engine.fetch("SELECT session FROM ice_sessions ORDER BY number")
        return [session for (session,) in rows]

    async def connection_events(self):
        found = await events_of(self.engine.fetch, "lab-1")
        return [(item.kind, item.code, item.count) for item in reversed(found)]


HELLO = {"version": "1.2", "platform": "Plan 9", "hostname": "desk"}


@pytest.fixture
async def node(engine):
    return Node(engine, await add_registered(engine))


async def test_a_session_is_written_and_then_told(node):
    session = node.opens()
    assert node.news == [], "nobody was expected to hear of what is not written yet"
    await node.presence.flush()
    assert await node.connection() == a_connection("s1")
    node.greets(session)
    await node.presence.flush()
    assert await node.connection() == a_connection("s1", **HELLO)
    node.closes(session)
    await node.presence.flush()
    assert await node.connection() is None
    assert await node.connection_events() == [("admitted", None, 1), ("closed", "1000", 1)]
    assert [change.connection for change in node.news] == [
        a_connection("s1"),
        a_connection("s1", **HELLO),
        None,
    ]
    node.silence()
    node.opens("s2")
    await node.presence.flush()
    assert len(node.news) == 3, "who has stopped listening was expected to hear no more"


async def test_the_hello_of_a_session_that_ends_before_it_is_written_is_last_known(node):
    session = node.opens()
    await node.fail_to_write(lambda: node.greets(session))
    node.closes(session)
    await node.presence.flush()
    last = (await IceListing(node.engine).find("lab-1")).last
    assert (last.version, last.hostname) == ("1.2", "desk")
    session = node.opens("s2")
    await node.presence.flush()
    assert (await IceListing(node.engine).find("lab-1")).last.version is None
    node.greets(session)
    node.closes(session)
    await node.presence.flush()
    assert (await IceListing(node.engine).find("lab-1")).last.version == "1.2"
    assert await node.connection() is None


async def test_a_session_that_replaces_another_within_a_batch_is_last_known(node):
    older = node.opens("s1")
    await node.presence.flush()
    node.greets(older)
    node.opens("s2")
    node.closes(older, superseded=True)
    await node.presence.flush()
    assert (await IceListing(node.engine).find("lab-1")).last.version is None


async def test_what_is_over_within_a_batch_is_not_shown(node):
    older = node.opens("s1")
    node.greets(older)
    node.closes(older, superseded=True)
    node.greets(node.opens("s2"))
    await node.presence.flush()
    assert await node.open_sessions() == ["s2"]
    assert await node.connection() == a_connection("s2", **HELLO)
    assert len(await node.connection_events()) == 3
    assert None not in [change.connection for change in node.news], "superseded is not gone"


async def test_starting_forgets_what_an_earlier_life_left(node):
    connections = [a_connection("old", "node-a"), a_connection("other", "node-b")]
    await record(node.engine, opened=[opened(node.ice, each) for each in connections])
    await node.presence.start()
    assert await node.open_sessions() == ["other"]


async def test_nothing_new_writes_nothing(node):
    await node.presence.flush()
    assert node.between.calls["write"] == 0


async def test_refusals_within_a_batch_are_counted_together(node):
    for minute in range(5):
        node.now = minutes(minute)
        node.presence.refused("lab-1", "key-mismatch", "192.0.2.7")
    await node.presence.flush()
    [found] = await events_of(node.engine.fetch, "lab-1")
    assert (found.count, found.first, found.at) == (5, NOW, minutes(4))


async def test_refusals_are_news_counted_with_those_before(node):
    """Where several nodes serve, each reads them from the table in place of its own."""
    for minute in range(3):
        node.now = minutes(minute)
        node.presence.refused("lab-1", "key-mismatch", "192.0.2.7")
        await node.presence.flush()
        [kept] = await events_of(node.engine.fetch, "lab-1")
        assert (kept.count, kept.first, kept.at) == (minute + 1, NOW, node.now)
        read = await sessions.news(node.engine.fetch, 0, 10)
        assert read[1:] == ({}, [kept])
        assert node.refusals == ([] if node.engine.shared else [kept])
        node.refusals.clear()


# --- last seen -----------------------------------------------------------------------------------


async def last_seen(node):
    return (await IceListing(node.engine).find("lab-1")).lastseen


async def test_a_session_is_confirmed_from_time_to_time_and_stored_at_its_end(engine):
    node = Node(engine, await add_registered(engine), confirm_every=0, pause=0, retry=0)
    session = node.opens()
    await node.presence.flush()
    node.now = minutes(1)
    gate = node.between.hold("write", fails=True)
    running = asyncio.create_task(node.presence.run())
    await soon(gate.reached.wait(), "an attempt to confirm")
    second = node.between.hold("write")
    gate.open.set()
    await soon(second.reached.wait(), "another attempt after one that failed")
    assert await last_seen(node) == minutes(1)
    second.open.set()
    running.cancel()
    await asyncio.wait([running])
    node.now = minutes(2)
    node.closes(session)
    await node.presence.flush()
    assert await last_seen(node) == minutes(2)


async def test_a_session_that_ended_before_is_not_shown_as_confirmed_later(node):
    """Nor does its end store an earlier time than was shown."""
    session = node.opens()
    await node.presence.flush()
    node.now = minutes(1)
    node.closes(session)
    node.now = minutes(2)
    await node.presence.flush(confirm=True)
    assert await last_seen(node) == minutes(1)
    assert await node.connection() is None


@pytest.mark.parametrize("back", [0.5, -60])
async def test_a_clock_that_is_set_back_takes_nothing_back_that_was_shown(node, back):
    session = node.opens()
    node.now = minutes(1)
    await node.presence.flush(confirm=True)
    assert await last_seen(node) == minutes(1)
    node.now = minutes(back)
    await node.presence.flush(confirm=True)
    assert await last_seen(node) == minutes(1)
    node.closes(session)
    await node.presence.flush()
    assert await last_seen(node) == minutes(1)


async def test_a_session_that_ends_while_the_others_are_confirmed_is_seen_no_earlier(node):
    session = node.opens()
    await node.presence.flush()
    node.now = minutes(1)
    gate = node.between.hold("write")
    confirming = asyncio.create_task(node.presence.flush(confirm=True))
    await soon(gate.reached.wait(), "the confirmation")
    node.now = minutes(0.5)
    node.closes(session)
    gate.open.set()
    await soon(confirming, "the end of it")
    assert await last_seen(node) == minutes(1)
    await node.presence.flush()
    assert await last_seen(node) == minutes(1)


# --- while the store is away ---------------------------------------------------------------------


async def test_run_writes_by_itself_once_the_store_is_back(engine):
    node = Node(engine, await add_registered(engine), retry=0)
    gate = node.between.hold("write", fails=True)
    running = asyncio.create_task(node.presence.run())
    node.opens()
    await soon(gate.reached.wait(), "an attempt to write")
    gate.open.set()
    await soon(node.told.wait(), "news once the store was back")
    assert await node.open_sessions() == ["s1"]
    assert node.between.calls["write"] == 2
    running.cancel()
    await asyncio.wait([running])


DURING = pytest.mark.parametrize("during", [True, False], ids=["during", "after"])


@DURING
async def test_what_could_not_be_written_is_written_later(node, during):
    session = node.opens()
    node.presence.refused("lab-1", "key-mismatch", "192.0.2.7")

    def meanwhile():
        node.now = minutes(1)
        node.greets(session)
        for _ in range(2):
            node.presence.refused("lab-1", "key-mismatch", "192.0.2.7")
        node.presence.refused("lab-1", "token-expired", "192.0.2.7")

    await node.fail_to_write(meanwhile, during=during)
    assert (await node.open_sessions(), node.news) == ([], []), "nothing written, nothing told"
    await node.fail_to_write()
    await node.presence.flush()
    assert await node.connection() == a_connection("s1", **HELLO)
    found = {item.code: item for item in await events_of(node.engine.fetch, "lab-1")}
    refused = found["key-mismatch"]
    assert (refused.count, refused.first, refused.at) == (3, NOW, minutes(1))
    assert found["token-expired"].count == 1
    assert [change.connection for change in node.news] == [a_connection("s1", **HELLO)]
    writes = node.between.calls["write"]
    await node.presence.flush()
    assert node.between.calls["write"] == writes, "what was written was expected not to stay"


async def test_what_may_have_been_written_is_written_again(node):
    """A commit of which nobody could tell whether it was done was done after all."""
    session = node.opens()
    between, write = node.between, node.engine.write

    async def unsure(unit):
        await write(unit)
        raise OutcomeUnknown("the disk did not say")

    between.write = unsure
    assert not await node.presence.flush()
    del between.write
    node.greets(session)
    assert await node.presence.flush()
    assert await node.open_sessions() == ["s1"]
    assert await node.connection() == a_connection("s1", **HELLO)


@DURING
async def test_opened_and_closed_while_away_leaves_nothing_open(node, during):
    session = node.opens()
    node.greets(session)
    await node.fail_to_write(lambda: node.closes(session), during=during)
    newer = node.opens("s2")
    await node.presence.flush()
    assert await node.open_sessions() == ["s2"]
    node.closes(newer)
    await node.presence.flush()
    assert await node.open_sessions() == []
    kinds = [kind for kind, _, _ in await node.connection_events()]
    assert kinds == ["admitted", "closed"] * 2, "what happened while away was expected to be kept"


@DURING
async def test_a_known_session_that_ends_while_away_is_closed(node, during):
    session = node.opens()
    await node.presence.flush()
    node.greets(session)
    await node.fail_to_write(lambda: node.closes(session), during=during)
    await node.presence.flush()
    assert await node.open_sessions() == []
    assert node.news[-1].connection is None

    second = node.opens("s2")
    await node.presence.flush()
    node.closes(second)
    await node.fail_to_write(lambda: node.opens("s3"), during=during)
    await node.presence.flush()
    assert await node.open_sessions() == ["s3"], "an end that waited was expected to be written"


async def test_a_session_that_ends_while_it_is_written_ends(node):
    session = node.opens()
    gate = node.between.hold("write")
    writing = asyncio.create_task(node.presence.flush())
    await soon(gate.reached.wait(), "the write")
    node.closes(session)
    gate.open.set()
    await soon(writing, "the end of the write")
    await node.presence.flush()
    assert await node.open_sessions() == []
    assert [change.connection for change in node.news] == [a_connection("s1"), None]


@DURING
async def test_what_waits_is_bounded(engine, during):
    node = Node(engine, await add_registered(engine), max_events=10)

    def meanwhile():
        for number in range(8):
            node.closes(node.opens())
            node.presence.refused("lab-1", "key-mismatch", f"192.0.2.{node.now.minute}{number}")

    meanwhile()
    for minute in (31, 32):
        node.now = NOW.replace(minute=minute)
        await node.fail_to_write(meanwhile, during=during)
    await node.fail_to_write()
    await node.presence.flush()
    kinds = [kind for kind, _, _ in await node.connection_events()]
    assert kinds.count("refused") == 10, "refusals were expected to be bounded while away"
    assert len(kinds) == 20, "the newest event were expected to be kept"
    assert len(node.news) == 1, "of each ICE the latest was expected to be news"
    assert (await events_of(node.engine.fetch, "lab-1"))[0].at == node.now
