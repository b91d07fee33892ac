"""Live news for readers of the event stream: audit events with an id, presence and refusals without.

A stream holds no queue of audit events: it is woken and reads the log from where it stands, so that
a slow reader costs no memory and misses nothing. All else is news only; an overflow drops the oldest.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Final

from gateway.node.presence import News

_MAX_NEWS: Final = 10_000
MAX_READERS: Final = 32
"""Streams of one user: a tab each, and then some."""


class EventStream:
    """One reader, of a user."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.wake = asyncio.Event()
        self.news: deque[News] = deque(maxlen=_MAX_NEWS)


class EventStreams:
    """All readers of this node."""

    def __init__(self) -> None:
        self._open: set[EventStream] = set()
        self._seats: Counter[str] = Counter()
        self.closed = False
        """Whether the gateway is stopping: streams end."""

    def add(self, user: str) -> EventStream | None:
        """A new reader; None where the user has as many as they may."""
        if not self.sit_down(user):
            return None
        stream = EventStream(user)
        self._open.add(stream)
        return stream

    def remove(self, stream: EventStream) -> None:
        """A reader has gone."""
        self._open.discard(stream)
        self.stand_up(stream.user)

    def sit_down(self, user: str) -> bool:
        """Count one more stream of this user, of whatever; False where they have as many as they may."""
        if self._seats[user] >= MAX_READERS:
            return False
        self._seats[user] += 1
        return True

    def stand_up(self, user: str) -> None:
        """Count one less."""
        self._seats[user] -= 1
        if not self._seats[user]:
            del self._seats[user]

    def publish(self) -> None:
        """An event has been applied."""
        for stream in self._open:
            stream.wake.set()

    def publish_news(self, news: News) -> None:
        """An ICE has come, said hello, gone, or been refused."""
        for stream in self._open:
            stream.news.append(news)
            stream.wake.set()

    def close(self) -> None:
        """Let every reader end."""
        self.closed = True
        for stream in self._open:
            stream.wake.set()
