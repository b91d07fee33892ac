"""A loop and a transport that are simulated: time passes only when nothing else is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Handle:
    """A call that was scheduled."""

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._callback = callback
        self._arguments = arguments
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __call__(self) -> None:
        if not self.cancelled:
            self._callback(*self._arguments)


class Loop:
    """What protocols use of an event loop."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> Handle:
        handle = Handle(callback, arguments)
        self._ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: Any) -> Handle:
        handle = Handle(callback, arguments)
        heapq.heappush(self._timers, (self._now + delay, next(self._numbers), handle))
        return handle

    def settle(self, until: Callable[[], bool] = lambda: True) -> None:
        """Make all calls that are due; let time pass until `until()` or nothing is left."""
        while True:
            while self._ready:
                self._ready.popleft()()
            if until() or not self._timers:
                return
            self._now, _, handle = heapq.heappop(self._timers)
            handle()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be the loop that `asyncio.get_running_loop` returns."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            yield
        finally:
            asyncio._set_running_loop(before)


class Transport:
    """A connection whose peer reads at once."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = False
        self.paused = False
        self.ended = False

    def write(self, data: bytes) -> None:
        if not self.closing and not self.ended:
            self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
