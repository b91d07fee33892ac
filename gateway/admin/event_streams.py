"""Server-sent events: the subscribers of this node and how they are woken.

A subscriber holds no queue of audit events: it is woken and reads the log from its own position, so a
slow reader costs no memory and misses nothing. Presence and refusals are queued; an overflow drops the
oldest.

Tested in tests/gateway/admin/api/test_events.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from gateway.admin.quota import Quota
from gateway.node.presence import News
from gateway.store.engine import StoreUnavailable
from gateway.web.responses import DATA_HEADERS

_MAX_NEWS: Final = 10_000
_LONGEST_POLL: Final = 120.0
"""Seconds between two polls of a page at most."""
_ENDS: Final = (StoreUnavailable, ConnectionError, TimeoutError)
"""Errors that end a stream; the client reconnects."""
_SEND_TIMEOUT: Final = 30.0
"""Seconds after which a stream whose client does not read is closed."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What a user's streams may cost, and how long they are trusted."""

    max_readers: int = 32
    """Streams of one user at a time; each browser with a visible tab of the page needs one."""
    authenticate_every: float = 10.0
    """Seconds after which a stream's credentials are checked again; they may have expired."""
    look_every: float = 5.0
    """Seconds after which a stream looks at its operation although nothing woke it: why it waits may have changed."""
    poll_every: float = 5.0
    """Seconds between two polls of a page that has no stream."""
    polls_per_second: float = 50.0
    """Polls of all such pages in a second: when there are more pages, each polls less often."""


DEFAULT_LIMITS: Final = StreamLimits()


class EventStream:
    """One subscriber, with its wake-up and its queue."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.news: deque[News] = deque(maxlen=_MAX_NEWS)


class EventStreams:
    """All subscribers of this node."""

    def __init__(self, limits: StreamLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._open: set[EventStream] = set()
        self._readers = Quota("too-many-streams", limits.max_readers)
        self._next_poll = 0.0
        self.closed = False
        """Whether the gateway is stopping; then streams end."""

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return len(self._open)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[EventStream]:
        """A subscriber that is woken by each event and receives presence and refusals."""
        stream = EventStream()
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    async def serve(
        self,
        request: web.Request,
        user: str,
        send: Callable[[EventSourceResponse], Awaitable[None]],
    ) -> web.StreamResponse:
        """Answer with server-sent events (WHATWG HTML standard, section 9.2) that `send` writes.

        If the store or the connection fails, the stream ends and the client reconnects.
        Raises `RequestRefused` if the user has `max_readers` streams.
        """
        response = EventSourceResponse(send_timeout=_SEND_TIMEOUT)
        response.headers.update(DATA_HEADERS)
        if request.transport is None:
            return web.Response()  # the client has disconnected
        with self._readers.use(user), contextlib.suppress(*_ENDS):
            await response.prepare(request)
            async with response:
                await send(response)
        return response

    def next_poll(self, now: float) -> float:
        """Seconds after which a page without a stream polls again; `now` is the loop's time.

        Each poll gets a moment of its own, so that the polls of all pages do not exceed `polls_per_second`. A pause
        is at most `_LONGEST_POLL`: otherwise one client that polls all the time would make the others wait for ever.
        """
        limits = self.limits
        spaced = self._next_poll + 1 / limits.polls_per_second
        self._next_poll = min(max(now + limits.poll_every, spaced), now + _LONGEST_POLL)
        return self._next_poll - now

    def publish(self) -> None:
        """Wake the subscribers: an event has been applied."""
        for stream in self._open:
            stream.wake.set()

    def publish_news(self, news: News) -> None:
        """Queue news: an ICE has connected, sent its hello, disconnected, or been refused."""
        for stream in self._open:
            stream.news.append(news)
            stream.wake.set()

    def close(self) -> None:
        """End every stream."""
        self.closed = True
        for stream in self._open:
            stream.wake.set()


async def send_document(
    response: EventSourceResponse,
    document: msgspec.Struct,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
) -> None:
    """Send one event with a JSON document as its data."""
    await response.send(msgspec.json.encode(document).decode(), event=event, id=id)
