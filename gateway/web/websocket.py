"""The socket side of a session: speaks RFC 6455 on a connection whose handshake is done.

No task, no queue and no timer per connection. Frames are parsed by the sans-I/O core of `websockets`,
and a connection of which nothing is half-read needs none: it is lent one when something comes. Even
that is spared where what comes is one whole text frame, as nearly all is that an ICE sends.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final, Protocol, cast

from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode as StandardCode
from websockets.frames import (  # type: ignore[attr-defined] # apply_mask: compiled where it can be
    Frame,
    Opcode,
    apply_mask,
)
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as Core
from websockets.typing import BytesLike

from client.protocol import CLOSINGS, MAX_MESSAGE, CloseCode

CLOSE_TIMEOUT: Final = 1.0
"""Seconds for a peer to answer a close frame before the transport is aborted."""
MAX_BUFFER: Final = 4 * MAX_MESSAGE
"""Bytes that may wait for a slow reader; one more and it is dropped as a slow consumer."""
SLICE: Final = 1024
"""Bytes that are parsed before others have their turn: a millisecond or two of the smallest frames."""
RATE: Final = 1000
"""Frames a second that a peer may send for long,"""
BURST: Final = 5000
"""and at once."""
TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
CONT: Final = Opcode.CONT
_MAX_CONTROL: Final = 125  # RFC 6455 section 5.5
_FIN: Final = 0x80  # RFC 6455 section 5.2
_MASK: Final = 0x80
_NO_CLOSE_FRAME: Final = 1006  # RFC 6455 section 7.1.5
_LEFT: Final = 1000
_OURS: Final = frozenset(code for code in CloseCode if code >= CloseCode.RESTART)
"""Codes that only a gateway has a reason for."""


class Receiver(Protocol):
    """What a wire tells of. `closed` comes once: from then on nothing is delivered."""

    def received(self, text: str) -> None:
        """A whole text message has come."""

    def overflowed(self) -> None:
        """More than `MAX_BUFFER` bytes wait for the peer to read."""

    def closed(self, code: int) -> None:
        """The connection is closing, with the code that was sent or received first."""


class _Core(Core):
    """The parser; hands over each frame before it reads the next, which may be the peer's farewell."""

    deliver: Callable[[Frame], None]

    def __init__(self) -> None:
        super().__init__(SERVER, state=OPEN, max_size=MAX_MESSAGE)
        self.unread = 0
        """Bytes that were fed, which the wire counts, less those of the frames that came of them."""

    def recv_frame(self, frame: Frame) -> None:
        size = self.current_size
        if frame.opcode is Opcode.CLOSE:
            # It may come within a message in fragments (RFC 6455 section 5.4), which is then never
            # complete. The library would fail the connection with 1002 in place of the peer's code.
            self.current_size = None
        super().recv_frame(frame)
        if size is not None or self.current_size is not None:
            self._bound(frame, size)
        self.events.clear()
        length = len(frame.data)
        # RFC 6455 section 5.2, at the least: who writes a length longer than it needs to be keeps a parser.
        self.unread -= length + (6 if length < 126 else 8 if length < 65536 else 14)  # noqa: PLR2004
        self.deliver(frame)

    def _bound(self, frame: Frame, size: int | None) -> None:
        """Bound a message in fragments, of which there were `size` bytes before this frame.

        A control frame within it is no part of it (RFC 6455 section 5.4), but takes of the core's limit.
        """
        if frame.opcode is CONT and size is not None and size + len(frame.data) > MAX_MESSAGE:
            raise PayloadTooBig(len(frame.data), MAX_MESSAGE - size)
        self.max_message_size = MAX_MESSAGE + (0 if self.current_size is None else _MAX_CONTROL)


def framed(opcode: Opcode, data: bytes) -> bytes:
    """`data` as one frame of a server: final, unmasked (RFC 6455 section 5.2)."""
    size = len(data)
    if size < 126:  # noqa: PLR2004 - the RFC's own numbers
        return bytes((_FIN | opcode, size)) + data
    if size < 65536:  # noqa: PLR2004
        return struct.pack("!BBH", _FIN | opcode, 126, size) + data
    return struct.pack("!BBQ", _FIN | opcode, 127, size) + data


