"""Accepts TLS connections and tracks those in the TLS handshake.

The protocol above sees a connection only after the handshake. Until then load shedding counts it here, and may
abort it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final

from gateway.web.load_shedding import LoadShedding
from gateway.web.tls_transport import TlsTransport

_AFTER_SHEDDING: Final = 0.01
"""Seconds until the handles of aborted connections are released."""
_NO_HANDLE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Handshake:
    """A connection in its TLS handshake."""

    authenticated = False

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def abort(self) -> None:
        """See `load_shedding.Connection`; the handshake then fails and closes it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class TlsAcceptor:
    """Accepts on one listening socket and owns it.

    Args:
        listening: a bound socket that listens.
        protocol_factory: makes the protocol of a connection after its handshake.
        context: holds the server's certificate.
        load_shedding: tracks each connection.
        at_once: maximum connections accepted in one turn of the loop.
        handshake_timeout: seconds for a handshake.
        shutdown_timeout: seconds for a client to answer our close_notify.
        retry: seconds without accepting after the system ran out of handles.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext,
        load_shedding: LoadShedding,
        *,
        at_once: int,
        handshake_timeout: float,
        shutdown_timeout: float,
        retry: float,
    ) -> None:
        listening.setblocking(False)  # noqa: FBT003 - its only argument
        self.sockets = (listening,)
        self._listening = listening
        self._protocol_factory = protocol_factory
        self._context = context
        self._load_shedding = load_shedding
        self._at_once = at_once
        self._handshake_timeout = handshake_timeout
        self._shutdown_timeout = shutdown_timeout
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._closed = False
        self._start_accepting()

    def close(self) -> None:
        """Stop accepting and cancel unfinished handshakes."""
        self._closed = True
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for task in self._handshakes:
            task.cancel()

    def _start_accepting(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(self._at_once):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_HANDLE:
                    raise
                self._loop.remove_reader(self._listening)
                pause = _AFTER_SHEDDING if self._load_shedding.shed(self._at_once) else self._retry
                self._loop.call_later(pause, self._start_accepting)
                return
            handshake = _Handshake(connection)
            short = self._load_shedding.accepted(handshake, connection.fileno())
            task = self._loop.create_task(self._shake_hands(handshake))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
            if short:
                return  # continue in the next turn: a burst would use up the reserve

    async def _shake_hands(self, handshake: _Handshake) -> None:
        connection = handshake.connection
        connection.setblocking(False)  # noqa: FBT003
        done = self._loop.create_future()
        transport = TlsTransport(
            self._protocol_factory,
            self._context,
            done,
            handshake_timeout=self._handshake_timeout,
            shutdown_timeout=self._shutdown_timeout,
        )
        try:
            await self._loop.connect_accepted_socket(lambda: transport, connection)
        except OSError:  # closed by the client
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        else:
            try:
                await done
            except asyncio.CancelledError:
                transport.abort()
                raise
        finally:
            self._load_shedding.forget(handshake)
