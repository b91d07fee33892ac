"""Live news for readers of the event stream: audit events with an id, presence and refusals without.

A stream holds no queue of audit events: it is woken and reads the log from where it stands, so that
a slow reader costs no memory and misses nothing. All else is news only; an overflow drops the oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from gateway.core.problems import problem
from gateway.node.presence import News
from gateway.store.engine import StoreUnavailable
from gateway.web.responses import DATA_HEADERS, RequestRefused

_MAX_NEWS: Final = 10_000
MAX_READERS: Final = 32
"""Streams of one user: a tab each, and then some."""
_SEND_TIMEOUT: Final = 30.0
"""Seconds after which a reader that does not read is let go."""


class EventStream:
    """One reader."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.news: deque[News] = deque(maxlen=_MAX_NEWS)


class EventStreams:
    """All readers of this node."""

    def __init__(self) -> None:
        self._open: set[EventStream] = set()
        self._readers: Counter[str] = Counter()
        self.closed = False
        """Whether the gateway is stopping: streams end."""

    @contextlib.contextmanager
    def news(self) -> Iterator[EventStream]:
        """A reader that is woken by each event and given all else."""
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
        """Answer with server-sent events (the WHATWG HTML standard, section 9.2), which `send` sends.

        The store or the connection may fail meanwhile: the stream ends, and the reader comes back.
        Raises `RequestRefused` where the user has `MAX_READERS` streams.
        """
        response = EventSourceResponse(send_timeout=_SEND_TIMEOUT)
        response.headers.update(DATA_HEADERS)
        if request.transport is None:
            return web.Response()  # the reader has gone meanwhile: nobody sees this
        if self._readers[user] >= MAX_READERS:
            raise RequestRefused(problem("too-many-streams"))
        self._readers[user] += 1
        try:
            await response.prepare(request)
            async with response:
                await send(response)
        except (StoreUnavailable, ConnectionError, TimeoutError):
            pass
        finally:
            self._readers[user] -= 1
            if not self._readers[user]:
                del self._readers[user]
        return response

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


async def send_document(
    response: EventSourceResponse,
    document: msgspec.Struct,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
) -> None:
    """Send one event, whose data is JSON."""
    await response.send(msgspec.json.encode(document).decode(), event=event, id=id)
