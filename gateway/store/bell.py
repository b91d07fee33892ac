"""How gateways on one SQLite file wake each other: a byte in a pipe for each says that there is news.

It only shortens the wait: SQLite tells of other processes' commits to whoever looks, and all look.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence


class Bell:
    """One gateway's: it hears at `mine`, and rings at the `others`; all are file descriptors of pipes."""

    def __init__(self, mine: int, others: Sequence[int]) -> None:
        self._mine = mine
        self._others = others
        for descriptor in (mine, *others):
            os.set_blocking(descriptor, False)

    def ring(self) -> None:
        """Wake the others."""
        for descriptor in self._others:
            # Full, it wakes whoever reads on; and where nobody reads, there is nobody to wake.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(descriptor, b"\0")

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        """Call `heard` when another has rung; returns what ends that."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                if not os.read(self._mine, 4096):
                    stop()  # there is nobody left to ring
            heard()

        def stop() -> None:
            loop.remove_reader(self._mine)

        loop.add_reader(self._mine, read)
        return stop
