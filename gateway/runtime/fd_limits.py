"""File handles: every connection takes one, and the system limits them for each process.

Some are kept in reserve, so that the gateway can still open the key file and refuse connections properly.

Tested in tests/unit/node/test_health.py and tests/unit/runtime/test_eventloop.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

RESERVE: Final = 64
"""Handles kept free; a quarter of a small limit."""
OVERHEAD: Final = 1024
"""Handles that a gateway needs besides its connections: listeners (`sockets.QUEUES` times `server.DOORS` for
each of two addresses), the database, and `RESERVE`."""


def raise_limit() -> None:
    """Raise the soft limit, which is often 1,024, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_among_the_last(handle: int, reserve: int = RESERVE) -> bool:
    """Whether `handle` is one of the last `reserve` handles, which should stay free.

    The system assigns the lowest free number, so a low number means that enough are free.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and handle >= limit - min(reserve, limit // 4)


def shortage() -> str | None:
    """Why the gateway accepts no more connections, for the operator; None while enough handles are free."""
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
