"""File handles: every connection is one, and the system gives a process only so many.

Some are kept free for what must go on: the key file, and connections that are answered and let go.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

RESERVE: Final = 64
"""Handles kept free; of a small limit a quarter."""
BESIDE: Final = 1024
"""Handles that a gateway needs beside those of connections: those that listen (`sockets.QUEUES` times
`listener.DOORS` for each of two addresses, `DOORS` for the metrics), the database's, `RESERVE`."""


def raise_limit() -> None:
    """Let this process have as many as the system allows: the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_among_the_last(handle: int, reserve: int = RESERVE) -> bool:
    """Whether a connection has one of the `reserve` handles that are to be kept free.

    The system gives the lowest number that is free: a low one says that there are enough.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and handle >= limit - min(reserve, limit // 4)


def shortage() -> str | None:
    """Why no further connection is taken on, for an operator; None as long as there are handles enough."""
    try:
        lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"file handles: {error.strerror or error}; {_ADVICE}"
    os.close(lowest)
    if not is_among_the_last(lowest):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"nearly all of the {limit} file handles are in use; {_ADVICE}"


_ADVICE: Final = "raise the limit (LimitNOFILE of the service, ulimit -n) and restart the gateway"
