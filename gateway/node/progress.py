"""Writes the progress of operations in groups, keeping only the newest of each operation.

However often an ICE reports, the table gets at most one update of an operation per `INTERVAL`, and
waiting readers wake no more often.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from client import protocol
from gateway.core.times import Clock, to_text
from gateway.node.operation_waiters import OperationWaiters
from gateway.store import operations
from gateway.store.engine import Engine, StoreUnavailable, Transaction

INTERVAL: Final = 0.25
"""Seconds between two writes."""
MAX_MESSAGE: Final = 1000
"""Characters kept of a message."""
MAX_DATA: Final = 64_000
"""Bytes of `data`; larger data is left out."""


class ProgressWriter:
    """Keeps the newest progress of each operation until it is written."""

    def __init__(self, engine: Engine, waiters: OperationWaiters, clock: Clock) -> None:
        self._engine = engine
        self._waiters = waiters
        self._clock = clock
        self._latest: dict[str, protocol.Progress] = {}
        self._writing: dict[str, protocol.Progress] = {}
        """What `run` is writing; if the operation ends before that is done, `write` repeats it."""
        self._wake = asyncio.Event()

    def note(self, progress: protocol.Progress) -> None:
        """Keep the progress that an ICE reported of the operation that it works on."""
        self._latest[progress.id] = progress
        self._wake.set()

    def forget(self, operation_id: str) -> None:
        """Drop the progress of an operation that has ended."""
        self._latest.pop(operation_id, None)

    async def write(self, transaction: Transaction, operation_id: str) -> None:
        """Write the last progress of an operation in the transaction that ends it."""
        found = self._latest.get(operation_id) or self._writing.get(operation_id)
        if found is not None:
            await operations.set_progress(transaction, [self._row(found)])

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._writing, self._latest = self._latest, {}
            await self._record(self._writing)
            self._writing = {}
            await asyncio.sleep(INTERVAL)

    async def _record(self, latest: dict[str, protocol.Progress]) -> None:
        rows = [self._row(progress) for progress in latest.values()]
        try:
            await self._engine.write(lambda transaction: operations.set_progress(transaction, rows))
        except StoreUnavailable:
            return  # the next report replaces it
        for operation_id in latest:
            self._waiters.wake(operation_id, finished=False)

    def _row(self, progress: protocol.Progress) -> tuple[str, bytes]:
        fraction, message, data = progress.fraction, progress.message, progress.data
        document = {
            "fraction": None if fraction is None else min(1.0, max(0.0, fraction)),
            "message": None if message is None else message[:MAX_MESSAGE],
            "data": None if data is msgspec.UNSET or len(bytes(data)) > MAX_DATA else data,
            "at": to_text(self._clock()),
        }
        return progress.id, msgspec.json.encode(document)
