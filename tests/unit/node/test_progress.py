"""The last word on an operation is written with its end, wherever it is on its way by then."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from client import protocol
from gateway.core.times import utc_now
from gateway.node.operation_waiters import OperationWaiters
from gateway.node.progress import MAX_DATA, ProgressWriter


class Transaction:
    """Notes what is written."""

    def __init__(self):
        self.written = []

    async def run(self, _, rows):
        self.written.append(rows)
        return 1


class Writer:
    """An engine that is busy: what is to be written waits."""

    def __init__(self):
        self.asked = asyncio.Event()

    async def write(self, _):
        self.asked.set()
        await asyncio.Event().wait()


def told(message):
    return protocol.Progress(id="one", fraction=0.5, message=message)


@pytest.mark.parametrize("newer", [None, "newer"])
async def test_an_end_takes_along_what_waits_for_the_writer(newer):
    engine, transaction = Writer(), Transaction()
    book = ProgressWriter(engine, OperationWaiters(), utc_now)
    running = asyncio.create_task(book.run())
    book.note(told("older"))
    await engine.asked.wait()
    if newer is not None:
        book.note(told(newer))
    await book.write(transaction, "one")
    running.cancel()
    [rows] = transaction.written
    assert (newer or "older") in rows


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (msgspec.UNSET, None),
        (msgspec.Raw(b'{"a": 1e300}'), {"a": 1e300}),
        (msgspec.Raw(b'"' + b"x" * (MAX_DATA - 2) + b'"'), "x" * (MAX_DATA - 2)),
        (msgspec.Raw(b'"' + b"x" * (MAX_DATA - 1) + b'"'), None),
    ],
)
async def test_data_is_kept_as_it_was_sent_within_its_bound(data, kept):
    book, transaction = ProgressWriter(Writer(), OperationWaiters(), utc_now), Transaction()
    book.note(protocol.Progress(id="one", data=data))
    await book.write(transaction, "one")
    [[[_, written]]] = map(json.loads, transaction.written)
    assert json.loads(written)["data"] == kept
