"""The output of one operation, on its way to the gateway: small texts joined, large ones split.

The gateway ends a session that sends too many frames, so a handler that writes much waits instead.
Source: docs/protocol.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from client import protocol
from client.exceptions import InvalidType
from client.text import encodable

Send = Callable[[bytes], Awaitable[bool]]
"""Sends one message, or drops it while not connected; returns whether it was sent."""

_DELAY: Final = 0.1
"""Seconds for which small texts are joined."""
PAUSE: Final = 0.05
"""Seconds after each full message, in which other tasks get their turn.

So a flood is 2 MB a second at most. The gateway reads as much, and the finish does not wait behind full buffers.
"""
_SLICE: Final = 16_384
"""Characters that are encoded at once."""


class OperationLog:
    """The output of one operation.

    It holds about two messages of output at most; `write` waits while the gateway does not read. What is written
    without a connection is lost, and the next message says how much that was.

    Args:
        operation: its id.
        send: see `Send`.
        pause: seconds after each full message.
    """

    def __init__(self, operation: str, send: Send, pause: float = PAUSE) -> None:
        self._operation = operation
        self._send = send
        self._pause = pause
        self._pending = bytearray()
        self._lost = 0
        """Bytes that could not be sent since the last message."""
        self._turn = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    async def write(self, text: str) -> None:
        """Add output; lone surrogates become U+FFFD. Ignored once closed. Raises `InvalidType`."""
        if not isinstance(text, str):
            raise InvalidType("the output must be a string")
        async with self._turn:
            for start in range(0, len(text), _SLICE):
                if self._closed:
                    await asyncio.sleep(self._pause)  # a handler may go on writing without end
                    return
                self._pending += encodable(text[start : start + _SLICE]).encode()
                if self._flusher is None:
                    self._flusher = asyncio.create_task(self._flush_later())
                while len(self._pending) >= protocol.MAX_LOG_BYTES:
                    await self._send_piece()
                    await asyncio.sleep(self._pause)

    async def close(self) -> None:
        """Send what is left, and ignore what is written from now on."""
        self._closed = True
        if self._flusher is not None:
            self._flusher.cancel()
        while self._pending:
            await self._send_piece()

    async def _flush_later(self) -> None:
        try:
            await asyncio.sleep(_DELAY)
            while self._pending:
                await self._send_piece()
        finally:
            self._flusher = None

    async def _send_piece(self) -> None:
        lost, self._lost = self._lost, 0
        notice = f"\n[{lost:,} bytes of output are missing: the ICE was not connected]\n"
        head = notice.encode() if lost else b""
        piece = _cut(self._pending, protocol.MAX_LOG_BYTES - len(head))
        log = protocol.Log(id=self._operation, text=(head + piece).decode())
        if not await self._send(protocol.notification("operation.log", log)):
            self._lost += lost + len(piece)


def _cut(pending: bytearray, limit: int) -> bytes:
    """Remove and return at most `limit` bytes of UTF-8, up to the end of a character."""
    end = limit
    while end < len(pending) and pending[end] & 0xC0 == 0x80:  # noqa: PLR2004 - within a character
        end -= 1
    piece = bytes(pending[:end])
    del pending[:end]
    return piece
