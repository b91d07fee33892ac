"""Bounds what a server can answer one request with, before the answer is parsed.

aiohttp skips informational responses (RFC 9110 section 15.2) without an end, and without a pause between those that have
arrived: a server that sends nothing else would hold the event loop until the request's timeout, and beyond.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final, cast

from aiohttp import ClientError, TCPConnector
from aiohttp.client_proto import ResponseHandler

MAX_RESPONSES: Final = 8
"""The informational responses and the final one; usual are at most 100, 103 and the final one."""
MAX_RECEIVED: Final = 1024 * 1024
"""Bytes with all headers, chunk extensions and trailers."""
_PIECE: Final = 4096
"""Bytes that are parsed before the responses are counted: some 160 of the shortest."""


class TooMuch(ClientError):
    """The server sent more than an answer to one request."""


class _LimitedHandler(ResponseHandler):
    """Ends the connection of a server that sends too much; within a body that looks as if the server had done so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._responses = 0
        self._received = 0

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, as far as it is within the limits."""
        for begin in range(0, len(data), _PIECE):
            piece = data[begin : begin + _PIECE]
            self._received += len(piece)
            if self._received > MAX_RECEIVED or self._responses > MAX_RESPONSES:
                if self.transport is not None:
                    self.transport.abort()
                self.set_exception(TooMuch("it sent more than an answer"))
                return
            super().data_received(piece)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Count a response."""
        self._responses += 1
        super().feed_data(data, size)


def limited(connector: TCPConnector) -> TCPConnector:
    """The connector, whose connections serve one request each, with these limits."""
    made = functools.partial(_LimitedHandler, loop=asyncio.get_running_loop())
    # aiohttp has no public way to this; the test of this module fails if it changes.
    connector._factory = cast("functools.partial[ResponseHandler]", made)  # noqa: SLF001
    return connector
