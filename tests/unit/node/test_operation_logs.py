"""What waits to be written of the logs of operations is bounded, in order, and written once."""

from __future__ import annotations

import asyncio
import json

import pytest

from client.protocol import MAX_LOG_BYTES
from gateway.node.operation_logs import WRITE_BYTES, OperationLogWriter
from gateway.node.operation_waiters import OperationWaiters
from gateway.store.engine import StoreUnavailable

LOG_KEPT = 1_000_000


class Store:
    """An engine that notes what is appended to each log; it may be unavailable, or busy."""

    def __init__(self):
        self.logs = {}
        self.writes = []
        self.available = True
        self.free = asyncio.Event()
        self.free.set()
        self.asked = asyncio.Event()

    async def write(self, unit):
        self.asked.set()
        await self.free.wait()
        if not self.available:
            raise StoreUnavailable
        self.writes.append(0)
        return await unit(self)

    # As the transaction of `append`, which holds the operations and inserts pieces.
    async def hold(self, _, names):
        return [(name,) for name in sorted(json.loads(names))]

    async def fetch(self, *_):
        return []

    async def run(self, sql, rows):
        if sql.startswith("INSERT"):
            for name, _, size, text in json.loads(rows):
                self.logs[name] = self.logs.get(name, "") + text
                self.writes[-1] += size


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def ignored():
    return []


@pytest.fixture
def writer(store, ignored):
    return OperationLogWriter(store, OperationWaiters(), LOG_KEPT, ignored.append)


async def ended(writer, store, name="one"):
    """End an operation as the dispatcher does; the whole log."""
    writer.close(name)
    text = await writer.take(name)
    await store.write(lambda transaction: writer.write(transaction, name, text))
    return store.logs.get(name, "")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("x" * MAX_LOG_BYTES, "x" * MAX_LOG_BYTES),
        ("x" * (MAX_LOG_BYTES + 1), None),
        ("é" * (MAX_LOG_BYTES // 2), "é" * (MAX_LOG_BYTES // 2)),
        ("é" * (MAX_LOG_BYTES // 2) + "x", None),
        ("a\0b", "a\ufffdb"),
        ("\0" * MAX_LOG_BYTES, "\ufffd" * MAX_LOG_BYTES),
    ],
)
async def test_a_text_is_kept_up_to_its_bound(writer, store, ignored, text, kept):
    writer.note("one", text)
    assert await ended(writer, store) == (kept or "")
    assert ignored == (["too-long"] if kept is None else [])


async def test_an_end_follows_what_is_being_written(writer, store):
    store.free.clear()
    running = asyncio.create_task(writer.run())
    writer.note("one", "1")
    await store.asked.wait()
    writer.note("one", "2")
    ending = asyncio.create_task(ended(writer, store))
    await asyncio.sleep(0)
    writer.note("one", "after the finish")
    store.free.set()
    assert await ending == "12"
    await writer.flush()
    assert store.logs == {"one": "12"}, "it was written twice"
    running.cancel()


async def test_what_could_not_be_written_waits(writer, store):
    store.available = False
    writer.note("one", "1")
    await writer.flush()
    writer.note("one", "2")
    assert await writer.take("one") == "", "its end has not come"
    writer.close("one")
    taken = await writer.take("one")
    writer.note("one", "after the finish")
    writer.reopen("one")
    writer.note("one", "3")
    writer.give_back("one", taken)
    store.available = True
    await writer.flush()
    assert store.logs == {"one": "123"}


async def test_only_the_newest_waits_of_each_operation(writer, store, ignored):
    sent = [f"{number:04}" * 4_000 for number in range(200)]
    for text in sent:
        writer.note("one", text)
    whole = await ended(writer, store)
    assert "".join(sent).endswith(whole)
    assert LOG_KEPT <= len(whole) < LOG_KEPT + 16_000
    assert ignored == [], "what would be deleted after it was written is not missed"


async def test_all_that_waits_is_bounded(store, ignored):
    writer = OperationLogWriter(store, OperationWaiters(), LOG_KEPT, ignored.append, 100_000)
    store.available = False
    for number in range(30):
        for name in ("one", "two", "three"):
            writer.note(name, f"{name}{number:02}" * 1000)
        await writer.flush()
    assert writer._size <= 100_000
    assert writer._size == sum(each.size for each in writer._waiting.values())
    assert set(ignored) == {"too-many"}
    store.available = True
    await writer.flush()
    assert all(log.endswith(f"{name}29") for name, log in store.logs.items())
    assert writer._size == 0


async def test_short_texts_are_held_together(writer):
    for _ in range(10_000):
        writer.note("one", "a line\n")
    assert len(writer._waiting["one"].texts) < 20


async def test_a_write_is_bounded_and_all_have_their_turn(writer, store):
    names = [f"floods-{number:02}" for number in range(40)]
    for name in names:
        for _ in range(8):
            writer.note(name, "x" * MAX_LOG_BYTES)
    writer.note("quiet", "a line\n")
    turns = []
    while writer._waiting:
        await writer._write_some()
        turns.append(set(store.logs))
    assert max(store.writes) <= WRITE_BYTES + MAX_LOG_BYTES
    assert "quiet" in turns[2], "it waited for more than one turn of the others"
    assert all(len(store.logs[name]) == 8 * MAX_LOG_BYTES for name in names)


async def test_a_flood_of_one_is_written_at_once(writer, store):
    for _ in range(8):
        writer.note("one", "x" * MAX_LOG_BYTES)
    await writer.flush()
    assert len(store.writes) == 1


async def test_what_has_ended_is_not_written(writer, store):
    writer.note("one", "a")
    writer.forget("one")
    await writer.flush()
    await writer._write_some()
    assert (store.writes, writer._size) == ([], 0)
