"""Ends operations whose deadline has passed and deletes finished ones after their retention.

Tested in tests/gateway/node/test_dispatcher.py and tests/contract/test_operation_life.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from gateway.core.operation import Operation, OperationError, reason
from gateway.core.times import Clock
from gateway.store import operations
from gateway.store.engine import Engine, StoreUnavailable, Transaction
from gateway.store.operations import Operations

INTERVAL: Final = 0.5
"""Seconds between two searches for overdue operations."""
FORGET_INTERVAL: Final = 600.0
"""Seconds between two deletions of old operations."""
EMPTIED_KEEP: Final = 86_400.0
"""Seconds for which a finished operation is kept after its params and result were trimmed."""
DEADLINE_ERROR: Final = reason(OperationError.DEADLINE)
_BATCH: Final = 500


class OperationExpiry:
    """Expires and deletes operations; several nodes may do so at once.

    Args:
        keep: seconds for which finished operations are kept; 0 keeps them forever.
        ended: is called with each operation that this node ended.
    """

    def __init__(
        self, engine: Engine, clock: Clock, keep: float, ended: Callable[[Operation], None]
    ) -> None:
        self._engine = engine
        self._rows = Operations(engine.fetch)
        self._clock = clock
        self._keep = keep
        self._ended = ended

    async def run(self) -> None:
        """Expire and delete periodically until cancelled."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time()
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self.end_overdue()
                if self._keep and loop.time() >= forget_at:
                    await self.forget()
                    forget_at = loop.time() + FORGET_INTERVAL
            await asyncio.sleep(INTERVAL)

    async def end_overdue(self) -> None:
        """End the operations whose deadline has passed."""
        now = self._clock()
        deadline = await self._rows.next_deadline()
        if deadline is None or deadline > now:
            return

        async def unit(transaction: Transaction) -> list[Operation]:
            ended = []
            for old in await operations.overdue(transaction, now, _BATCH):
                new = old.moved(old.overdue_move(), now, error=DEADLINE_ERROR)
                if new is not None and await operations.replace(transaction, old, new):
                    ended.append(new)
            return ended

        for operation in await self._engine.write(unit):
            self._ended(operation)

    async def forget(self) -> None:
        """Delete old finished operations, in batches with pauses that let other writers in."""
        now = self._clock()
        await self._delete(now - timedelta(seconds=self._keep))
        await self._delete(now - timedelta(seconds=EMPTIED_KEEP), emptied=True)

    async def _delete(self, before: datetime, *, emptied: bool = False) -> None:
        unit = functools.partial(operations.forget, before=before, limit=_BATCH, emptied=emptied)
        while await self._engine.write(unit) == _BATCH:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(INTERVAL)
