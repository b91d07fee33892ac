"""The last word on an operation is written with its end, wherever it is on its way by then."""

from __future__ import annotations

import asyncio

import pytest

from client import protocol
from gateway.progress import ProgressBook
from gateway.times import utc_now
from gateway.watches import Watches


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
    book = ProgressBook(engine, Watches(), utc_now)
    running = asyncio.create_task(book.run())
    book.note("lab-1", told("older"))
    await engine.asked.wait()
    if newer is not None:
        book.note("lab-1", told(newer))
    await book.write(transaction, "one")
    running.cancel()
    [rows] = transaction.written
    assert (newer or "older") in rows
