"""Many reference ICEs in one process, and how many of them are connected."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from client.agent import IceClient
from client.events import Event
from client.operations import Operation, Report

AT_ONCE = 50
"""ICEs that start at the same time: making their keys is this process's work."""


class Fleet:
    """ICEs that come to `url`, each with a state folder below `folder`. Open it with `async with`.

    Whoever is sent `remote-execute` takes the `seconds` of its parameters for it.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._stack = contextlib.AsyncExitStack()
        self._clients: dict[str, IceClient] = {}
        self._changed = asyncio.Event()
        self.events: list[tuple[float, str, Event]] = []
        """What each ICE told, and when by `time.monotonic`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.stop()
        await self._stack.aclose()  # in turn, but all end at once

    async def start(self, tokens: dict[str, str]) -> None:
        """Start an ICE with each of these tokens, by name; returns when all are connected."""
        names = list(tokens)
        for first in range(0, len(names), AT_ONCE):
            started = names[first : first + AT_ONCE]
            for name in started:
                client = IceClient(
                    self._url,
                    state_dir=self._folder / name,
                    token=tokens[name],
                    handlers={"remote-execute": _work},
                    observe=self._observer(name),
                )
                self._clients[name] = await self._stack.enter_async_context(client)
            await asyncio.gather(*(self._clients[name].connected() for name in started))

    def _observer(self, name: str) -> Callable[[Event], None]:
        def observe(event: Event) -> None:
            self.events.append((time.monotonic(), name, event))
            self._changed.set()

        return observe

    @property
    def connected(self) -> list[str]:
        """Who is connected now."""
        return [name for name, client in self._clients.items() if client.welcome is not None]

    def forget(self, name: str) -> None:
        """Count on one no more, which has stopped by itself."""
        del self._clients[name]

    async def event(self, holds: Callable[[float, str, Event], bool], seconds: float) -> float:
        """Wait for an event, which may have been told already; when it was."""
        seen = 0
        async with asyncio.timeout(seconds):
            while True:
                for at, name, event in self.events[seen:]:
                    if holds(at, name, event):
                        return at
                seen = len(self.events)
                self._changed.clear()
                await self._changed.wait()

    async def back(self, seconds: float) -> None:
        """Wait until all are connected."""
        async with asyncio.timeout(seconds):
            while len(self.connected) < len(self._clients):
                self._changed.clear()
                await self._changed.wait()

    def closed(self, since: float) -> set[str]:
        """Whose connection was closed since then."""
        return {name for at, name, event in self.events if at >= since and event.kind == "closed"}

    def absences(self, since: float) -> list[float]:
        """For how many seconds each was away, each time that one was closed since and came back, sorted."""
        left: dict[str, float] = {}
        found = []
        for at, name, event in self.events:
            if at < since:
                continue
            if event.kind == "closed":
                left.setdefault(name, at)
            elif event.kind == "admitted" and name in left:
                found.append(at - left.pop(name))
        return sorted(found)


async def _work(operation: Operation, report: Report) -> Any:
    await report(0.5, "half way")
    await asyncio.sleep(operation.params["seconds"])
    return {"did": operation.id}
