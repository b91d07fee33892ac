"""Runs the event loop of `ice-client`.

Handlers may start tasks and threads. `asyncio.run` would end the program when such a task raises SystemExit
or KeyboardInterrupt, and would wait for tasks and threads without a limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from client import platform

TASK_TIMEOUT: Final = 3.0
"""Seconds that tasks have to end once the client has stopped; the client does not wait for threads."""

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def run(main: Callable[[], Coroutine[Any, Any, _T]], stop: Callable[[], None]) -> _T:
    """Run `main` to its end and return what it returns, or raise what it raises.

    Args:
        main: makes the coroutine; called once Ctrl-C is handled.
        stop: called in the loop on Ctrl-C and when the service manager stops the client.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with platform.stop_signals(loop, stop):
            try:
                return _complete(loop, loop.create_task(main()))
            finally:
                _end_tasks(loop)
    finally:
        # The client has warned of tasks that do not end.
        loop.set_exception_handler(lambda *_: None)
        asyncio.set_event_loop(None)
        loop.close()


def _complete(loop: asyncio.AbstractEventLoop, task: asyncio.Task[_T]) -> _T:
    while True:
        try:
            return loop.run_until_complete(task)
        except (KeyboardInterrupt, SystemExit):
            # Ctrl-C calls `stop` and raises nothing, so a handler raised this.
            if task.done():
                raise
            logger.exception("a task of a handler tried to end the client")


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _complete(loop, loop.create_task(asyncio.wait(left, timeout=TASK_TIMEOUT)))
    _complete(loop, loop.create_task(loop.shutdown_asyncgens()))
