"""The operations that the gateway sends: a handler by kind, progress, and the finish until answered.

Kept in memory: they outlive a connection, not the process. Source: contract sections 6 and 9.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from client import protocol

MAX_RESULT: Final = 1_000_000
"""The largest result in bytes, encoded."""
_ERROR_LIMIT: Final = 2000
_REMEMBERED: Final = 32
"""Answered finishes kept, in case the gateway asks for one of those operations again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a handler is asked to do; `deadline` is RFC 3339."""

    id: str
    kind: str
    params: Any
    deadline: str | None


class Report(Protocol):
    """What a handler tells of its progress with; lost while there is no connection."""

    async def __call__(
        self, fraction: float | None = None, message: str | None = None, *, data: Any = None
    ) -> None:
        """`fraction` from 0 to 1. Raises ValueError or TypeError for what cannot be sent."""


Handler = Callable[[Operation, Report], Awaitable[Any]]
Send = Callable[[bytes], Awaitable[None]]


class Operations:
    """The operations of one client, across its connections.

    Args:
        handlers: who does what; the kinds may grow later.
        send: sends one message, and drops it where there is no connection.
    """

    def __init__(self, handlers: Mapping[str, Handler], send: Send) -> None:
        self._handlers = handlers
        self._send = send
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._finishes: dict[str, bytes] = {}
        self._unanswered: set[str] = set()

    @property
    def running(self) -> list[str]:
        """The ids of those that are still worked on."""
        return list(self._tasks)

    async def run(self, message: protocol.Message, request: protocol.RequestId) -> None:
        """Answer `operation.run`, and begin unless the operation is known."""
        try:
            run = protocol.params_of(message, protocol.Run)
        except msgspec.ValidationError as error:
            await self._send(protocol.error(request, protocol.INVALID_PARAMS, str(error)))
            return
        handler = self._handlers.get(run.kind)
        if handler is None:
            text = f"this ICE has no handler for {run.kind}"
            await self._send(protocol.error(request, protocol.METHOD_NOT_FOUND, text))
            return
        await self._send(protocol.result(request, {"accepted": True}))
        if run.id in self._finishes:
            await self._send(self._finishes[run.id])
        elif run.id not in self._tasks:
            self._begin(Operation(run.id, run.kind, run.params, run.deadline), handler)

    def cancel(self, operation: str) -> None:
        """Stop working on an operation; one that is not worked on stays as it is."""
        if operation in self._tasks:
            self._tasks[operation].cancel()

    def answered(self, request: protocol.RequestId) -> None:
        """The gateway has answered this request of ours: the finish need not be repeated."""
        self._unanswered.discard(str(request))
        kept = [name for name in self._finishes if name not in self._unanswered]
        for name in kept[:-_REMEMBERED]:
            del self._finishes[name]

    async def repeat(self) -> None:
        """Send every unanswered finish again, on a new connection."""
        for encoded in [
            self._finishes[name] for name in self._finishes if name in self._unanswered
        ]:
            await self._send(encoded)

    async def close(self) -> None:
        """Cancel everything; nothing is sent."""
        tasks = [*self._watchers, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, operation: Operation, handler: Handler) -> None:
        async def work() -> Any:
            return await handler(operation, self._report(operation))

        # Two tasks: one that is cancelled before its first step runs nothing, not even an `except`.
        self._tasks[operation.id] = task = asyncio.create_task(work())
        watcher = asyncio.create_task(self._watch(operation, task))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, operation: Operation, task: asyncio.Task[Any]) -> None:
        await asyncio.wait({task})
        # The request's id is the operation's: a finish is the only request that an ICE makes.
        encoded = protocol.request("operation.finish", _outcome(operation, task), operation.id)
        self._finishes[operation.id] = encoded
        self._unanswered.add(operation.id)
        del self._tasks[operation.id]
        await self._send(encoded)

    def _report(self, operation: Operation) -> Report:
        async def report(
            fraction: float | None = None, message: str | None = None, *, data: Any = None
        ) -> None:
            if fraction is not None and not 0 <= fraction <= 1:
                raise ValueError("fraction must be from 0 to 1")
            progress = protocol.Progress(
                id=operation.id, fraction=fraction, message=message, data=data
            )
            encoded = protocol.notification("operation.progress", progress)
            if len(encoded) > protocol.MAX_MESSAGE:
                raise ValueError("this progress is larger than a message may be")
            await self._send(encoded)

        return report


def _outcome(operation: Operation, task: asyncio.Task[Any]) -> protocol.Finish:
    """What a task that is done has come to."""
    if task.cancelled():
        return _failed(operation, "cancelled", "cancelled on request")
    try:
        result = task.result()
        if len(msgspec.json.encode(result)) > MAX_RESULT:
            return _failed(operation, "too-large", f"the result exceeds {MAX_RESULT} bytes")
    except Exception as error:
        logger.exception("the handler of operation %s failed", operation.id)
        return _failed(operation, "failed", f"{type(error).__name__}: {error}")
    return protocol.Finish(id=operation.id, outcome="succeeded", result=result)


def _failed(operation: Operation, code: str, message: str) -> protocol.Finish:
    # Lone surrogates, as in the names of odd files, cannot be sent.
    text = message[:_ERROR_LIMIT].encode(errors="replace").decode()
    return protocol.Finish(id=operation.id, outcome="failed", error={"code": code, "message": text})
