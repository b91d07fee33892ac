"""One HTTP connection: refuses malformed, slow and oversized requests, and answers upgrades directly.

aiohttp answers malformed requests in plain text, quotes and logs what was sent (perhaps a token), and waits
forever for a client that never reads. A complete upgrade that is the first request of its connection goes
straight to its handler, without aiohttp's request, router and tasks, which were half the cost of the session
layer. Any other upgrade reaches the same handler through the router.

Only this file, `server` and `upgrade` use aiohttp's internals; its minor version is pinned for them. Limits of
bodies are in `responses`.

Tested in tests/gateway/web/test_server.py and tests/gateway/web/test_upgrade.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.core.problems import Problem, problem
from gateway.web.load_shedding import LoadShedding
from gateway.web.responses import problem_response
from gateway.web.upgrade import Upgrade

READ_STEP: Final = 64 * 1024
"""Bytes of a buffered response that a client must read within `Timeouts.read`."""
MAX_LINE: Final = 8 * 1024
"""Maximum bytes of a request line, with path and query."""
MAX_FIELD: Final = 32 * 1024
"""Maximum bytes of one header; large enough for `admission` to refuse an oversized proof itself."""
MAX_FIELDS: Final = 128
MAX_HEAD: Final = 64 * 1024
"""Maximum bytes of all headers."""
NO_ANSWER: Final = "The gateway took too long to answer. It is not known whether this was done: look before you try again."
_log = structlog.get_logger()

UpgradeHandler = Callable[[Upgrade], Awaitable[web.Response | None]]
"""Answers an upgrade: hands its connection over and returns None, or returns the refusal."""
UpgradeRouter = Callable[[str], UpgradeHandler | None]
"""Returns the handler of a path, if it has one."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long clients and handlers may take, in seconds."""

    head: float = 10.0
    """For a request's headers to arrive: for the first request from the start of the connection, for later ones
    from their first byte. Also for a TLS handshake."""
    body: float = 10.0
    """For a request's body to arrive."""
    request: float = 90.0
    """From the headers to the first byte of the response; every valid request is faster."""
    read: float = 30.0
    """For a client to read `READ_STEP` bytes, or the rest, of a buffered response."""
    linger: float = 5.0
    """To drain an unread request: closing at once could lose the response."""
    accept_again: float = 1.0
    """Without accepting TLS connections after the system ran out of handles, as in asyncio."""


DEFAULT_TIMEOUTS: Final = Timeouts()


@dataclass(frozen=True, slots=True)
class Shared:
    """The state that all connections of a server share; `headers` are added to every response."""

    upgrades: UpgradeRouter
    load_shedding: LoadShedding
    headers: Mapping[str, str]
    timeouts: Timeouts


