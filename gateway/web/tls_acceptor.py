"""Accepts connections for TLS, and knows those whose handshake is not done.

A loop's own server shows a connection to its protocol after the handshake alone. Until then a stranger's
connection could not be counted, nor cut when file handles run short.
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

_RETRY: Final = 1.0
"""Seconds without accepting where the system had no handle left, as in asyncio."""
_AFTER_SHEDDING: Final = 0.01
"""Seconds for the handles of connections that were cut to come back."""
_NO_HANDLE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Handshake:
    """A connection that speaks no TLS yet."""

    authenticated = False

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def cut(self) -> None:
        """See `load_shedding.Connection`: its end is the end of the handshake."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class TlsAcceptor:
    """Accepts on one listening socket, which is its own from here on.

    Args:
        listening: bound, listening, and not blocking.
        protocol_factory: makes the protocol of a connection whose handshake is done.
        context: the server's certificate.
        load_shedding: is told of each connection.
        at_once: connections accepted in one turn of the loop.
        handshake_timeout: seconds for a handshake.
        shutdown_timeout: seconds for a client to answer the end of TLS.
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
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._closed = False
        self._begin()

    def close(self) -> None:
        """Accept no connection any more; handshakes that are not done end."""
        self._closed = True
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for task in self._handshakes:
            task.cancel()

    def _begin(self) -> None:
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
                pause = _AFTER_SHEDDING if self._load_shedding.shed(self._at_once) else _RETRY
                self._loop.call_later(pause, self._begin)
                return
            handshake = _Handshake(connection)
            short = self._load_shedding.accepted(handshake, connection.fileno())
            task = self._loop.create_task(self._shake_hands(handshake))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
            if short:
                return  # to the next turn: a burst would take the handles that are kept free

    async def _shake_hands(self, handshake: _Handshake) -> None:
        connection = handshake.connection
        connection.setblocking(False)  # noqa: FBT003
        try:
            await self._loop.connect_accepted_socket(
                self._protocol_factory,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_timeout,
                ssl_shutdown_timeout=self._shutdown_timeout,
            )
        except OSError:  # it was cut, went away, took too long, or speaks another protocol
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            self._load_shedding.forget(handshake)
