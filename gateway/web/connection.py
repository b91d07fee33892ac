"""One HTTP connection: what is no proper HTTP, too slow, or too large, and upgrades that come first.

aiohttp answers malformed requests in plain text, quotes what was sent (a token, perhaps) and logs it; it
waits forever for a client that never reads. An upgrade that comes whole, and first on its connection, is
answered by its gate without aiohttp's request, router and tasks: they were half of what the session
layer costs. What comes otherwise goes the long way to the same gate.

This file, `listener` and `handover` alone know aiohttp from the inside; it is pinned to its minor for
them. What a body may be stands in `respond`.
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

HEAD_TIMEOUT: Final = 10.0
"""Seconds for a request's headers to arrive: the first from the connection's begin on, later ones from their
first byte on; for a TLS handshake likewise."""
REQUEST_TIMEOUT: Final = 90.0
"""Seconds from the headers to the first byte of the answer; nothing that is asked for takes so long."""
READ_TIMEOUT: Final = 30.0
"""Seconds for a client to take `READ_STEP` bytes of an answer that waits, or its rest."""
READ_STEP: Final = 64 * 1024
LINGER_TIMEOUT: Final = 5.0
"""Seconds to drain an unread request: to close at once could lose the answer."""
MAX_LINE: Final = 8 * 1024
"""Bytes of a request's first line, with path and query."""
MAX_FIELD: Final = 32 * 1024
"""Bytes of one header; a header that is too large for a proof is still refused by the gateway itself."""
MAX_FIELDS: Final = 128
MAX_HEAD: Final = 64 * 1024
"""Bytes of all headers together."""
NO_ANSWER: Final = (
    "There was no time to answer. It is not known whether this was done: look before you try again."
)
_log = structlog.get_logger()


Gate = Callable[[Upgrade], Awaitable[web.Response | None]]
"""Answers an upgrade: hands its connection over and returns None, or returns the refusal."""
Gates = Callable[[str], Gate | None]
"""The gate of a path, if it has one."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a server have in common; `headers` stand in every answer."""

    gates: Gates
    load_shedding: LoadShedding
    headers: Mapping[str, str]


