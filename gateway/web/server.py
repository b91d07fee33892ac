"""The server: accepts connections, and answers every request within its time and by a document of ours."""

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
from gateway.runtime.sockets import BACKLOG, QUEUES, open_listeners
from gateway.web import connection
from gateway.web.connection import Connection, Gates, Shared
from gateway.web.load_shedding import LoadShedding
from gateway.web.responses import problem_response, problems, screen
from gateway.web.tls_acceptor import TlsAcceptor

DOORS: Final = 64
"""Handles that listen at each socket: the loop accepts one connection from each in a turn. In a storm it is
cheaper to accept many first and screen them then than to do both in turns."""
_TLS_FAREWELL: Final = 5.0
"""Seconds for a TLS client to say that it has heard the end."""
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

    async def _answer(self, asked: web.BaseRequest) -> web.StreamResponse:
        """What the application answers, or a problem document that says why it does not."""
        request = cast("web.Request", asked)  # the factory is an application's
        fault = screen(request)
        if fault is not None:
            response = problem_response(fault)
            response.headers.update(self.shared.headers)
            return response
        try:
            async with asyncio.timeout(connection.REQUEST_TIMEOUT) as timeout:
                request[_TIMEOUT] = timeout
                try:
                    return await problems(request, self._handler)
                finally:
                    del request[_TIMEOUT]
        except TimeoutError:
            _log.error("no answer", method=request.method, path=request.rel_url.raw_path)
            return problem_response(problem("unavailable", connection.NO_ANSWER))


async def _begin(request: web.Request, _: web.StreamResponse) -> None:
    """The answer begins: from here on it is the client's reading that takes time."""
    timeout = request.get(_TIMEOUT)
    if timeout is not None:
        timeout.reschedule(None)


class _Site(web.TCPSite):
    """Listens as aiohttp's own, with more than one handle for each socket, and with our acceptor for TLS."""

    __slots__ = ("_bound", "_doors")

    def __init__(self, *args: Any, bound: Sequence[socket.socket] = (), **options: Any) -> None:
        super().__init__(*args, **options)
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
        if self._ssl_context is not None:
            for bound in self._bound:
                acceptor = TlsAcceptor(
                    bound,
                    server,
                    self._ssl_context,
                    server.shared.load_shedding,
                    at_once=DOORS,
                    handshake_timeout=connection.HEAD_TIMEOUT,
                    shutdown_timeout=_TLS_FAREWELL,
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
        # With more than two addresses they share what `fd_limits.OVERHEAD` has for two.
        doors = max(1, min(DOORS, 2 * QUEUES * DOORS // len(self._bound)))
        for bound in self._bound:
            for _ in range(doors - 1):
                again = socket.socket(fileno=os.dup(bound.fileno()))
                self._doors.append(await listen(sock=again))

    async def stop(self) -> None:
        """Accept nobody any more."""
        for door in self._doors:
            door.close()
        await super().stop()


class Runner(web.AppRunner):
    """Runs an application, every answer and error of which is bounded and a document of ours.

    Args:
        app: serves requests, and upgrades that do not come whole and first on their connections.
        load_shedding: which connections give way when file handles run short; else one of its own.
        shutdown_timeout: seconds for the requests in hand to finish.
        keepalive: seconds for which a connection may wait for its next request.
        gates: by path, what answers upgrades that do.
        headers: stand in every answer, beside Server.
        options: those of aiohttp's connections, in place of ours.
    """

    def __init__(
        self,
        app: web.Application,
        load_shedding: LoadShedding | None = None,
        *,
        shutdown_timeout: float,
        keepalive: float = connection.HEAD_TIMEOUT,
        gates: Gates = lambda _: None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=shutdown_timeout)
        app.on_response_prepare.append(_begin)
        app.on_response_prepare.append(self._set_headers)
        self._shared = Shared(
            gates,
            load_shedding or LoadShedding(),
            # Not which libraries of which versions serve it.
            {"Server": SERVER_NAME, **(headers or {})},
        )
        self._options = {
            "access_log": None,
            "keepalive_timeout": keepalive,
            "lingering_time": connection.LINGER_TIMEOUT,
            "max_line_size": connection.MAX_LINE,
            "max_field_size": connection.MAX_FIELD,
            "max_headers": connection.MAX_FIELDS,
            "auto_decompress": False,  # nobody sends us bombs
            **options,
        }

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Begin to serve. Raises `OSError` where the address cannot be had."""
        if tls is None:
            await self._start(host, port, tls)
        else:
            await self._start(None, None, tls, open_listeners([host], port))

    async def listen_on(
        self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
    ) -> None:
        """Begin to serve on sockets that are bound already; see `sockets.open_listeners`."""
        await self._start(None, None, tls, sockets)

    def url(self, *, tls: bool) -> str:
        """Where it listens, at the first of its addresses."""
        host, port = self.addresses[0][:2]
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def _start(
        self,
        host: str | None,
        port: int | None,
        tls: ssl.SSLContext | None,
        bound: Sequence[socket.socket] = (),
    ) -> None:
        if self.server is None:
            await self.setup()
        await _Site(self, host, port, ssl_context=tls, backlog=BACKLOG, bound=bound).start()

    async def _set_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._shared.headers)

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._shared, self._options)
