"""Writes what ICEs log of their operations, in groups and bounded, whatever they send.

Tested in tests/unit/node/test_operation_logs.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from client.protocol import MAX_LOG_BYTES
from gateway.node.operation_waiters import OperationWaiters
from gateway.store import operation_logs
from gateway.store.engine import Engine, StoreUnavailable, Transaction

INTERVAL: Final = 0.25
"""Seconds between two writes."""
WRITE_BYTES: Final = 1024 * 1024
"""Bytes of one write, so that no other transaction waits long for it."""
WRITE_SHARE: Final = MAX_LOG_BYTES
"""Bytes of one operation in one write, while those of many wait."""
MAX_WAITING: Final = 64 * 1024 * 1024
"""Bytes of all operations that wait to be written, such as while the store is unavailable."""

_SMALL: Final = 4096
"""Bytes up to which short texts are joined: each one that is held alone takes a hundred bytes more."""


class _Waiting:
    """What of one operation waits to be written, oldest first."""

    __slots__ = ("size", "texts")

    def __init__(self) -> None:
        self.texts: deque[tuple[str, int]] = deque()
        self.size = 0

    def add(self, text: str, size: int) -> None:
        self.size += size
        if self.texts and self.texts[-1][1] + size <= _SMALL:
            last, before = self.texts.pop()
            text, size = last + text, before + size
        self.texts.append((text, size))

    def drop_oldest(self) -> int:
        size = self.texts.popleft()[1]
        self.size -= size
        return size


class OperationLogWriter:
    """Keeps what was logged until it is written, and of each operation no more than would be kept then.

    Args:
        log_kept: bytes that are kept of each log.
        ignored: is called with the reason for each text that is not kept.
        max_waiting: bytes of all operations that may wait.
    """

    def __init__(
        self,
        engine: Engine,
        waiters: OperationWaiters,
        log_kept: int,
        ignored: Callable[[str], None],
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._engine = engine
        self._waiters = waiters
        self._log_kept = log_kept
        self._ignored = ignored
        self._max_waiting = max_waiting
        self._waiting: dict[str, _Waiting] = {}
        self._size = 0
        self._writing: dict[str, str] = {}
        self._closed: set[str] = set()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held during a write."""

    def note(self, operation_id: str, text: str) -> None:
        """Keep a text that an ICE logged of the operation that it works on."""
        if not text or operation_id in self._closed:
            return
        if _size(text) > MAX_LOG_BYTES:
            self._ignored("too-long")
            return
        self._add(operation_id, text.replace("\0", "\ufffd"))
        self._wake.set()

    def _add(self, operation_id: str, text: str) -> None:
        size = _size(text)
        waiting = self._waiting.setdefault(operation_id, _Waiting())
        waiting.add(text, size)
        self._size += size
        # What would be deleted after it was written need not be written.
        while waiting.size - waiting.texts[0][1] >= self._log_kept:
            self._size -= waiting.drop_oldest()
        while self._size > self._max_waiting and waiting.texts:
            self._size -= waiting.drop_oldest()
            self._ignored("too-many")

    def forget(self, operation_id: str) -> None:
        """Drop what waits of an operation that has ended."""
        waiting = self._waiting.pop(operation_id, None)
        if waiting is not None:
            self._size -= waiting.size

    def close(self, operation_id: str) -> None:
        """Ignore what is logged from now on: the ICE has sent the finish."""
        self._closed.add(operation_id)

    def reopen(self, operation_id: str) -> None:
        """The finish has been written, or could not be."""
        self._closed.discard(operation_id)

    async def take(self, operation_id: str) -> str:
        """All that waits of an operation that is closed, to be written after what is being written now."""
        if operation_id not in self._closed:
            return ""
        while operation_id in self._writing:
            async with self._turn:
                pass
        waiting = self._waiting.get(operation_id, _Waiting())
        self.forget(operation_id)
        return "".join(text for text, _ in waiting.texts)

    def give_back(self, operation_id: str, text: str) -> None:
        """Have written what `take` returned, before all that came since."""
        newer = self._waiting.get(operation_id, _Waiting())
        self.forget(operation_id)
        for older in (text, *(each for each, _ in newer.texts)):
            if older:
                self._add(operation_id, older)
        self._wake.set()

    async def write(self, transaction: Transaction, operation_id: str, text: str) -> None:
        """Write what `take` returned in the transaction that ends the operation."""
        if text:
            await operation_logs.append(transaction, {operation_id: text}, self._log_kept)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._write_some()
            if self._waiting:
                self._wake.set()
            await asyncio.sleep(INTERVAL)

    async def flush(self) -> None:
        """Write all that waits, unless the store is unavailable."""
        while self._waiting and await self._write_some():
            pass

    async def _write_some(self) -> bool:
        async with self._turn:
            texts = self._writing = self._take_some()
            if not texts:
                return True  # they have ended
            try:
                await self._engine.write(
                    lambda transaction: operation_logs.append(transaction, texts, self._log_kept)
                )
            except StoreUnavailable:
                for operation_id, text in texts.items():
                    self.give_back(operation_id, text)
                return False
            finally:
                self._writing = {}
            for operation_id in texts:
                self._waiters.wake(operation_id, finished=False)
            return True

    def _take_some(self) -> dict[str, str]:
        """What the next write writes: the oldest texts of each operation, or of those whose turn it is."""
        found = {}
        left, share = WRITE_BYTES, max(WRITE_SHARE, WRITE_BYTES // (len(self._waiting) or 1))
        for operation_id, waiting in list(self._waiting.items()):
            if left <= 0:
                break
            taken, size = [], 0
            while waiting.texts and (not size or size + waiting.texts[0][1] <= share):
                taken.append(waiting.texts[0][0])
                size += waiting.drop_oldest()
            self._size -= size
            left -= size
            found[operation_id] = "".join(taken)
            del self._waiting[operation_id]
            if waiting.texts:
                self._waiting[operation_id] = waiting  # behind the others
        return found


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
