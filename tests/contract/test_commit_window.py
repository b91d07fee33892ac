"""On PostgreSQL, no session is passed over by a node that looks at what others have written, whenever they commit."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.node.commit_window import CommitWindow
from gateway.store import nodes, sessions
from gateway.store.postgres.engine import open_postgres
from gateway.store.sessions import Opened
from tests.contract.domain import a_connection, add_registered, add_user, record, soon


class Looker:
    """A node that looks for ICEs that have left it."""

    def __init__(self, engine) -> None:
        self.nodes = nodes.Nodes(engine.fetch)
        self.window = CommitWindow()

    async def look(self):
        snapshot = await self.nodes.snapshot()
        found = await self.nodes.superseded_since("node-a", self.window.after)
        self.window.looked(snapshot)
        return [ice_name for ice_name, _ in found]


@pytest.fixture
async def engines(database_url):
    async with contextlib.AsyncExitStack() as stack:
        opening = (open_postgres(database_url, tell=lambda _: None) for _ in range(3))
        yield [await stack.enter_async_context(one) for one in opening]


def coming(ice, node, reading):
    return Opened(
        ice.ice_name, ice.generation, a_connection(f"{ice.ice_name} {node}", node), reading
    )


class Held:
    """A transaction that begins at once and waits for the test before each further step."""

    def __init__(self, engine, session) -> None:
        self.session = session
        self.begun, self.number = asyncio.Event(), asyncio.Event()
        self.numbered, self.commit = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(engine.write(self))

    async def __call__(self, transaction):
        await transaction.fetch("SELECT pg_current_xact_id()::text")
        self.begun.set()
        await self.number.wait()
        await sessions.record(transaction, [self.session], (), (), ())
        self.numbered.set()
        await self.commit.wait()


async def test_a_session_is_found_though_a_later_one_of_an_older_transaction_was_seen(engines):
    """Its transaction began last, numbered first, and commits last."""
    engine, *others = engines
    await add_user(engine, "alice")
    moved, other = [await add_registered(engine, name) for name in ("lab-1", "lab-2")]
    await record(engine, opened=[coming(moved, "node-a", 1.0)])
    looker = Looker(engine)
    await looker.look()
    older = Held(others[0], coming(other, "node-c", 2.0))
    await soon(older.begun.wait(), "an older transaction")
    newer = Held(others[1], coming(moved, "node-b", 3.0))
    await soon(newer.begun.wait(), "a newer transaction")
    newer.number.set()
    await soon(newer.numbered.wait(), "the first number")
    older.number.set()
    older.commit.set()
    await soon(older.task, "the older transaction's end")
    for _ in range(3):
        assert await looker.look() == []
    newer.commit.set()
    await soon(newer.task, "the newer transaction's end")
    assert await looker.look() == ["lab-1"]


async def test_what_was_looked_at_is_not_read_again(engines):
    engine = engines[0]
    await add_user(engine, "alice")
    ice = await add_registered(engine)
    await record(engine, opened=[coming(ice, "node-a", 1.0)])
    looker = Looker(engine)
    for _ in range(2):
        await looker.look()
    [(last,)] = await engine.fetch("SELECT max(number) FROM ice_sessions")
    assert looker.window.after == last
