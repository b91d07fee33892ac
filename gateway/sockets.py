"""Sockets on one address or several, for one process or several, among which the system shares what comes.

Each has a queue of its own, and a process several sockets, so that a fleet that comes back at once finds room:
a SYN that finds none is dropped, and sent again only after a second or more (RFC 6298).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

BACKLOG: Final = 4096
"""Connections that may wait at a socket to be accepted; Linux cuts it to net.core.somaxconn."""
QUEUES: Final = 4 if sys.platform == "linux" else 1  # elsewhere one of them would get all
"""Sockets that a process has of each address."""


class Share:
    """The sockets of one process: those that were bound for it, or others in their place after its death.

    Nobody else keeps them, so that they end with it, and what comes goes to the others. The address is
    kept for all meanwhile, by sockets that do not listen.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = list(sockets)
        self._places = [(one.family, one.getsockname()) for one in sockets]
        self._kept = [_keeping(family, address) for family, address in dict.fromkeys(self._places)]

    def take(self) -> list[socket.socket]:
        """Listening sockets, which are the caller's to close. Raises `OSError`."""
        taken, self._sockets = self._sockets, []
        if taken:
            return taken
        with contextlib.ExitStack() as made:
            taken = [
                made.enter_context(_listening(family, address, shared=True))
                for family, address in self._places
            ]
            made.pop_all()
        return taken

    @property
    def port(self) -> int:
        """Where they listen."""
        return int(self._places[0][1][1])

    def close(self) -> None:
        """Close what nobody has taken, and let the address go."""
        for one in (*self._sockets, *self._kept):
            one.close()


class CannotBind(OSError):
    """A host of those to listen on that cannot be had."""

    def __init__(self, host: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.host = host


def place(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(hosts: Sequence[str], port: int, count: int) -> list[Share]:
    """A share of `listening` for each of `count` processes."""
    return [Share(sockets) for sockets in listening(hosts, port, count)]


def listening(hosts: Sequence[str], port: int, count: int) -> list[list[socket.socket]]:
    """For each of `count` processes `QUEUES` sockets of each address that one of `hosts` has.

    All hosts or none, on one port. Nobody else has an address already. Raises `CannotBind`.
    """
    sockets: list[list[socket.socket]] = [[] for _ in range(count)]
    bound: set[Any] = set()
    with contextlib.ExitStack() as made:
        for host in hosts:
            try:
                port = _bind_host(host, port, sockets, bound, made)
            except OSError as error:
                raise CannotBind(host, error) from error
        made.pop_all()
    return sockets


def _bind_host(
    host: str,
    port: int,
    sockets: list[list[socket.socket]],
    bound: set[Any],
    made: contextlib.ExitStack,
) -> int:
    """Add the sockets of one host's addresses, but those in `bound`; returns their port. Raises `OSError`."""
    missing: OSError | None = None
    there = False
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, (name, _, *rest) in dict.fromkeys(found):
        address: Any = (name, port, *rest)
        if (family, address) in bound:
            there = True
            continue
        try:
            for number in range(len(sockets) * QUEUES):
                one = made.enter_context(_listening(family, address, shared=number > 0))
                sockets[number % len(sockets)].append(one)
                address = one.getsockname()
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            missing = error  # as asyncio does: another address may be there
        else:
            there = True
            port = address[1]  # where any was asked for it is the same for all
            bound.add((family, address))
    if missing is not None and not there:
        raise missing
    return port


_NOT_THERE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def _listening(family: int, address: Any, *, shared: bool) -> socket.socket:
    one = _bound(family, address, shared=shared)
    try:
        # Not before it is bound: who would share the address, too, has not been there before us.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def _keeping(family: int, address: Any) -> socket.socket:
    """Lets nobody else have the address, also while nobody listens there."""
    one = _bound(family, address, shared=True)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return one


def _bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As asyncio does: the port of a process that has just ended can be had.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one
