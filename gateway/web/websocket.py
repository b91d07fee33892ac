"""The socket side of a session: RFC 6455 on a connection after its handshake.

A connection has no task, no queue and no timer. The sans-I/O core of `websockets` parses frames. An idle
connection holds no core; it borrows one from a pool. It needs none for data that is exactly one text frame, or the
answer to a ping, which is nearly everything that an ICE sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as Core
from websockets.typing import BytesLike

from client.protocol import CLOSINGS, MAX_MESSAGE, CloseCode
from gateway.web.frames import TEXT, framed, is_empty_pong, whole_text

SLICE: Final = 1024
"""Bytes parsed before other connections have their turn: one or two milliseconds of the smallest frames."""
BINARY: Final = Opcode.BINARY
CONT: Final = Opcode.CONT
_MAX_CONTROL: Final = 125  # RFC 6455 section 5.5
_NO_CLOSE_FRAME: Final = int(StandardCode.ABNORMAL_CLOSURE)
_NORMAL_CLOSURE: Final = int(StandardCode.NORMAL_CLOSURE)
_GATEWAY_CODES: Final = frozenset(code for code in CloseCode if code >= CloseCode.RESTART)
"""Codes that only a gateway may send."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may cost."""

    max_message: int = MAX_MESSAGE
    """Bytes of a message."""
    max_buffer: int = 4 * MAX_MESSAGE
    """Bytes that may wait for a slow reader; beyond that it is dropped as a slow consumer."""
    rate: float = 1000.0
    """Frames a second that a peer may send in the long run."""
    burst: float = 5000.0
    """Frames that a peer may send at once."""
    byte_rate: float = 2 * MAX_MESSAGE
    """Bytes a second that are read of a peer in the long run, beyond `byte_burst`; the rest waits there."""
    byte_burst: float = 8 * MAX_MESSAGE
    close_timeout: float = 1.0
    """Seconds for a peer to answer a close frame before the transport is aborted."""


DEFAULT_LIMITS: Final = Limits()
_REST: Final = 0.1
"""Seconds for which nothing more is read of a peer that sends too much."""


class Receiver(Protocol):
    """Gets the messages and the end of a connection. `closed` is called once, and nothing after it."""

    def received(self, text: str) -> None:
        """A complete text message arrived."""

    def overflowed(self) -> None:
        """More than `Limits.max_buffer` bytes wait for the peer to read."""

    def closed(self, code: int) -> None:
        """The connection is closing; `code` was sent or received first."""


class _Core(Core):
    """The parser; delivers each frame before it reads the next, which may be a close frame."""

    deliver: Callable[[Frame], None]
    max_message: int

    def __init__(self) -> None:
        super().__init__(SERVER, state=OPEN)
        self.unread = 0
        """Bytes that were fed in (counted by `WebSocket`), less those of the parsed frames."""

    def lend(self, deliver: Callable[[Frame], None], max_message: int) -> None:
        """Serve one connection from now on."""
        self.deliver = deliver
        self.max_message = self.max_message_size = max_message

    def recv_frame(self, frame: Frame) -> None:
        size = self.current_size
        if frame.opcode is Opcode.CLOSE:
            # A close frame may interrupt a fragmented message (RFC 6455 section 5.4), for which the library
            # would fail the connection with 1002 in place of the peer's code.
            self.current_size = None
        super().recv_frame(frame)
        if size is not None or self.current_size is not None:
            self._bound(frame, size)
        self.events.clear()
        length = len(frame.data)
        # The shortest header (RFC 6455 section 5.2): a peer that encodes lengths in more bytes keeps its parser.
        self.unread -= length + (6 if length < 126 else 8 if length < 65536 else 14)  # noqa: PLR2004
        self.deliver(frame)

    def _bound(self, frame: Frame, size: int | None) -> None:
        """Limit a fragmented message that had `size` bytes before this frame.

        The core counts control frames between fragments against its limit, but they are not part of the
        message (RFC 6455 section 5.4).
        """
        if frame.opcode is CONT and size is not None and size + len(frame.data) > self.max_message:
            raise PayloadTooBig(len(frame.data), self.max_message - size)
        self.max_message_size = self.max_message + (
            0 if self.current_size is None else _MAX_CONTROL
        )


_NOTHING: Final = memoryview(b"")
_SPARE: Final[list[_Core]] = []
_MAX_SPARE: Final = 64


