"""Sockets that listen on one address or several; the system shares new connections among those of an address.

Each has a queue of its own, so that a fleet that comes back at once finds room: a SYN that finds none is
dropped, and sent again only after a second or more (RFC 6298).
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
"""Sockets of each address."""


class CannotBind(OSError):
    """A host of those to listen on that cannot be had."""

    def __init__(self, host: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.host = host


def place(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """`QUEUES` sockets of each address that one of `hosts` has.

    All hosts or none, on one port. Nobody else has an address already. Raises `CannotBind`.
    """
    sockets: list[socket.socket] = []
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
    sockets: list[socket.socket],
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
            for number in range(QUEUES):
                one = made.enter_context(_listening(family, address, shared=number > 0))
                sockets.append(one)
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
    """A socket that listens; one that is not `shared` is the first that has the address."""
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As asyncio does: the port of a process that has just ended can be had.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        one.bind(address)
        # Not before it is bound: who would share the address, too, has not been there before us.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def give_up_silent_peer(sock: Any, *, idle: int, interval: int, within: int) -> None:
    """Have a TCP connection break when its peer does not answer for `within` seconds.

    An idle one is probed after `idle` seconds, then every `interval` seconds (tcp(7)).
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (  # not every system has all of them
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", (within - idle) // interval),
        ("TCP_USER_TIMEOUT", within * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