class Connection(RequestHandler):
    """One connection, until it is closed or handed over to an ICE's session."""

    __slots__ = (
        "_closed",
        "_head_size",
        "_malformed",
        "_read_timer",
        "_refusal",
        "_upgrading",
        "authenticated",
        "on_lost",
        "shared",
    )

    def __init__(self, manager: web.Server, shared: Shared, **options: Any) -> None:
        super().__init__(manager, **options)
        self.shared = shared
        self.authenticated = False
        self.on_lost: Callable[[], None] | None = None
        self._upgrading = False
        self._refusal: web.Response | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._malformed = False
        self._closed: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request; aiohttp would start a task at once, which an upgrade does not need.

        asyncio and uvloop set TCP_NODELAY, and no connection lives long enough for keep-alive probes.
        """
        assert self._manager is not None  # noqa: S101 - set until the connection is lost
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self._manager.connection_made(self, self.transport)
        self._await_head()
        self.shared.load_shedding.accepted(self, transport.get_extra_info("socket").fileno())

    def _await_head(self) -> None:
        """Limit the time for a request's headers; between requests aiohttp waits longer."""
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._next_keepalive_close_time = self._loop.time() + self.shared.timeouts.head
        self._keepalive_handle = self._loop.call_at(
            self._next_keepalive_close_time, self._process_keepalive
        )

    def abort(self) -> None:
        """See `load_shedding.Connection`."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Limit the total size of a request's headers; aiohttp limits the lines and their number."""
        # While no request is in progress, all data belongs to the next request's head.
        waiting, count = self._waiter is not None or not self._request_count, self._request_count
        super().data_received(data)
        begun = self._head_size > 0
        in_head = waiting and count == self._request_count
        self._head_size = self._head_size + len(data) if in_head else 0
        if self._head_size and count and not begun:
            self._await_head()
        if self._head_size > MAX_HEAD and not self._messages:
            # As aiohttp does with a request that it cannot parse.
            self._request_count += 1
            self._messages.append((_ErrInfo(400, _HeadTooLarge(""), ""), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if self._task_handler is None and self.transport is not None:
            self._task_handler = self._loop.create_task(self._upgrade() or self.start())

    def _upgrade(self) -> Coroutine[Any, Any, None] | None:
        """The coroutine that answers a complete upgrade without a body or Expect; None for other requests."""
        if len(self._messages) != 1:
            return None
        message, payload = self._messages[0]
        if (
            isinstance(message, _ErrInfo)
            or not message.upgrade
            or message.method != "GET"
            or payload is not EMPTY_PAYLOAD
            or "Expect" in message.headers
        ):
            return None
        handler = self.shared.upgrades(message.path)
        if handler is None:
            return None
        return self._handle_upgrade(handler, Upgrade(message, self), message.path)

    async def _handle_upgrade(self, handler: UpgradeHandler, upgrade: Upgrade, path: str) -> None:
        # The handler now owns the connection, and it identifies the caller.
        self.shared.load_shedding.forget(self)
        # Reuse the timer of the headers to limit the handler: a new one costs time.
        self._next_keepalive_close_time = self._loop.time() + self.shared.timeouts.request
        self._upgrading = True
        try:
            refusal = await handler(upgrade)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._upgrading or task is None:
                raise
            task.uncancel()
            _log.error("no answer", method="GET", path=path)
            refusal = problem_response(problem("unavailable", NO_ANSWER))
        except Exception:  # noqa: BLE001 - the last line before the client
            _log.exception("unexpected error", method="GET", path=path)
            refusal = problem_response(problem("internal"))
        self._upgrading = False
        if refusal is not None:
            refusal.headers.update(self.shared.headers)
            self._refusal = refusal
            await self.start()

    def _process_keepalive(self) -> None:
        """Close a connection that sent nothing; cancel an upgrade handler that takes too long."""
        super()._process_keepalive()
        if self._keepalive_handle is not None:
            return  # not due yet
        if self._task_handler is None:
            self.force_close()
        elif self._upgrading:
            self._upgrading = False
            self._task_handler.cancel()

    def pause_writing(self) -> None:
        """Start the read timer: the client is not reading fast enough."""
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        """Stop the read timer, unless the connection is closing: then it limits the rest."""
        super().resume_writing()
        if self.transport is not None and not self.transport.is_closing():
            self._stop_read_timer()

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        if self._messages:
            # Let other connections run between pipelined requests.
            await asyncio.sleep(0)
        if self._keepalive_handle is not None:
            # It limited the head; aiohttp makes a new one for the wait for the next request.
            self._keepalive_handle.cancel()
            self._keepalive_handle = None
        if self._refusal is not None:
            request_handler, self._refusal = _returning(self._refusal), None
        self.shared.load_shedding.served(self)
        result = await super()._handle_request(request, start_time, request_handler)
        if self._malformed:
            await self._linger()
        if self._manager is not None:
            self.shared.load_shedding.idle(self)
        return result

    async def _linger(self) -> None:
        """Close our side but keep reading: closing with unread data would reset the connection.

        The client might then never see the response (RFC 9112 section 9.6).
        """
        if self.transport is None:
            return
        self._close = True  # aiohttp drops further data
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._closed = self._loop.create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.shared.timeouts.linger):
                await self._closed

    async def start(self) -> None:
        """Serve requests; then wait a limited time for the client to read the rest."""
        try:
            await super().start()
        finally:
            self._start_read_timer()

    def force_close(self) -> None:
        """Close an idle connection; wait a limited time for the client to read the rest."""
        self._start_read_timer()
        super().force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the upgrade handler and the timers."""
        if self._upgrading and self._task_handler is not None and self.transport is not None:
            self._task_handler.cancel()  # not after a hand-over, which clears `transport`
        self.shared.load_shedding.forget(self)
        super().connection_lost(exc)
        self._stop_read_timer()
        if self.on_lost is not None:
            self.on_lost()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _start_read_timer(self) -> None:
        if self._read_timer is None and self.transport is not None:
            self._restart_read_timer(self.transport)

    def _restart_read_timer(self, transport: asyncio.Transport) -> None:
        left, within = transport.get_write_buffer_size(), self.shared.timeouts.read
        self._read_timer = self._loop.call_later(within, self._check_read, transport, left)

    def _check_read(self, transport: asyncio.Transport, left: int) -> None:
        """Abort unless the client has read `READ_STEP` bytes of the `left` ones."""
        if left - transport.get_write_buffer_size() >= READ_STEP:
            self._restart_read_timer(transport)
        else:
            transport.abort()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's text quotes the request
    ) -> web.StreamResponse:
        """Respond with a problem document and close."""
        if status < 500:  # noqa: PLR2004 - the client's fault
            _log.info("malformed request", address=request.remote, fault=type(exc).__name__)
            self._malformed = True
            response = problem_response(_malformed(exc))
        else:
            # A client may disconnect at any time, even within its body: not our error.
            if not isinstance(exc, ConnectionError):
                _log.error("unexpected error", address=request.remote, exc_info=exc)
            response = problem_response(problem("internal"))
        response.headers.update(self.shared.headers)
        response.force_close()
        return response


def mark_authenticated(request: web.BaseRequest) -> None:
    """Exempt the connection of an authenticated request from load shedding while it is answered."""
    connection = request.protocol
    if isinstance(connection, Connection) and connection.transport is not None:
        connection.shared.load_shedding.mark_authenticated(connection)


def call_when_lost(request: web.BaseRequest, callback: Callable[[], None]) -> None:
    """Call back once the connection of a request is lost."""
    connection = request.protocol
    if isinstance(connection, Connection):
        connection.on_lost = callback


def _returning(
    response: web.Response,
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return response

    return handler


class _HeadTooLarge(BadHttpMessage):
    """More than `MAX_HEAD` bytes have arrived without the end of the headers."""


def _malformed(fault: BaseException | None) -> Problem:
    """The problem for a request that could not be parsed."""
    if isinstance(fault, LineTooLong) and fault.args[1] == MAX_LINE:
        return problem("uri-too-long")
    if isinstance(fault, LineTooLong | _HeadTooLarge) or "Too many headers" in str(fault):
        return problem("headers-too-large")
    return problem("bad-request")
