"""The hand-over: how a connection leaves aiohttp after its handshake and becomes a `WebSocket`'s.

After the handshake aiohttp's part is over. `hand_over` writes the 101 itself, so that nothing can
happen between the last look at an ICE's entry and its admission, gives the transport to the wire, and
lets request, parser and handler go.

This file and `listener` alone know how aiohttp does it; `aiohttp` is pinned to its minor for them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any, Final

from aiohttp import HttpVersion, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy
from websockets.frames import Opcode

from client.protocol import SUBPROTOCOL
from gateway.web.websocket import WebSocket, framed

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Upgrade:
    """A request to upgrade its connection, which is not answered yet."""

    __slots__ = ("headers", "protocol", "version")

    def __init__(self, message: RawRequestMessage, protocol: RequestHandler) -> None:
        self.headers: CIMultiDictProxy[str] = message.headers
        self.version: HttpVersion = message.version
        self.protocol = protocol

    @classmethod
    def of(cls, request: web.Request) -> Upgrade:
        """The same of a request that aiohttp has made."""
        return cls(request._message, request.protocol)  # noqa: SLF001 - it has no other name

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection; None where it is lost."""
        return self.protocol.transport

    @property
    def remote(self) -> str | None:
        """The peer's address."""
        name = self._told("peername")
        return name[0] if name else None

    @property
    def local(self) -> tuple[str, int] | None:
        """The socket's own address and port."""
        name = self._told("sockname")
        return (name[0], name[1]) if name else None

    @property
    def secure(self) -> bool:
        """Whether TLS ends here."""
        return self._told("sslcontext") is not None

    @property
    def is_gone(self) -> bool:
        """Whether the client has left already."""
        transport = self.protocol.transport
        return transport is None or transport.is_closing()

    @property
    def handle(self) -> int:
        """The number of the file handle of a connection that is not gone."""
        return int(self._told("socket").fileno())

    def _told(self, name: str) -> Any:
        transport = self.protocol.transport
        return None if transport is None else transport.get_extra_info(name)


class HandedOver(web.StreamResponse):
    """What a handler of aiohttp's returns after `hand_over`: there is nothing left to write."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


class _Rest:
    """Takes what aiohttp has read behind the handshake, by the interface of its parsers."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing ends: the connection goes on."""


def hand_over(
    upgrade: Upgrade, wire: WebSocket, first: bytes | None, subprotocol: str | None = SUBPROTOCOL
) -> None:
    """Answer the handshake with the 101 and give its connection to `wire`, in one step without await.

    `first` is the first message, if there is to be one; it travels with the 101.

    The caller has checked the handshake, and `is_gone` without an await since.
    """
    transport, protocol = upgrade.protocol.transport, upgrade.protocol
    assert transport is not None  # noqa: S101 - the caller has asked is_gone
    key = upgrade.headers["Sec-WebSocket-Key"].strip().encode()
    agreed = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol is not None else ""
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{agreed}\r\n"
    ).encode()
    transport.write(head if first is None else head + framed(Opcode.TEXT, first))
    rest = _Rest()
    protocol.set_parser(rest)  # type: ignore[arg-type] # hands over what it had buffered
    transport.set_protocol(wire)
    protocol.transport = None  # or else its farewell would close the transport
    protocol.connection_lost(None)
    wire.connection_made(transport)
    if rest.data:
        wire.begin_with(rest.data)
