"""Opens listening sockets; the system distributes new connections among the sockets of an address.

Each socket has its own queue, so that a whole fleet can reconnect at once: a SYN that finds the queue full is
dropped, and resent only after a second or more (RFC 6298).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

BACKLOG: Final = 4096
"""Connections that may wait at a socket to be accepted; Linux limits it to net.core.somaxconn."""
QUEUES: Final = 4 if sys.platform == "linux" else 1
"""Sockets for each address. Outside Linux one of them would get every connection."""


class CannotBind(OSError):
    """A host that cannot be listened on."""

    def __init__(self, host: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.host = host


def host_port(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Open `QUEUES` listening sockets for each address of `hosts`, all on one port.

    Raises `CannotBind` and opens none if a host fails, for instance since another process has its address.
    """
    sockets: list[socket.socket] = []
    bound: set[Any] = set()
    with contextlib.ExitStack() as opened:
        for host in hosts:
            try:
                port = _bind_host(host, port, sockets, bound, opened)
            except OSError as error:
                raise CannotBind(host, error) from error
        opened.pop_all()
    return sockets


def _bind_host(
    host: str,
    port: int,
    sockets: list[socket.socket],
    bound: set[Any],
    opened: contextlib.ExitStack,
) -> int:
    """Add sockets for the addresses of one host that are not in `bound`; returns the port. Raises `OSError`."""
    unavailable: OSError | None = None
    any_bound = False
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, (name, _, *rest) in dict.fromkeys(found):
        address: Any = (name, port, *rest)
        if (family, address) in bound:
            any_bound = True
            continue
        try:
            for number in range(QUEUES):
                one = opened.enter_context(_listener(family, address, shared=number > 0))
                sockets.append(one)
                address = one.getsockname()
        except OSError as error:
            if error.errno not in _UNAVAILABLE:
                raise
            unavailable = error  # like asyncio: another address of the host may work
        else:
            any_bound = True
            port = address[1]  # port 0 gave one; use it for all
            bound.add((family, address))
    if unavailable is not None and not any_bound:
        raise unavailable
    return port


_UNAVAILABLE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def _listener(family: int, address: Any, *, shared: bool) -> socket.socket:
    """Open a listening socket; unless `shared`, fail if another socket has the address."""
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Like asyncio: reuse the port of a process that has just ended.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        one.bind(address)
        # Only once bound: setting it earlier would let the bind share an address with another process.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def give_up_silent_peer(sock: Any, *, idle: int, interval: int, within: int) -> None:
    """Make the system break a TCP connection whose peer does not answer for `within` seconds.

    An idle connection is probed after `idle` seconds, then every `interval` seconds (tcp(7)).
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (  # some systems lack some of them
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", (within - idle) // interval),
        ("TCP_USER_TIMEOUT", within * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
