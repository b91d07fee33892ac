"""Sets up the gateway's process: event loop, garbage collector, file handles, and supervised tasks."""

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

from gateway.runtime.fd_limits import OVERHEAD, raise_limit
from gateway.runtime.settings import AddressUnavailable, BadSetting, Settings
from gateway.runtime.sockets import CannotBind, host_port

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
    """Run `work` on the fastest available loop, in a process tuned for very many connections."""
    # A connection is about a dozen long-lived objects. With the default thresholds the collector scans
    # them again and again, which is the largest single cost of an admission.
    gc.set_threshold(50_000, 50, 100)
    # An admission waits for the threads of SQLite; beside a busy thread each switch would take 5 ms.
    sys.setswitchinterval(0.001)
    raise_limit()
    _run(work)


@contextlib.contextmanager
def suppress_handle_errors(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Suppress the loop's log line for each connection refused for lack of file handles.

    asyncio writes it thousands of times a second; `node.health` reports it once.
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


def freeze_heap() -> None:
    """Exclude the objects made at the start from garbage collection; they live as long as the process."""
    gc.collect()
    gc.freeze()


def describe() -> str:
    """The Python, event loop and file handle limit of this process, for the operator."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles = "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    return f"Python {platform.python_version()}, {_LOOP}, {handles} file handles"


def too_few_handles(connections: int) -> str | None:
    """A warning for the operator if the limit of file handles is too low for `connections`, else None."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= connections + OVERHEAD:
        return None
    return (
        f"ice.max_connections is {connections:,}, but this process may have {limit:,} file handles:"
        " raise the limit (LimitNOFILE of the service, ulimit -n) or lower the setting"
    )


def supervise(
    work: Coroutine[None, None, None], name: str, failed: asyncio.Future[None]
) -> asyncio.Task[None]:
    """Run a part of the gateway; if it ends by itself, `failed` gets its error and the gateway stops."""

    def died(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not failed.done():
            error = task.exception() or RuntimeError(f"{name} ended")
            _log.critical("a part of the gateway died", part=name, error=repr(error))
            failed.set_exception(error)
            failed.exception()  # marks it as retrieved, in case no task awaits it

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(died)
    return task


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait until `event` is set, but at most for `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


def listen_error(settings: Settings, error: OSError) -> BadSetting:
    """The error for an address that is in use or not this machine's (both may pass), or forbidden."""
    kind = BadSetting if error.errno in (errno.EACCES, errno.EPERM) else AddressUnavailable
    hosts = (error.host,) if isinstance(error, CannotBind) else settings.server_host
    addresses = " and ".join(host_port(host, settings.server_port) for host in hosts)
    return kind(
        f"cannot listen on {addresses}: {listen_reason(error)};"
        " see server.host and server.port (--host, --port)"
    )


def listen_reason(error: OSError) -> str:
    """Why an address cannot be listened on, without the address, which asyncio's text names."""
    return (error.strerror or str(error)).rsplit(": ", 1)[-1]
