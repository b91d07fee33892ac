"""Wakes requests that wait for an operation. A wake-up carries no news: the waiter reads the row.

Tested in tests/gateway/admin/api/test_operations.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class OperationWaiters:
    """The waiters of this node, each with an `asyncio.Event` that is set when it should look again."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Event, tuple[str, bool]]] = {}
        self.closed = False
        """Whether the gateway is stopping, so that every waiter must end."""

    @contextlib.contextmanager
    def watch(
        self, ice_name: str, operation_id: str, *, end_only: bool = False
    ) -> Iterator[asyncio.Event]:
        """Wait for any change of an operation, or only for its end."""
        changed = asyncio.Event()
        waiting = self._waiting.setdefault(ice_name, {})
        waiting[changed] = operation_id, end_only
        try:
            yield changed
        finally:
            del waiting[changed]
            if not waiting:
                # Safe: there is no `await` between `setdefault` and the insertion above.
                del self._waiting[ice_name]

    def wake(
        self, ice_name: str, operation_id: str | None = None, *, finished: bool = True
    ) -> None:
        """Wake the waiters of one operation, or of all operations of an ICE.

        OperationWaiters with `end_only` wake only when the operation may have `finished`.
        """
        for changed, (waited_for, end_only) in self._waiting.get(ice_name, {}).items():
            if operation_id in (None, waited_for) and (finished or not end_only):
                changed.set()

    def wake_all(self) -> None:
        """Wake every waiter."""
        for ice_name in self._waiting:
            self.wake(ice_name)

    def close(self) -> None:
        """Make every waiter end."""
        self.closed = True
        self.wake_all()
