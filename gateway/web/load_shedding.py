"""Closes connections when file handles run short, so that ICEs and admins can still connect.

A connection takes a handle when it is accepted, long before the gateway can identify the client. Strangers
could take all handles with one byte each. So this module tracks every connection that is not an ICE's session.
When handles run short it aborts connections in this order, oldest first: idle strangers, strangers in a request
(a body that trickles in, a response that is not read), idle authenticated callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from gateway.runtime.fd_limits import is_among_the_last

MARGIN: Final = 256
"""Handles kept free of strangers (a quarter of a small limit): the loop may accept as many in one turn."""
_CROWD: Final = 32
"""Up to so many connections none is aborted: something else holds the handles."""
_AT_ONCE: Final = 2
"""Connections aborted for each new one, so that the reserve recovers."""
_LOG_EVERY: Final = 60.0
"""Seconds between two log lines."""
_log = structlog.get_logger()


class Connection(Protocol):
    """A connection that can be aborted."""

    authenticated: bool
    """Whether an authenticated caller sent a request on it."""

    def abort(self) -> None:
        """Close it without a response and release its handle."""


class LoadShedding:
    """The connections of a gateway that are not sessions."""

    def __init__(
        self,
        count: Callable[[int], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count` gets the number of aborted connections; `monotonic` is a clock in seconds."""
        self._count = count
        self._monotonic = monotonic
        self._idle_strangers: dict[Connection, None] = {}
        self._served_strangers: dict[Connection, None] = {}
        self._idle_callers: dict[Connection, None] = {}
        self._log_at = -_LOG_EVERY
        self._unlogged = 0

    def accepted(self, connection: Connection, handle: int) -> bool:
        """Add a new connection; abort others if handles run short.

        Returns whether they run short: the handles are released in a later turn of the loop.
        """
        crowd = len(self._idle_strangers) + len(self._served_strangers) + len(self._idle_callers)
        short = crowd > _CROWD and is_among_the_last(handle, MARGIN)
        if short:
            self.shed(_AT_ONCE)
        self._idle_strangers[connection] = None
        return short

    def idle(self, connection: Connection) -> None:
        """Note that it waits for a request."""
        self.forget(connection)
        idle = self._idle_callers if connection.authenticated else self._idle_strangers
        idle[connection] = None

    def served(self, connection: Connection) -> None:
        """Note that it answers a request whose caller is not authenticated yet."""
        self.forget(connection)
        self._served_strangers[connection] = None

    def mark_authenticated(self, connection: Connection) -> None:
        """Note that the caller is authenticated: it is not aborted during the request."""
        connection.authenticated = True
        self._served_strangers.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is closed or becomes an ICE's session."""
        self._idle_strangers.pop(connection, None)
        self._served_strangers.pop(connection, None)
        self._idle_callers.pop(connection, None)

    def shed(self, count: int = 1) -> int:
        """Abort up to `count` connections; returns how many."""
        done = 0
        for group in (self._idle_strangers, self._served_strangers, self._idle_callers):
            while group and done < count:
                connection = next(iter(group))
                del group[connection]
                connection.abort()
                done += 1
        self._report(done)
        return done

    def _report(self, done: int) -> None:
        self._count(done)
        self._unlogged += done
        now = self._monotonic()
        if done and now - self._log_at >= _LOG_EVERY:
            _log.warning(
                "file handles run short: connections that were no sessions were cut",
                count=self._unlogged,
            )
            self._log_at, self._unlogged = now, 0
