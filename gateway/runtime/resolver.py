"""Looks host names up for the gateway's own requests, in threads that nothing else needs.

The system's resolver can take half a minute for a name whose server does not answer, and cannot be interrupted. The
event loop has few threads for it (uvloop 4): some such names would hold them all. Then no other name is found, such as
that of the issuer, and the process waits for them before it ends. asyncio's own loop also checks passwords there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

AT_ONCE: Final = 64
"""Names that are looked up at a time; more are refused. Webhooks have at most 50."""
_HINTS: Final = socket.AI_ADDRCONFIG & getattr(socket, "AI_MASK", -1)
_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
_Query = tuple[str, int, int]
_Infos = list[tuple[Any, Any, int, str, Any]]


class SystemResolver(AbstractResolver):
    """Asks the system's resolver, in a thread for each name that does not delay the end of the process.

    All who ask for a name wait for the same thread, so that a name that hangs never holds a second one.

    Args:
        look_up: as `socket.getaddrinfo`.
        at_once: names that are looked up at a time.
    """

    def __init__(
        self, look_up: Callable[..., _Infos] = socket.getaddrinfo, at_once: int = AT_ONCE
    ) -> None:
        self._look_up = look_up
        self._at_once = at_once
        self._running: dict[_Query, asyncio.Future[_Infos]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host. Raises OSError."""
        query = host, port, int(family)
        found = self._running.get(query)
        if found is None:
            if len(self._running) >= self._at_once:
                raise OSError("too many names are looked up just now")
            found = self._start(query)
        return [
            ResolveResult(
                hostname=host,
                host=_host(address),
                port=address[1],
                family=kind,
                proto=protocol,
                flags=_NUMERIC,
            )
            for kind, _, protocol, _, address in await asyncio.shield(found)
        ]

    def _start(self, query: _Query) -> asyncio.Future[_Infos]:
        loop = asyncio.get_running_loop()
        future = self._running[query] = loop.create_future()

        def end(infos: _Infos, error: OSError | None) -> None:
            del self._running[query]
            if error is None:
                future.set_result(infos)
            else:
                future.set_exception(error)
                future.exception()  # nobody may wait for it any more

        def work() -> None:
            host, port, family = query
            infos: _Infos = []
            error: OSError | None = None
            try:
                infos = self._look_up(
                    host, port, type=socket.SOCK_STREAM, family=family, flags=_HINTS
                )
            except (OSError, ValueError) as raised:  # ValueError: no name in IDNA
                error = raised if isinstance(raised, OSError) else OSError("it is no host name")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end, infos, error)

        threading.Thread(target=work, name="look-up", daemon=True).start()
        return future

    async def close(self) -> None:
        """Nothing: a look-up that runs cannot be ended."""


def _host(address: Any) -> str:
    """The host of a socket's address; an IPv6 address of a link needs its scope (RFC 4007 section 11)."""
    host, _, *more = address
    scope = more[1] if more else 0
    return f"{host}%{scope}" if scope else str(host)
