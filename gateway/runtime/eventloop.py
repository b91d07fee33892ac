"""How the process of a gateway is set up: its event loop, its garbage collector, its file handles, its parts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import platform
import resource
import sys
from collections.abc import Callable, Coroutine, Iterator
from importlib import metadata
from typing import Any

import structlog

from gateway.runtime.fd_limits import BESIDE, raise_limit
from gateway.runtime.settings import AddressUnavailable, BadSetting, Settings
from gateway.runtime.sockets import CannotBind, place

try:
    import uvloop
except ImportError:  # no wheel for this platform
    _run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    _LOOP = "asyncio's loop"
else:
    _run = uvloop.run
    _LOOP = f"uvloop {metadata.version('uvloop')}"


_log = structlog.get_logger()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on the quickest loop there is, in a process set up for very many connections."""
    # A connection is some dozen long-lived objects: with the defaults they are scanned again and
    # again, which is the largest single cost of an admission.
    gc.set_threshold(50_000, 50, 100)
    # An admission changes threads several times: beside a thread that computes, each change would take 5 ms.
    sys.setswitchinterval(0.001)
    raise_limit()
    _run(work)


@contextlib.contextmanager
def calm(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Suppress the loop's line for each connection refused for lack of file handles.

    asyncio says so thousands of times a second; `vitals` says it once.
    """
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "out of system resource" in context.get("message", ""):
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


def warm() -> None:
    """Leave what was made at the start out of every collection: it stays for as long as the process."""
    gc.collect()
    gc.freeze()


def described() -> str:
    """What the process runs with, for an operator."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles = "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    return f"Python {platform.python_version()}, {_LOOP}, {handles} file handles"


def too_few_handles(connections: int) -> str | None:
    """What to tell an operator whose system has not as many file handles as `connections` need."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= connections + BESIDE:
        return None
    return (
        f"ice.max_connections is {connections:,}, but this process may have {limit:,} file handles:"
        " raise the limit (LimitNOFILE of the service, ulimit -n) or lower the setting"
    )


def supervise(
    work: Coroutine[None, None, None], name: str, failed: asyncio.Future[None]
) -> asyncio.Task[None]:
    """Run a part for as long as the gateway lives; its death is the gateway's."""

    def died(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not failed.done():
            error = task.exception() or RuntimeError(f"{name} ended")
            _log.critical("a part of the gateway died", part=name, error=repr(error))
            failed.set_exception(error)
            failed.exception()  # whether or not anybody waits for it

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(died)
    return task


async def ended(task: asyncio.Task[None]) -> None:
    """End a part, and wait until it has."""
    task.cancel()
    await asyncio.wait([task])


def cannot_listen(settings: Settings, error: OSError) -> BadSetting:
    """The fault of an address that is taken, not this machine's, or forbidden (which does not pass)."""
    kind = BadSetting if error.errno in (errno.EACCES, errno.EPERM) else AddressUnavailable
    # Of asyncio's sentence, which names the address twice, the reason stands behind the last colon.
    reason = (error.strerror or str(error)).rsplit(": ", 1)[-1]
    hosts = (error.host,) if isinstance(error, CannotBind) else settings.server_host
    places = " and ".join(place(host, settings.server_port) for host in hosts)
    return kind(
        f"cannot listen on {places}: {reason}; see server.host and server.port (--host, --port)"
    )
