"""TLS on an accepted connection: asyncio's transport for the protocol above it.

asyncio's and uvloop's own TLS keep a read buffer of 256 KiB for each connection, of which an idle one still holds a
page or two. Here the data comes through the one buffer of the loop.

Tested in tests/gateway/web/test_tls_transport.py.
"""

from __future__ import annotations

import asyncio
import enum
import math
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

RECORD: Final = 16 * 1024
"""Maximum bytes of data in a TLS record (RFC 8446 section 5.1); OpenSSL's buffers keep the size of what was in them."""

MAX_ANSWERS: Final = 256 * 1024
"""Bytes of TLS's own answers, such as updates of keys, that may wait for a client that reads nothing."""
_NO_EXTRA: Final[dict[str, Any]] = {}  # otherwise each transport would have a dictionary of its own


class _State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """Our close_notify was sent; what still arrives is discarded, until that of the client comes."""
    CLOSED = enum.auto()


class TlsTransport(asyncio.Protocol, asyncio.Transport):
    """One connection: the protocol of its socket, and the transport of the protocol above.

    Args:
        protocol_factory: makes the protocol above, after the handshake.
        context: holds the server's certificate.
        waiter: is done when the handshake is done or has failed.
        handshake_timeout: seconds for the handshake.
        shutdown_timeout: seconds for a client to read more of what waits, then to answer our close_notify.
    """

    __slots__ = (
        "_answers",
        "_app",
        "_context",
        "_end_met",
        "_handshake_timeout",
        "_incoming",
        "_loop",
        "_outgoing",
        "_paused",
        "_protocol_factory",
        "_shutdown_timeout",
        "_ssl",
        "_state",
        "_tcp",
        "_timer",
        "_waiter",
    )

    def __init__(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext,
        waiter: asyncio.Future[None],
        *,
        handshake_timeout: float,
        shutdown_timeout: float,
    ) -> None:
        super().__init__(_NO_EXTRA)
        self._protocol_factory = protocol_factory
        self._context = context
        self._waiter: asyncio.Future[None] | None = waiter
        self._handshake_timeout = handshake_timeout
        self._shutdown_timeout = shutdown_timeout
        self._loop = asyncio.get_running_loop()
        self._app: asyncio.Protocol | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = _State.HANDSHAKE
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._answers = 0
        self._end_met = False

    # --- the protocol of the socket ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client to begin the handshake."""
        self._tcp = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self._timer = self._loop.call_later(self._handshake_timeout, self.abort)

    def data_received(self, data: bytes) -> None:
        """Decrypt, a record's size at a time."""
        view = memoryview(data)
        for start in range(0, len(data), RECORD):
            self._incoming.write(view[start : start + RECORD])
            if self._state is _State.HANDSHAKE:
                self._shake_hands()
            self._read()

    def eof_received(self) -> None:
        """Let the socket close: what came before is delivered, and nothing more can be trusted to be complete."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol above."""
        self._state = _State.CLOSED
        self._stop_timer()
        self._wake()
        app, self._app = self._app, None
        if app is not None:
            app.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it to the protocol above."""
        if self._app is not None:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        """Pass it to the protocol above."""
        if self._app is not None:
            self._app.resume_writing()

    # --- the transport of the protocol above -------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the socket has, besides `sslcontext` and `ssl_object`."""
        if name == "sslcontext":
            return self._context
        return self._ssl if name == "ssl_object" else self._tcp.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Use another protocol from now on."""
        self._app = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol above."""
        assert self._app is not None  # noqa: S101 - only that protocol asks
        return self._app

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; what the socket does not take at once waits there."""
        if self._state is not _State.OPEN:
            return
        view = memoryview(data)
        try:
            for start in range(0, len(data), RECORD):
                self._ssl.write(view[start : start + RECORD])
                self._flush()
        except ssl.SSLError:  # such as after an alert of the client
            self.abort()

    def can_write_eof(self) -> bool:
        """TLS has no half-close here."""
        return False

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that wait for the client to read."""
        return self._tcp.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the limits of encrypted bytes."""
        self._tcp.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        """Deliver nothing more, not even what has arrived."""
        self._paused = True
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Deliver what has arrived, then read on."""
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._read_on)

    def is_reading(self) -> bool:
        """Whether it delivers what arrives."""
        return not self._paused and not self.is_closing()

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._state is not _State.OPEN or self._tcp.is_closing()

    def close(self) -> None:
        """Send close_notify, and close when the client has answered or time is up.

        What was written before is sent as long as the client reads; a protocol that cannot wait aborts.
        """
        if self._state is _State.OPEN:
            self._state = _State.CLOSING
            self._limit_shutdown()
            self._tcp.resume_reading()
            self._read()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._state = _State.CLOSED
        self._tcp.abort()

    # --- private -----------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError:
            self._flush()  # an alert says why
            self.abort()
            return
        self._flush()
        self._stop_timer()
        self._state = _State.OPEN
        self._app = cast("asyncio.Protocol", self._protocol_factory())
        self._app.connection_made(self)
        self._wake()

    def _read_on(self) -> None:
        try:
            self._read()
        except BaseException:
            self.abort()  # as the socket's transport does if `data_received` fails
            raise
        if not self._paused and not self._tcp.is_closing():
            self._tcp.resume_reading()

    def _read(self) -> None:
        """Deliver what has arrived; while closing discard it."""
        while self._may_read():
            data = self._decrypt()
            if not data:
                break
            if self._state is _State.OPEN and self._app is not None:
                self._app.data_received(data)
        if self._state is _State.CLOSING:
            self._say_goodbye()
        elif self._state is _State.OPEN:
            self._answer()

    def _may_read(self) -> bool:
        if self._tcp.is_closing():
            return False  # such as after an answer that could not be sent: `connection_lost` comes next
        return (self._state is _State.OPEN and not self._paused) or self._state is _State.CLOSING

    def _decrypt(self) -> bytes:
        """The data that has arrived, up to `RECORD` bytes; empty if there is none, or the client sends no more.

        Small records are joined: otherwise each byte of a client could cost a call of the protocol above.
        """
        first = self._decrypt_record()
        if not first or len(first) == RECORD or not self._incoming.pending:
            return first
        found, left = [first], RECORD - len(first)
        try:
            while left and (data := self._ssl.read(left)):
                found.append(data)
                left -= len(data)
            self._end_met = left > 0
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._end_met = True
        return b"".join(found)

    def _decrypt_record(self) -> bytes:
        # A joined read may have met the end and returned its data first: OpenSSL then says again how it ended.
        if not self._incoming.pending and not self._ssl.pending() and not self._end_met:
            return b""  # known without an exception
        try:
            data = self._ssl.read(RECORD)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):  # the latter while closing
            return b""
        except ssl.SSLError:
            self._flush()  # an alert says why
            self.abort()
            return b""
        if not data and self._state is _State.OPEN and self._app is not None:
            self._app.eof_received()
            self.close()
        return data

    def _say_goodbye(self) -> None:
        """Send our close_notify, once; close the socket when that of the client has arrived."""
        try:
            self._ssl.unwrap()
        except ssl.SSLWantReadError:
            self._answer()
        except ssl.SSLError:
            self._flush()
            self.abort()
        else:
            self._flush()
            self._state = _State.CLOSED
            self._stop_timer()
            self._tcp.close()

    def _limit_shutdown(self, left: float = math.inf) -> None:
        """Abort once the client reads none of what waits for it; `left` bytes waited the last time."""
        waiting = self._tcp.get_write_buffer_size()
        if waiting < left:
            self._timer = self._loop.call_later(
                self._shutdown_timeout, self._limit_shutdown, waiting
            )
        else:
            self.abort()

    def _answer(self) -> None:
        """Send what TLS itself says, such as an update of keys; abort for a client that asks and does not read."""
        if self._outgoing.pending:
            unread = self._tcp.get_write_buffer_size() > 0
            self._answers = self._outgoing.pending + (self._answers if unread else 0)
            self._flush()
            if self._answers > MAX_ANSWERS:
                self.abort()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._tcp.write(data)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