class Connection(RequestHandler):
    """One connection; it ends when it is handed over to an ICE's session."""

    __slots__ = (
        "_asking",
        "_gone",
        "_head",
        "_malformed",
        "_patience",
        "_refusal",
        "authenticated",
        "shared",
    )

    def __init__(self, manager: web.Server, shared: Shared, **options: Any) -> None:
        super().__init__(manager, **options)
        self.shared = shared
        self.authenticated = False
        self._asking = False
        self._refusal: web.Response | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._head = 0
        self._malformed = False
        self._gone: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for what comes first: aiohttp begins a task at once, which an upgrade has no use for.

        asyncio and uvloop have set TCP_NODELAY, and no connection lives long enough for keep-alives.
        """
        assert self._manager is not None  # noqa: S101 - it is there until the connection is lost
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._manager.connection_made(self, self.transport)
        self._await_head()
        self.shared.load_shedding.accepted(self, transport.get_extra_info("socket").fileno())

    def _await_head(self) -> None:
        """Bound the time for a request's headers; between two requests aiohttp waits longer."""
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._next_keepalive_close_time = self._loop.time() + HEAD_TIMEOUT
        self._keepalive_handle = self._loop.call_at(
            self._next_keepalive_close_time, self._process_keepalive
        )

    def cut(self) -> None:
        """See `load_shedding.Connection`."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bound a request's headers as a whole; aiohttp bounds the lines and how many there are."""
        # While a request is waited for, all that comes is its head.
        waiting, count = self._waiter is not None or not self._request_count, self._request_count
        super().data_received(data)
        begun = self._head > 0
        self._head = self._head + len(data) if waiting and count == self._request_count else 0
        if self._head and count and not begun:
            self._await_head()
        if self._head > MAX_HEAD and not self._messages:
            # As it does itself with what it cannot parse.
            self._request_count += 1
            self._messages.append((_ErrInfo(400, _HeadTooLarge(""), ""), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if self._task_handler is None and self.transport is not None:
            self._task_handler = self._loop.create_task(self._ask() or self.start())

    def _ask(self) -> Coroutine[Any, Any, None] | None:
        """What answers an upgrade that has come whole, without a body or anything else that is special."""
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
        gate = self.shared.gates(message.path)
        return None if gate is None else self._be_asked(gate, Upgrade(message, self), message.path)

    async def _be_asked(self, gate: Gate, upgrade: Upgrade, path: str) -> None:
        # From here on the gate owns the connection, and identifies the caller.
        self.shared.load_shedding.forget(self)
        # The timer of the headers goes on for the answer: a new one costs time.
        self._next_keepalive_close_time = self._loop.time() + REQUEST_TIMEOUT
        self._asking = True
        try:
            refusal = await gate(upgrade)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._asking or task is None:
                raise
            task.uncancel()
            _log.error("no answer", method="GET", path=path)
            refusal = problem_response(problem("unavailable", NO_ANSWER))
        except Exception:  # noqa: BLE001 - the last line before the client
            _log.exception("unexpected error", method="GET", path=path)
            refusal = problem_response(problem("internal"))
        self._asking = False
        if refusal is not None:
            refusal.headers.update(self.shared.headers)
            self._refusal = refusal
            await self.start()

    def _process_keepalive(self) -> None:
        """Close a connection that has sent nothing; cancel a gate that takes too long."""
        super()._process_keepalive()
        if self._keepalive_handle is not None:
            return  # it was too early
        if self._task_handler is None:
            self.force_close()
        elif self._asking:
            self._asking = False
            self._task_handler.cancel()

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
            # A client that pipelines requests takes turns with the others.
            await asyncio.sleep(0)
        if self._keepalive_handle is not None:
            # It bounded the head; aiohttp makes one anew that bounds the wait for the next request.
            self._keepalive_handle.cancel()
            self._keepalive_handle = None
        if self._refusal is not None:
            request_handler, self._refusal = _giving(self._refusal), None
        self.shared.load_shedding.served(self)
        answered = await super()._handle_request(request, start_time, request_handler)
        if self._malformed:
            await self._linger()
        if self._manager is not None:
            self.shared.load_shedding.idle(self)
        return answered

    async def _linger(self) -> None:
        """Say that there is no more, but read on: to close with anything unread would reset the connection.

        The client might then never see the answer (RFC 9112 section 9.6).
        """
        if self.transport is None:
            return
        self._close = True  # what comes is dropped
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._gone = self._loop.create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_TIMEOUT):
                await self._gone

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
        if self._asking and self._task_handler is not None and self.transport is not None:
            self._task_handler.cancel()  # a gate whose client is gone; not one that has handed it over
        self.shared.load_shedding.forget(self)
        super().connection_lost(exc)
        self._stop_waiting()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def _wait(self) -> None:
        if self._patience is None and self.transport is not None:
            self._look_again(self.transport)

    def _look_again(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        self._patience = self._loop.call_later(READ_TIMEOUT, self._look, transport, left)

    def _look(self, transport: asyncio.Transport, left: int) -> None:
        """A slow client may go on for as long as it reads."""
        if left - transport.get_write_buffer_size() >= READ_STEP:
            self._look_again(transport)
        else:
            transport.abort()

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
        if status < 500:  # noqa: PLR2004 - whose fault it is
            _log.info("malformed request", address=request.remote, fault=type(exc).__name__)
            self._malformed = True
            response = problem_response(_malformed(exc))
        else:
            # A client may leave at any time, also in the middle of its body: that is no fault of ours.
            if not isinstance(exc, ConnectionError):
                _log.error("unexpected error", address=request.remote, exc_info=exc)
            response = problem_response(problem("internal"))
        response.headers.update(self.shared.headers)
        response.force_close()
        return response


def mark_authenticated(request: web.BaseRequest) -> None:
    """The caller of this request is known: its connection is not cut while it is answered."""
    connection = request.protocol
    if isinstance(connection, Connection) and connection.transport is not None:
        connection.shared.load_shedding.mark_authenticated(connection)


def _giving(response: web.Response) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def give(_: web.BaseRequest) -> web.StreamResponse:
        return response

    return give


class _HeadTooLarge(BadHttpMessage):
    """More than `MAX_HEAD` bytes have come, and no end of the headers."""


def _malformed(fault: BaseException | None) -> Problem:
    """What to say of a request that was not parsed to its end."""
    if isinstance(fault, LineTooLong) and fault.args[1] == MAX_LINE:
        return problem("uri-too-long")
    if isinstance(fault, LineTooLong | _HeadTooLarge) or "Too many headers" in str(fault):
        return problem("headers-too-large")
    return problem("bad-request")