def whole_text(data: bytes) -> bytes | None:
    """The payload of `data` where that is exactly one unfragmented, masked text frame of a client.

    None for all else, which is the core's to read: fragments, reserved bits, no mask, 64 KiB or more
    (RFC 6455 section 5.2). `MAX_MESSAGE` is not looked at: the wire gives `SLICE` bytes at the most.
    """
    size = len(data) - 6  # two bytes and the masking key
    if size < 0 or data[0] != _FIN | TEXT:
        return None
    if size < 126:  # noqa: PLR2004 - the RFC's own numbers
        return apply_mask(data[6:], data[2:6]) if data[1] == _MASK | size else None
    size -= 2  # the length, in two bytes more
    if data[1] != _MASK | 126 or size != data[2] << 8 | data[3]:
        return None
    return apply_mask(data[8:], data[4:8])


_NOTHING: Final = memoryview(b"")
_SPARE: Final[list[_Core]] = []
_MAX_SPARE: Final = 64


class WebSocket(asyncio.Protocol):
    """One WebSocket, server side."""

    __slots__ = (
        "_backlog",
        "_closing",
        "_core",
        "_credit",
        "_credited",
        "_flooded",
        "_gone",
        "_loop",
        "_lost",
        "_message",
        "_paused",
        "_receiver",
        "_timer",
        "_transport",
        "heard",
    )

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._core: _Core | None = None
        self._backlog = _NOTHING
        self._paused = False
        self._flooded = False
        self._credit = float(BURST)
        self._credited = 0.0
        self._message: bytearray | None = None
        self._closing = False
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        """When anything was last received, in the loop's time."""
        self._lost: asyncio.Future[None] | None = None

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when the transport is gone."""
        if self._lost is None:
            self._lost = self._loop.create_future()
            if self._gone:
                self._lost.set_result(None)
        return self._lost

    # --- what the session asks for ---------------------------------------------------------------

    def send(self, text: bytes) -> None:
        """Send one text message; nothing once the connection is closing."""
        self._send(TEXT, text)

    def ping(self) -> None:
        """Send a ping; the answer moves `heard`."""
        self._send(Opcode.PING, b"")

    def close(self, code: int, reason: str | None = None) -> None:
        """Write the close frame now; abort the transport if the peer does not answer in time.

        The reason is the catalogue's where none is given.
        """
        if not self._closing:
            self._parser().send_close(code, CLOSINGS[code].reason if reason is None else reason)
            self._begin_closing()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, on a transport whose handshake is done."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._credited = self._loop.time()

    def begin_with(self, data: bytes) -> None:
        """Receive what came behind the handshake: soon, so that the welcome goes out first."""
        self._backlog = memoryview(data)
        self._loop.call_soon(self._go_on)

    def data_received(self, data: bytes) -> None:
        """Parse and deliver; what is longer than a slice, slice by slice."""
        self.heard = self._loop.time()
        if self._backlog:
            # The loop may bring what came later sooner than what it was asked to call soon.
            self._backlog = memoryview(bytes(self._backlog) + data)
        elif len(data) <= SLICE:
            self._feed(data)
        else:
            self._feed_slice(memoryview(data))

    def _go_on(self) -> None:
        data, self._backlog = self._backlog, _NOTHING
        if data:
            self._feed_slice(data)

    def _feed_slice(self, data: memoryview) -> None:
        """Parse a slice and leave the rest for later: one ICE's flood holds up nobody else."""
        self._feed(bytes(data[:SLICE]))
        if self._flooded:
            return
        self._backlog = data[SLICE:] if len(data) > SLICE else _NOTHING
        self._pause(paused=bool(self._backlog))
        if self._backlog:
            self._loop.call_soon(self._go_on)

    def _feed(self, data: bytes) -> None:
        """Parse `SLICE` bytes at the most; without a parser where they are one whole text."""
        core = self._core
        if core is None:
            # Nothing is half-read, no message in fragments begun, nothing closed.
            text = whole_text(data)
            if text is not None:
                try:
                    self._take(TEXT, text, fin=True)
                except Exception as error:  # noqa: BLE001 - logged, as by the core where it delivers
                    self._fail(error)
                return
            core = self._parser()
        core.unread += len(data)
        core.receive_data(data)
        if core.state is not OPEN:
            if self._closing:
                self._flush()
            else:
                # The peer closed, or broke the protocol and the core has failed the connection.
                self._begin_closing()
            return
        if core.writes:
            self._flush()
            if self._closing:
                return  # the peer does not read
        if core.unread == 0 and core.current_size is None:
            # It is as new: no frame and no message is half-read, nothing closed, nothing to send.
            self._core = None
            del core.deliver  # which refers to this wire
            if len(_SPARE) < _MAX_SPARE:
                _SPARE.append(core)

    def _pause(self, *, paused: bool) -> None:
        if paused is not self._paused and not self._transport.is_closing():
            self._paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def eof_received(self) -> None:
        """Let the transport close: there is nothing more to come."""
        while self._backlog and not self._flooded:
            self._go_on()
        self._parser().receive_eof()
        if self._closing:
            self._flush()
        else:
            self._begin_closing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the session, unless it knows."""
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

    # --- inside ----------------------------------------------------------------------------------

    def _parser(self) -> _Core:
        if self._core is None:
            self._core = _SPARE.pop() if _SPARE else _Core()
            self._core.deliver = self._deliver
        return self._core

    def _send(self, opcode: Opcode, data: bytes) -> None:
        if self._closing or self._transport.is_closing():
            return
        if self._core is not None and self._core.writes:
            self._flush()  # a pong, perhaps, that comes first
        self._transport.write(framed(opcode, data))
        if self._transport.get_write_buffer_size() > MAX_BUFFER:
            self._receiver.overflowed()

    def _deliver(self, frame: Frame) -> None:
        self._take(frame.opcode, frame.data, fin=frame.fin)

    def _take(self, opcode: Opcode, data: BytesLike, *, fin: bool) -> None:
        if self._credit < 1:
            self._refill()
        self._credit -= 1
        if self._credit < 0:
            self.close(CloseCode.POLICY_VIOLATION, "too-many-frames")
            # Not even its farewell is waited for.
            self._flooded = True
            self._pause(paused=True)
        if self._closing:
            return
        if opcode is not TEXT and opcode is not CONT:
            if opcode is BINARY:
                self.close(CloseCode.TEXT_ONLY)
            return
        # The core has checked their order and the size of all fragments together.
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
            # Section 8.1: the connection is failed, which is more than closed: nothing is heard any more.
            code = CloseCode.INVALID_UTF_8
            self._parser().fail(code, code.reason)
            self._begin_closing()
        else:
            self._receiver.received(text)

    def _fail(self, error: Exception) -> None:
        """Fail the connection, as the core does where what it delivers is not taken (RFC 6455 section 7.1.7)."""
        core = self._parser()
        core.logger.error("message not taken", exc_info=error)
        if not self._closing:
            core.fail(StandardCode.INTERNAL_ERROR)
            self._begin_closing()

    def _refill(self) -> None:
        """What the peer may send by now: `RATE` frames a second, `BURST` at once."""
        now = self._loop.time()
        self._credit = min(float(BURST), self._credit + (now - self._credited) * RATE)
        self._credited = now

    def _flush(self) -> None:
        core = self._parser()
        for data in core.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                # Half-close and read on: to close with unread bytes would reset the connection, and
                # the peer might never see the close frame.
                self._transport.write_eof()
            elif core.close_rcvd is not None:
                self._transport.close()
            # Otherwise (TLS knows no half-close) the peer may still be sending: it closes, or the
            # timer aborts.
        if not self._closing and self._transport.get_write_buffer_size() > MAX_BUFFER:
            self._receiver.overflowed()

    def _begin_closing(self) -> None:
        # First of all, since whatever is written from here on can neither overflow nor close again.
        self._closing = True
        self._message = None
        self._flush()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)
        self._receiver.closed(self._code())

    def _code(self) -> int:
        """Why the connection ends; a peer that leaves does not say in our name that it was dropped."""
        core = self._parser()
        close = core.close_sent or core.close_rcvd
        if close is None:
            return _NO_CLOSE_FRAME
        return _LEFT if core.close_rcvd_then_sent and close.code in _OURS else int(close.code)
