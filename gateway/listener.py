"""How aiohttp serves us where the application is not asked: what is no proper HTTP, who does not read.

aiohttp would answer the first in plain text, quote what was sent (a token, perhaps) and log it; the
second it would wait for without end. This file and `wire` alone know aiohttp from the inside; it is
pinned to its minor for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.errors import problem
from gateway.respond import problem_response

SERVER_NAME: Final = "ice-gateway"
READ_TIMEOUT: Final = 30.0
"""Seconds for a client to take 64 KiB of an answer (the transport's high-water mark), or its rest."""
_log = structlog.get_logger()


@contextlib.contextmanager
def calm(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Say nothing each time that a connection could not be accepted for want of file handles.

    asyncio says so thousands of times a second; `vitals` says it once.
    """
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "out of system resource" in context.get("message", ""):
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


class _Connection(RequestHandler):
    __slots__ = ("_patience",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._patience: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """More waits for the client than it should: give it some time."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """The client has read on; once the connection is closing it has no more time for the rest."""
        super().resume_writing()
        if self.transport is not None and not self.transport.is_closing():
            self._stop_waiting()

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        if self._messages:
            # Who sends requests without waiting for answers takes turns with everybody else.
            await asyncio.sleep(0)
        return await super()._handle_request(request, start_time, request_handler)

    async def start(self) -> None:
        """Serve requests; then the rest of the last answer is waited for, but not without end."""
        try:
            await super().start()
        finally:
            self._wait()

    def force_close(self) -> None:
        """Close, idle for too long: the rest of the last answer is waited for likewise."""
        self._wait()
        super().force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """There is nobody left to wait for."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        transport = self.transport
        if self._patience is None and transport is not None:
            self._patience = self._loop.call_later(READ_TIMEOUT, transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's words, which quote the request
    ) -> web.StreamResponse:
        """Answer with a problem document and close."""
        malformed = status < 500  # noqa: PLR2004 - whose fault it is
        if malformed:
            _log.info("malformed request", address=request.remote, fault=type(exc).__name__)
        else:
            _log.error("unexpected error", address=request.remote, exc_info=exc)
        response = problem_response(problem("bad-request" if malformed else "internal"))
        response.headers["Server"] = SERVER_NAME
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, made: web.Server, options: dict[str, Any]) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory, **options)
        self._options = options

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """Runs an application; `options` are those of aiohttp's connections."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **options: Any) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=shutdown_timeout)
        self._options = options

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._options)
