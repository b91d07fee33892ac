"""An HTTP proxy that really tunnels (CONNECT, RFC 9110 section 9.3.6), and can refuse in several ways."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator


class ConnectProxy:
    """Names are resolved by `routes` alone: `host:port` to the port on this machine where it is.

    `credentials` (`user:password`) are asked for if set; `answer` is given to everybody instead, if set.
    """

    def __init__(self) -> None:
        self.routes: dict[str, int] = {}
        self.credentials: str | None = None
        self.answer: bytes | None = None
        self.asked: list[str] = []
        """The targets of all requests."""
        self.seen = b""
        """All that has passed through."""
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and tunnel afterwards."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            self.asked.append(target)
            if self.answer is not None:
                writer.write(self.answer)
            elif not self._allowed(head):
                writer.write(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                    b'Proxy-Authenticate: Basic realm="proxy"\r\nContent-Length: 0\r\n\r\n'
                )
            elif method != "CONNECT" or target not in self.routes:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            else:
                await self._tunnel(self.routes[target], reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # either side may go at any time
        finally:
            writer.close()

    def _allowed(self, head: str) -> bool:
        if self.credentials is None:
            return True
        basic = base64.b64encode(self.credentials.encode()).decode()
        return f"\r\nproxy-authorization: basic {basic}\r\n".lower() in head.lower()

    async def _tunnel(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back))
                both.create_task(self._pass(there, writer))
        finally:
            back.close()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                self.seen += data
                target.write(data)
                await target.drain()
        target.close()


@contextlib.asynccontextmanager
async def connect_proxy() -> AsyncIterator[ConnectProxy]:
    """Run a proxy on a free port."""
    proxy = ConnectProxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
