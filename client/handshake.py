"""One WebSocket handshake with the gateway, which yields a connection or a refusal.

Source: docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

import aiohttp

from client import protocol
from client.backoff import Refused
from client.endpoint import Endpoint
from client.environment import Waits
from client.gateway_session import GatewaySession

_CLOSE_TIMEOUT: Final = 1.0

WebSocket = aiohttp.ClientWebSocketResponse


class Connector:
    """Makes handshakes; an async context manager. See `GatewaySession` for the arguments."""

    def __init__(
        self,
        endpoint: Endpoint,
        ca_file: Path | None,
        credentials: Callable[[], tuple[str, str]],
        *,
        now: Callable[[], float],
        waits: Waits,
    ) -> None:
        self._url = endpoint.url
        expected = (HTTPStatus.SWITCHING_PROTOCOLS,)
        self._session = GatewaySession(
            endpoint, ca_file, credentials, expected=expected, now=now, waits=waits
        )

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._session.__aexit__(*reason)

    async def connect(self) -> WebSocket | Refused:
        """Make one handshake; every failure is a `Refused`."""
        socket = await self._session.send(
            functools.partial(
                self._session.http.ws_connect,
                self._url,
                protocols=(protocol.SUBPROTOCOL,),
                compress=0,
                # aiohttp refuses a message of exactly the limit.
                max_msg_size=protocol.MAX_MESSAGE + 1,
                # The client must see pings: they show that the gateway is alive.
                autoping=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT),
            )
        )
        if isinstance(socket, Refused) or socket.protocol == protocol.SUBPROTOCOL:
            return socket
        await hang_up(socket, aiohttp.WSCloseCode.PROTOCOL_ERROR)
        return Refused(
            "not-a-gateway",
            "The WebSocket server there does not speak ice.v1: correct the URL.",
        )


async def hang_up(socket: WebSocket, code: int) -> None:
    """Send a close frame and wait briefly for the peer's; a peer that no longer reads cannot block it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * _CLOSE_TIMEOUT):
            await socket.close(code=code)
