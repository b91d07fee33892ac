"""Hands a connection over from aiohttp to a `WebSocket` after its handshake.

`hand_over` writes the 101 itself, so that nothing can happen between the last check of an ICE and its
admission. Then it gives the transport to the WebSocket and releases request, parser and handler.

Like `connection` it uses aiohttp's internals; aiohttp's minor version is pinned for them.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from aiohttp import HttpVersion, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy
from websockets.frames import Opcode

from client.protocol import SUBPROTOCOL
from gateway.web.frames import framed
from gateway.web.websocket import WebSocket

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Upgrade:
    """An unanswered request to upgrade its connection."""

    __slots__ = ("headers", "protocol", "version")

    def __init__(self, message: RawRequestMessage, protocol: RequestHandler) -> None:
        self.headers: CIMultiDictProxy[str] = message.headers
        self.version: HttpVersion = message.version
        self.protocol = protocol

    @classmethod
    def of(cls, request: web.Request) -> Upgrade:
        """The upgrade in a request that aiohttp has routed."""
        return cls(request._message, request.protocol)  # noqa: SLF001 - there is no public one

    @property
    def remote(self) -> str | None:
        """The peer's address."""
        transport = self.protocol.transport
        name = None if transport is None else transport.get_extra_info("peername")
        return name[0] if name else None

    @property
    def local(self) -> tuple[str, int] | None:
        """The socket's own address and port."""
        transport = self.protocol.transport
        name = None if transport is None else transport.get_extra_info("sockname")
        return (name[0], name[1]) if name else None

    @property
    def secure(self) -> bool:
        """Whether the gateway itself terminates TLS."""
        transport = self.protocol.transport
        return transport is not None and transport.get_extra_info("sslcontext") is not None

    @property
    def is_gone(self) -> bool:
        """Whether the client has disconnected."""
        transport = self.protocol.transport
        return transport is None or transport.is_closing()

    @property
    def handle(self) -> int:
        """The file handle; the connection must not be gone."""
        transport = self.protocol.transport
        assert transport is not None  # noqa: S101 - the caller has checked is_gone
        return int(transport.get_extra_info("socket").fileno())


class HandedOver(web.StreamResponse):
    """A response that writes nothing; a handler returns it to aiohttp after `hand_over`."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


class _RestParser:
    """A parser for aiohttp that keeps the data it had buffered after the handshake."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Do nothing: the connection stays open."""


def hand_over(
    upgrade: Upgrade,
    websocket: WebSocket,
    first: bytes | None,
    subprotocol: str | None = SUBPROTOCOL,
) -> None:
    """Answer the handshake with the 101 and give its connection to `websocket`, without an await.

    `first` is an optional first message, sent in one write with the 101. The caller must have checked the
    handshake, and must not await between its check of `is_gone` and this call.
    """
    transport, protocol = upgrade.protocol.transport, upgrade.protocol
    assert transport is not None  # noqa: S101 - the caller has checked is_gone
    key = upgrade.headers["Sec-WebSocket-Key"].strip().encode()
    agreed = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol is not None else ""
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{agreed}\r\n"
    ).encode()
    transport.write(head if first is None else head + framed(Opcode.TEXT, first))
    rest = _RestParser()
    protocol.set_parser(rest)  # type: ignore[arg-type] # feeds it the buffered data
    transport.set_protocol(websocket)
    protocol.transport = None  # otherwise connection_lost would close the transport
    protocol.connection_lost(None)
    websocket.connection_made(transport)
    if rest.data:
        websocket.begin_with(rest.data)