class WebSocket(asyncio.Protocol):
    """One WebSocket, server side."""

    __slots__ = (
        "_backlog",
        "_byte_credit",
        "_closing",
        "_core",
        "_credit",
        "_credited",
        "_flooded",
        "_gone",
        "_limits",
        "_loop",
        "_lost",
        "_message",
        "_paused",
        "_receiver",
        "_timer",
        "_transport",
        "heard",
    )

    def __init__(self, receiver: Receiver, limits: Limits = DEFAULT_LIMITS) -> None:
        self._receiver = receiver
        self._limits = limits
        self._core: _Core | None = None
        self._backlog = _NOTHING
        self._paused = False
        self._flooded = False
        self._credit = limits.burst
        self._byte_credit = limits.byte_burst
        self._message: bytearray | None = None
        self._closing = False
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        """When data was last received, in the loop's time."""
        self._credited = self.heard
        self._lost: asyncio.Future[None] | None = None

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when the transport is gone."""
        if self._lost is None:
            self._lost = self._loop.create_future()
            if self._gone:
                self._lost.set_result(None)
        return self._lost

    # --- for the session ---------------------------------------------------------------------------

    def send(self, text: bytes) -> None:
        """Send one text message, unless the connection is closing."""
        self._send(TEXT, text)

    def ping(self) -> None:
        """Send a ping; the answer moves `heard`."""
        self._send(Opcode.PING, b"")

    def close(self, code: int, reason: str | None = None) -> None:
        """Write the close frame now, and abort the transport if the peer does not answer in time.

        The default reason is that of `code` in `CLOSINGS`.
        """
        if not self._closing:
            self._parser().send_close(code, CLOSINGS[code].reason if reason is None else reason)
            self._begin_closing()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start on a transport after its handshake."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not a subclass

    def begin_with(self, data: bytes) -> None:
        """Process data that arrived with the handshake, after the welcome is sent."""
        self._backlog = memoryview(data)
        self._loop.call_soon(self._go_on)

    def data_received(self, data: bytes) -> None:
        """Parse and deliver, one slice at a time."""
        self.heard = self._loop.time()
        if self._backlog:
            # The loop may deliver new data before it calls `_go_on`.
            self._backlog = memoryview(bytes(self._backlog) + data)
        elif len(data) <= SLICE:
            self._feed(data)
            self._byte_credit -= len(data)
            if self._byte_credit < 0:
                self._wait_for_turn()
        else:
            self._feed_slice(memoryview(data))

    def _go_on(self) -> None:
        data, self._backlog = self._backlog, _NOTHING
        if data:
            self._feed_slice(data)
        elif not self._flooded:
            self._pause(paused=False)

    def _feed_slice(self, data: memoryview) -> None:
        """Parse one slice and leave the rest for later, so that one ICE cannot delay the others."""
        self._feed(bytes(data[:SLICE]))
        if self._flooded:
            return
        self._backlog = data[SLICE:] if len(data) > SLICE else _NOTHING
        self._byte_credit -= SLICE
        if self._backlog or self._byte_credit < 0:
            self._wait_for_turn()
        else:
            self._pause(paused=False)

    def _wait_for_turn(self) -> None:
        """Read on when the other connections had their turn, or later where too much was read of this one."""
        if self._byte_credit < 0:
            self._refill()
        self._pause(paused=True)
        # While it closes, nothing is delivered any more, which costs little.
        if self._byte_credit < 0 and not self._closing:
            self._loop.call_later(_REST, self._go_on)
        else:
            self._loop.call_soon(self._go_on)

    def _feed(self, data: bytes) -> None:
        """Parse at most `SLICE` bytes; without a parser if they are one simple frame."""
        core = self._core
        if core is None:
            if self._take_simple(data):
                return
            core = self._parser()
        core.unread += len(data)
        core.receive_data(data)
        if core.state is not OPEN:
            if self._closing:
                self._flush()
            else:
                # The peer closed, or broke the protocol so that the core failed the connection.
                self._begin_closing()
            return
        if core.writes:
            self._flush()
            if self._closing:
                return  # the peer does not read
        if core.unread == 0 and core.current_size is None:
            # The core is as good as new: nothing is half-read, closed or to be sent.
            self._core = None
            del core.deliver  # it refers to this connection
            if len(_SPARE) < _MAX_SPARE:
                _SPARE.append(core)

    def _take_simple(self, data: bytes) -> bool:
        """Take what is exactly one text frame or the answer to a ping; False for anything else.

        No frame is half-read, no fragmented message begun, nothing closed.
        """
        if is_empty_pong(data):
            self._take(Opcode.PONG, b"", fin=True)
            return True
        text = whole_text(data)
        if text is None:
            return False
        try:
            self._take(TEXT, text, fin=True)
        except Exception as error:  # noqa: BLE001 - logged, as the core does
            self._fail(error)
        return True

    def _pause(self, *, paused: bool) -> None:
        if paused is not self._paused and not self._transport.is_closing():
            self._paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def eof_received(self) -> None:
        """Process the backlog and let the transport close."""
        while self._backlog and not self._flooded:
            self._go_on()
        self._parser().receive_eof()
        if self._closing:
            self._flush()
        else:
            self._begin_closing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the session, unless it already knows."""
        self._gone = True
        self._backlog = _NOTHING
        self._core = None
        if self._timer is not None:
            self._timer.cancel()
        if not self._closing:
            self._closing = True
            self._receiver.closed(_NO_CLOSE_FRAME)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    # --- private -----------------------------------------------------------------------------------

    def _parser(self) -> _Core:
        if self._core is None:
            self._core = _SPARE.pop() if _SPARE else _Core()
            self._core.lend(self._deliver, self._limits.max_message)
        return self._core

    def _send(self, opcode: Opcode, data: bytes) -> None:
        if self._closing or self._transport.is_closing():
            return
        if self._core is not None and self._core.writes:
            self._flush()  # for example a pong, which must go first
        self._transport.write(framed(opcode, data))
        if self._transport.get_write_buffer_size() > self._limits.max_buffer:
            self._receiver.overflowed()

    def _deliver(self, frame: Frame) -> None:
        self._take(frame.opcode, frame.data, fin=frame.fin)

    def _take(self, opcode: Opcode, data: BytesLike, *, fin: bool) -> None:
        if self._credit < 1:
            self._refill()
        self._credit -= 1
        if self._credit < 0:
            self.close(CloseCode.POLICY_VIOLATION, "too-many-frames")
            # Read nothing more, not even the peer's close frame.
            self._flooded = True
            self._pause(paused=True)
        if self._closing:
            return
        if opcode is not TEXT and opcode is not CONT:
            if opcode is BINARY:
                self.close(CloseCode.TEXT_ONLY)
            return
        # The core has checked the order and the total size of fragments.
        if self._message is not None:
            self._message += data
            data = self._message
        elif not fin:
            self._message = bytearray(data)
        if fin:
            self._message = None
            self._complete(data)

    def _complete(self, message: BytesLike) -> None:
        try:
            text = str(message, "utf-8")
        except UnicodeDecodeError:
            # RFC 6455 section 8.1: fail the connection, which also stops reading.
            code = CloseCode.INVALID_UTF_8
            self._parser().fail(code, code.reason)
            self._begin_closing()
        else:
            self._receiver.received(text)

    def _fail(self, error: Exception) -> None:
        """Fail the connection after an error in the receiver, as the core does (RFC 6455 section 7.1.7)."""
        core = self._parser()
        core.logger.error("message not taken", exc_info=error)
        if not self._closing:
            core.fail(StandardCode.INTERNAL_ERROR)
            self._begin_closing()

    def _refill(self) -> None:
        """Add the credit since the last time."""
        now, limits = self._loop.time(), self._limits
        passed = now - self._credited
        self._credit = min(limits.burst, self._credit + passed * limits.rate)
        self._byte_credit = min(limits.byte_burst, self._byte_credit + passed * limits.byte_rate)
        self._credited = now

    def _flush(self) -> None:
        core = self._parser()
        for data in core.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                # Half-close and read on: closing with unread bytes would reset the connection, and the peer
                # might never see the close frame.
                self._transport.write_eof()
            elif core.close_rcvd is not None:
                self._transport.close()
            # Otherwise (TLS has no half-close) the peer may still send: it closes, or the timer aborts.
        if not self._closing and self._transport.get_write_buffer_size() > self._limits.max_buffer:
            self._receiver.overflowed()

    def _begin_closing(self) -> None:
        # First, so that nothing written from here on can overflow or close again.
        self._closing = True
        self._message = None
        self._flush()
        self._timer = self._loop.call_later(self._limits.close_timeout, self._transport.abort)
        self._receiver.closed(self._code())

    def _code(self) -> int:
        """The code for the session: a peer that sends one of the gateway's own codes has just closed normally."""
        core = self._parser()
        close = core.close_sent or core.close_rcvd
        if close is None:
            return _NO_CLOSE_FRAME
        by_peer = core.close_rcvd_then_sent
        return _NORMAL_CLOSURE if by_peer and close.code in _GATEWAY_CODES else int(close.code)
