"""The HTTP server: accepts connections, and answers every request in time and with our documents."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway import SERVER_NAME
from gateway.core.problems import problem
from gateway.runtime.sockets import BACKLOG, QUEUES, host_port, open_listeners
from gateway.web import connection
from gateway.web.connection import DEFAULT_TIMEOUTS, Connection, Shared, Timeouts, UpgradeRouter
from gateway.web.load_shedding import LoadShedding
from gateway.web.responses import BODY_TIMEOUT, answer_errors, precheck, problem_response
from gateway.web.tls_acceptor import TlsAcceptor

DOORS: Final = 64
"""Duplicate handles of each listening socket: the loop (libuv) accepts one connection from each in a turn. In a
reconnect storm it is cheaper to accept many connections first and check them afterwards: 10,000 ICEs were back in
3.4 s instead of 4.0 s with 32."""
_TLS_SHUTDOWN: Final = 5.0
"""Seconds for a TLS client to answer our close_notify."""
_TIMEOUT: web.RequestKey[asyncio.Timeout] = web.RequestKey("timeout", asyncio.Timeout)
_log = structlog.get_logger()


class _Server(web.Server):
    def __init__(self, made: web.Server, shared: Shared, options: dict[str, Any]) -> None:
        super().__init__(self._answer, request_factory=made.request_factory, **options)
        self._handler = made.request_handler
        self.shared = shared
        self._options = options

    def __call__(self) -> RequestHandler:
        return Connection(self, self.shared, loop=self._loop, **self._options)

    async def _answer(self, base: web.BaseRequest) -> web.StreamResponse:
        """The application's response, or a problem document if there is none."""
        request = cast("web.Request", base)  # the application's factory made it
        fault = precheck(request)
        if fault is not None:
            response = problem_response(fault)
            response.headers.update(self.shared.headers)
            return response
        try:
            async with asyncio.timeout(self.shared.timeouts.request) as timeout:
                request[_TIMEOUT] = timeout
                request[BODY_TIMEOUT] = self.shared.timeouts.body
                try:
                    return await answer_errors(request, self._handler)
                finally:
                    del request[_TIMEOUT]
        except TimeoutError:
            _log.error("no answer", method=request.method, path=request.rel_url.raw_path)
            return problem_response(problem("unavailable", connection.NO_ANSWER))


async def _stop_timeout(request: web.Request, _: web.StreamResponse) -> None:
    """End the time limit when the response begins: from now on only the client's reading takes time."""
    timeout = request.get(_TIMEOUT)
    if timeout is not None:
        timeout.reschedule(None)


class _Site(web.TCPSite):
    """Listens like aiohttp's TCPSite, but with several handles for each socket and our acceptor for TLS."""

    __slots__ = ("_at_once", "_bound", "_doors")

    def __init__(
        self, *args: Any, doors: int, bound: Sequence[socket.socket] = (), **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._at_once = doors
        self._bound = bound
        self._doors: list[asyncio.Server | TlsAcceptor] = []

    async def start(self) -> None:
        await web.BaseSite.start(self)
        try:
            await self._listen()
        except BaseException:
            await self.stop()
            raise

    async def _listen(self) -> None:
        server = cast("_Server", self._runner.server)
        timeouts = server.shared.timeouts
        if self._ssl_context is not None:
            for bound in self._bound:
                acceptor = TlsAcceptor(
                    bound,
                    server,
                    self._ssl_context,
                    server.shared.load_shedding,
                    at_once=self._at_once,
                    handshake_timeout=timeouts.head,
                    shutdown_timeout=_TLS_SHUTDOWN,
                    retry=timeouts.accept_again,
                )
                self._doors.append(acceptor)
            self._server = cast("asyncio.AbstractServer", self._doors.pop(0))
            return
        listen = functools.partial(
            asyncio.get_running_loop().create_server, server, backlog=self._backlog
        )
        if not self._bound:
            self._server = await listen(self._host, self._port)
            self._bound = self._server.sockets
        else:
            for bound in self._bound:
                self._doors.append(await listen(sock=bound))
            self._server = cast("asyncio.Server", self._doors.pop(0))
        # With more than two addresses they share what `fd_limits.OVERHEAD` counts for two.
        doors = max(1, min(self._at_once, 2 * QUEUES * self._at_once // len(self._bound)))
        for bound in self._bound:
            for _ in range(doors - 1):
                again = socket.socket(fileno=os.dup(bound.fileno()))
                self._doors.append(await listen(sock=again))

    async def stop(self) -> None:
        """Stop accepting connections."""
        for door in self._doors:
            door.close()
        await super().stop()


class Runner(web.AppRunner):
    """Runs an application with time limits, and with our documents for every error.

    Args:
        app: serves requests, and upgrades that are incomplete or not first on their connection.
        load_shedding: closes connections when file handles run short; a new one by default.
        shutdown_timeout: seconds for open requests to finish.
        timeouts: limit what clients and handlers take.
        keepalive: seconds for which a connection may wait for its next request; by default as for headers.
        doors: handles that listen at each socket.
        upgrades: returns the handler of a path for all other upgrades.
        headers: are added to every answer, beside Server.
        options: options of aiohttp's connections, in place of ours.
    """

    def __init__(
        self,
        app: web.Application,
        load_shedding: LoadShedding | None = None,
        *,
        shutdown_timeout: float,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        keepalive: float | None = None,
        doors: int = DOORS,
        upgrades: UpgradeRouter = lambda _: None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=shutdown_timeout)
        self._doors = doors
        app.on_response_prepare.append(_stop_timeout)
        app.on_response_prepare.append(self._set_headers)
        self._shared = Shared(
            upgrades,
            load_shedding or LoadShedding(),
            # Replaces aiohttp's header, which names libraries and versions.
            {"Server": SERVER_NAME, **(headers or {})},
            timeouts,
        )
        self._options = {
            "access_log": None,
            "keepalive_timeout": timeouts.head if keepalive is None else keepalive,
            "lingering_time": timeouts.linger,
            "max_line_size": connection.MAX_LINE,
            "max_field_size": connection.MAX_FIELD,
            "max_headers": connection.MAX_FIELDS,
            "auto_decompress": False,  # no compressed bodies, so no decompression bombs
            **options,
        }

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Start serving. Raises `OSError` if the address is not available."""
        if tls is None:
            await self._start(host, port, tls)
        else:
            await self._start(None, None, tls, open_listeners([host], port))

    async def listen_on(
        self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
    ) -> None:
        """Start serving on bound sockets; see `sockets.open_listeners`."""
        await self._start(None, None, tls, sockets)

    def url(self, *, tls: bool) -> str:
        """The URL of the first address that it listens on."""
        host, port = self.addresses[0][:2]
        return f"{'https' if tls else 'http'}://{host_port(host, port)}"

    async def _start(
        self,
        host: str | None,
        port: int | None,
        tls: ssl.SSLContext | None,
        bound: Sequence[socket.socket] = (),
    ) -> None:
        if self.server is None:
            await self.setup()
        await _Site(
            self, host, port, doors=self._doors, ssl_context=tls, backlog=BACKLOG, bound=bound
        ).start()

    async def _set_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._shared.headers)

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._shared, self._options)
