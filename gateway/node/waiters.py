"""Wake-ups for whoever waits for an operation: they carry nothing that counts, the row does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Waiters:
    """The waiters of this node, each with an `asyncio.Event` that is set when it should look again."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Event, tuple[str, bool]]] = {}
        self.closed = False
        """Whether the gateway is stopping: nobody waits any more."""

    @contextlib.contextmanager
    def on(
        self, ice_name: str, operation_id: str, *, end_only: bool = False
    ) -> Iterator[asyncio.Event]:
        """Wait for news of an operation of this ICE, or for its end alone."""
        changed = asyncio.Event()
        waiting = self._waiting.setdefault(ice_name, {})
        waiting[changed] = operation_id, end_only
        try:
            yield changed
        finally:
            del waiting[changed]
            if not waiting:
                # Each enters and leaves without an `await`: nobody else has a hold of the empty one.
                del self._waiting[ice_name]

    def wake(
        self, ice_name: str, operation_id: str | None = None, *, finished: bool = True
    ) -> None:
        """There is news of this operation (it has `finished`, say), or may be of each of this ICE."""
        for changed, (waited_for, end_only) in self._waiting.get(ice_name, {}).items():
            if operation_id in (None, waited_for) and (finished or not end_only):
                changed.set()

    def wake_all(self) -> None:
        """There may be news of any operation."""
        for ice_name in self._waiting:
            self.wake(ice_name)

    def close(self) -> None:
        """Let every waiter end."""
        self.closed = True
        self.wake_all()
