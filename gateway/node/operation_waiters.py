"""Wakes requests that wait for an operation. A wake-up carries no news: the waiter reads the row.

Tested in tests/gateway/admin/api/test_operations.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from gateway.core.operation import Operation


class OperationWaiters:
    """The waiters of this node, each with an `asyncio.Event` that is set when it should look again."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Event, tuple[str | None, bool]]] = {}
        self.closed = False
        """Whether the gateway is stopping, so that every waiter must end."""

    @contextlib.contextmanager
    def watch(self, operation: Operation, *, end_only: bool = False) -> Iterator[asyncio.Event]:
        """Wait for any change of an operation, or only for its end."""
        changed = asyncio.Event()
        waiting = self._waiting.setdefault(operation.id, {})
        waiting[changed] = operation.ice_name, end_only
        try:
            yield changed
        finally:
            del waiting[changed]
            if not waiting:
                # Safe: there is no `await` between `setdefault` and the insertion above.
                del self._waiting[operation.id]

    def wake(self, operation_id: str, *, finished: bool = True) -> None:
        """Wake the waiters of one operation; those with `end_only` only when it may have `finished`."""
        for changed, (_, end_only) in self._waiting.get(operation_id, {}).items():
            if finished or not end_only:
                changed.set()

    def wake_ice(self, ice_name: str) -> None:
        """Wake the waiters of every operation that this ICE may have: one of a pool may have come to it since."""
        for waiting in self._waiting.values():
            for changed, (requested_of, _) in waiting.items():
                if requested_of in (None, ice_name):
                    changed.set()

    def wake_all(self) -> None:
        """Wake every waiter."""
        for waiting in self._waiting.values():
            for changed in waiting:
                changed.set()

    def close(self) -> None:
        """Make every waiter end."""
        self.closed = True
        self.wake_all()
