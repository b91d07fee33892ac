"""Tries the other addresses of a name if one accepts connections but stays silent.

aiohttp tries them a quarter of a second apart until one accepts (RFC 8305). An address that accepts and then
sends nothing (a stopped process, a firewall that answers in its place) would use up every attempt, so the
dialer tries the others after `silence` seconds.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import ResolveResult

from client import platform

_T = TypeVar("_T")


class Dialer(aiohttp.ThreadedResolver):
    """Resolves names for its `connector`, without the addresses that were silent."""

    def __init__(self, silence: float) -> None:
        super().__init__()
        self._silence = silence
        self._silent: set[str] = set()
        self._left: set[str] = set()
        self._sockets: list[tuple[socket.socket, str]] = []

    def connector(self) -> aiohttp.TCPConnector:
        """A connector for a session that uses `connect`, one call at a time."""
        return aiohttp.TCPConnector(
            resolver=self, use_dns_cache=False, socket_factory=self._make_socket
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `aiohttp.abc.AbstractResolver`."""
        found = await super().resolve(host, port, family)
        if self._silent.issuperset(one["host"] for one in found):
            self._silent.clear()
        left = [one for one in found if one["host"] not in self._silent]
        self._left = {one["host"] for one in left}
        return left

    def _make_socket(self, address: Any) -> socket.socket:
        made = platform.new_socket(address)
        self._sockets.append((made, address[4][0]))
        return made

    async def connect(self, connect: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Await `connect()`; call it again for the other addresses while one is silent.

        The caller limits the time.
        """
        while True:
            self._left.clear()
            self._sockets.clear()
            connecting = asyncio.create_task(connect())
            try:
                await asyncio.wait({connecting}, timeout=self._silence)
                if not (connecting.done() or self._has_alternative()):
                    await asyncio.wait({connecting})
                if connecting.done():
                    return connecting.result()
            except (aiohttp.ClientError, OSError):
                self._silent.clear()  # the remaining addresses failed, and the silent ones may have recovered
                raise
            finally:
                # Before cancelling, which closes the sockets: a connected one has accepted.
                if not connecting.done():
                    self._silent.update(host for one, host in self._sockets if _is_connected(one))
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)

    def _has_alternative(self) -> bool:
        """Whether an address has accepted and others are left."""
        accepted = {host for one, host in self._sockets if _is_connected(one)}
        return bool(accepted and self._left - accepted)


def _is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True
