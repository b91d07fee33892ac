"""Sockets on one address for several processes of this machine, among which the system shares what comes."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

BACKLOG: Final = 4096
"""Connections that may wait to be accepted; Linux cuts it to net.core.somaxconn."""


def bind(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """Listening sockets for each of `count` processes: one of each address that `host` has.

    Nobody else has the address already. Raises `OSError`.
    """
    shares: list[list[socket.socket]] = [[] for _ in range(count)]
    with contextlib.ExitStack() as made:

        def listening(family: int, address: Any, *, shared: bool) -> socket.socket:
            one = made.enter_context(socket.socket(family, socket.SOCK_STREAM))
            # As asyncio does: the port of a process that has just ended can be had.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
            one.bind(address)
            # Not before it is bound: who would share the address, too, has not been there before us.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.listen(BACKLOG)
            return one

        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            own = (address[0], port, *address[2:])
            for share in shares:
                share.append(listening(family, own, shared=share is not shares[0]))
                own = share[-1].getsockname()
            port = own[1]  # where any was asked for it is the same for all
        made.pop_all()
    return shares
