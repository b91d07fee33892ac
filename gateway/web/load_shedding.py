"""Which connections are cut when file handles run short, so that an ICE or an admin still gets one.

A connection holds a handle from the moment it is accepted, long before anybody knows whose it is. Strangers
could hold all of them with one byte each. So every connection that is no session of an ICE is kept here
by what it does. When handles run short connections are cut in this order, the oldest first: strangers that
wait, strangers that are served (a body that trickles in, an answer that is not read), authenticated callers
between two requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from gateway.runtime.fd_limits import is_among_the_last

MARGIN: Final = 256
"""Handles kept free of strangers, of a small limit a quarter: the loop may accept as many in one turn."""
_CROWD: Final = 32
"""No connection is cut while there are fewer than this: something else holds the handles."""
_AT_ONCE: Final = 2
"""Connections cut for each new one, so that the reserve recovers."""
_LOG_EVERY: Final = 60.0
"""Seconds between two lines about it."""
_log = structlog.get_logger()


class Connection(Protocol):
    """A connection that can be cut."""

    authenticated: bool
    """Whether a request on it came from a known caller."""

    def cut(self) -> None:
        """Close it without a word, and give its handle back."""


class LoadShedding:
    """The connections of a gateway that are no sessions."""

    def __init__(
        self,
        count: Callable[[int], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count` is called with how many connections were cut; `monotonic` is seconds that pass."""
        self._count = count
        self._monotonic = monotonic
        self._idle_strangers: dict[Connection, None] = {}
        self._served_strangers: dict[Connection, None] = {}
        self._idle_callers: dict[Connection, None] = {}
        self._log_at = -_LOG_EVERY
        self._unlogged = 0

    def accepted(self, connection: Connection, handle: int) -> bool:
        """A new connection waits for its first request; others are cut where handles run short.

        Returns whether they do: their handles come back in a later turn of the loop.
        """
        crowd = len(self._idle_strangers) + len(self._served_strangers) + len(self._idle_callers)
        short = crowd > _CROWD and is_among_the_last(handle, MARGIN)
        if short:
            self.shed(_AT_ONCE)
        self._idle_strangers[connection] = None
        return short

    def idle(self, connection: Connection) -> None:
        """It waits for a request."""
        self.forget(connection)
        idle = self._idle_callers if connection.authenticated else self._idle_strangers
        idle[connection] = None

    def served(self, connection: Connection) -> None:
        """A request on it is being answered; who sent it is not known yet."""
        self.forget(connection)
        self._served_strangers[connection] = None

    def mark_authenticated(self, connection: Connection) -> None:
        """The request comes from a known caller: it is not cut while it is answered."""
        connection.authenticated = True
        self._served_strangers.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """It is closed, an ICE's, or about to be."""
        self._idle_strangers.pop(connection, None)
        self._served_strangers.pop(connection, None)
        self._idle_callers.pop(connection, None)

    def shed(self, count: int = 1) -> int:
        """Cut as many as `count`; returns how many there were to cut."""
        done = 0
        for group in (self._idle_strangers, self._served_strangers, self._idle_callers):
            while group and done < count:
                connection = next(iter(group))
                del group[connection]
                connection.cut()
                done += 1
        self._note(done)
        return done

    def _note(self, done: int) -> None:
        self._count(done)
        self._unlogged += done
        now = self._monotonic()
        if done and now - self._log_at >= _LOG_EVERY:
            _log.warning(
                "file handles run short: connections that were no sessions were cut",
                count=self._unlogged,
            )
            self._log_at, self._unlogged = now, 0
