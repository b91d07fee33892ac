"""Runs the operations that the gateway sends: handlers, progress, and finishes until they are answered.

Operations outlive a connection; the journal outlives the process. Source: docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from client import platform, protocol
from client.environment import Waits
from client.errors import described, one_line, text_of
from client.exceptions import InvalidType, InvalidValue
from client.identity import FolderUnusable
from client.journal import Journal
from client.operation_log import OperationLog, Send

_ERROR_LIMIT: Final = 2000
_CODE_LIMIT: Final = 100

logger = logging.getLogger(__name__)


async def _discard(_: str) -> None:
    """Takes the output of an operation that no gateway sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation for a handler, as the gateway sent it; see `protocol.Run`."""

    id: str
    kind: str
    params: Any = None
    deadline: str | None = None
    log: Callable[[str], Awaitable[None]] = field(default=_discard, repr=False)
    """Sends output, which the gateway keeps and shows live; waits if there is much. Raises `InvalidType`.

    It is lost while not connected, and ignored once the operation has finished.
    """


class OperationFailed(Exception):
    """A handler raises it to fail its operation with its own code and sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Report(Protocol):
    """Reports a handler's progress; dropped while not connected."""

    async def __call__(
        self, fraction: float | None = None, message: str | None = None, *, data: Any = None
    ) -> None:
        """`fraction` from 0 to 1, `data` any JSON. Raises `InvalidType` or `InvalidValue`."""


Handler = Callable[[Operation, Report], Awaitable[Any]]


def check_handler(kind: str, handler: object) -> None:
    """Raise `InvalidType` unless this is a coroutine function, or an object that is called as one."""
    # A method of the class, as Python looks it up: `iscoroutinefunction` sees no `__call__`.
    called = getattr(type(handler), "__call__", None)  # noqa: B004
    if not (inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)):
        name = getattr(handler, "__qualname__", type(handler).__name__)
        raise InvalidType(
            f"the handler for {kind} must be a coroutine function (async def), not {name}"
        )


_Task = asyncio.Task[protocol.Finish]


class OperationRunner:
    """The operations of one client, across its connections and, by the journal, its processes.

    Args:
        handlers: the handler for each kind; may grow later.
        send: sends one message, or drops it while not connected; returns whether it was sent.
        warn: called with a sentence for a person.
        waits: how long handlers have to end, and the gateway to answer.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        send: Send,
        warn: Callable[[str], None],
        waits: Waits,
    ) -> None:
        self._handlers = handlers
        self._send = send
        self._warn = warn
        self._waits = waits
        self._tasks: dict[str, _Task] = {}
        self._logs: dict[str, OperationLog] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._unwritten: dict[str, bytes] = {}
        """Finishes that could not be written to the journal; they are lost with the process."""
        self._cancelled: dict[str, tuple[str, str]] = {}
        """Code and sentence of each operation that the gateway cancelled; it may refuse their finishes."""
        self._to_repeat: deque[str] = deque()
        self._stopping = False
        self._interrupted: set[str] = set()
        """Operations that the stopping client failed and the gateway has not acknowledged."""
        self._settled = asyncio.Event()

    def open(self, journal: Journal) -> None:
        """Resume from the journal and end what a killed client left. Raises `FolderUnusable`."""
        self._journal = journal
        interrupted = journal.interrupted()
        platform.end_processes_of([*interrupted, *journal.unanswered()])
        for name in interrupted:
            journal.finish(name, _encoded(_failed(name, *_RESTARTED)))

    @property
    def running(self) -> list[str]:
        """The ids of the operations whose handlers run."""
        return list(self._tasks)

    async def run(self, message: protocol.Message, request: protocol.RequestId) -> None:
        """Answer `operation.run`, and start the handler unless the operation is known."""
        if self._stopping:
            # Unanswered it would be lost: the gateway sends no operation twice.
            text = "this ICE is stopping"
            await self._send(protocol.error(request, protocol.INTERNAL_ERROR, text))
            return
        try:
            operation = protocol.params_of(message, protocol.Run)
        except msgspec.ValidationError as error:
            await self._send(protocol.error(request, protocol.INVALID_PARAMS, str(error)))
            return
        handler = self._handlers.get(operation.kind)
        if handler is None:
            text = f"this ICE has no handler for {one_line(operation.kind)}"
            await self._send(protocol.error(request, protocol.METHOD_NOT_FOUND, text))
            return
        try:
            is_new = self._journal.accept(operation.id)
        except FolderUnusable as problem:
            # Without a record the operation could run twice.
            self._warn(str(problem))
            await self._send(protocol.error(request, protocol.INTERNAL_ERROR, str(problem)))
            return
        if is_new:
            # Before the answer, because sending may wait and the operation counts as running from now on.
            self._start(operation, handler)
        await self._send(protocol.result(request, {"accepted": True}))
        if not is_new:
            await self._send_finish(operation.id)

    def cancel(self, operation: str, reason: str | None = None) -> None:
        """Cancel a running operation; ignore others.

        The handler's `CancelledError` says why. `reason` is a `protocol.CancelReason`, or a newer gateway's.
        """
        task = self._tasks.get(operation)
        if task is None:
            return
        reason = reason or protocol.CancelReason.REQUESTED
        code, sentence = _CANCELLED.get(reason, ("cancelled", one_line(reason)))
        if task.cancel(sentence):  # the handler had not finished
            self._cancelled[operation] = (code, sentence)
            logger.info("operation %s is cancelled: %s", one_line(operation), sentence)
            self._spawn(self._give_up(operation, task))

    async def answered(self, message: protocol.Message) -> None:
        """The gateway has answered a finish, which need not be repeated."""
        operation = message.id
        if not isinstance(operation, str):
            return  # not the id of an operation
        if message.error is not msgspec.UNSET and operation not in self._cancelled:
            reason = one_line(message.error.message)
            self._warn(
                f"the gateway refused the finish of operation {one_line(operation)}: {reason}"
            )
        self._cancelled.pop(operation, None)
        self._unwritten.pop(operation, None)
        try:
            self._journal.answered(operation)
        except FolderUnusable as problem:
            self._warn(str(problem))  # the finish is repeated and answered again
        self._interrupted.discard(operation)
        if not self._interrupted:
            self._settled.set()
        await self._repeat_next()

    async def repeat(self) -> None:
        """On a new connection, repeat every unanswered finish, each after the answer to the one before."""
        try:
            unanswered = self._journal.unanswered()
        except FolderUnusable as problem:
            self._warn(str(problem))
            unanswered = []
        self._to_repeat = deque(dict.fromkeys([*unanswered, *self._unwritten]))
        await self._repeat_next()

    async def _repeat_next(self) -> None:
        if self._to_repeat:
            await self._send_finish(self._to_repeat.popleft())

    async def _send_finish(self, operation: str) -> None:
        """Send the unanswered finish of an operation, if it has one."""
        try:
            finish = self._unwritten.get(operation) or self._journal.finish_of(operation)
        except FolderUnusable as problem:
            self._warn(str(problem))
            return
        if finish is not None:
            await self._send(finish)

    async def interrupt(self) -> None:
        """Fail running operations as `interrupted` and end their handlers; no operation starts after that.

        The journal is written first: a client that is killed meanwhile reports them at its next start.
        """
        self._stopping = True
        tasks, self._tasks = self._tasks, {}
        self._interrupted.update(tasks)
        for name, task in tasks.items():
            code, sentence = self._cancelled.get(name, _INTERRUPTED)
            self._record(_failed(name, code, sentence))
            task.cancel(sentence)
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self._waits.grace)
        for name, task in tasks.items():
            if not task.done():
                self._warn_of_unended(name)

    async def report_interrupted(self) -> None:
        """Report interrupted operations and wait up to `Waits.answers` for the gateway's answers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._waits.answers):
                for name in sorted(self._interrupted):
                    await self._close_log(name)
                    await self._send_finish(name)
                if self._interrupted:
                    await self._settled.wait()

    async def close(self) -> None:
        """End all operations within `Waits.grace`; the next connection reports them as interrupted."""
        await self.interrupt()
        for name in list(self._logs):
            await self._close_log(name)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._interrupted.clear()
        self._journal.close()

    def _start(self, run: protocol.Run, handler: Handler) -> None:
        log = self._logs[run.id] = OperationLog(run.id, self._send)
        operation = Operation(
            id=run.id, kind=run.kind, params=run.params, deadline=run.deadline, log=log.write
        )
        # Two tasks, because one that is cancelled before its first step runs nothing, not even an `except`.
        task = asyncio.create_task(_run_handler(operation, handler, self._report(operation)))
        self._tasks[operation.id] = task
        self._spawn(self._watch(operation.id, task))

    def _spawn(self, watch: Coroutine[Any, Any, None]) -> None:
        watcher = asyncio.create_task(watch)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, operation: str, task: _Task) -> None:
        """Report the handler's outcome, unless its operation was finished without it."""
        await asyncio.wait({task})
        if self._tasks.get(operation) is not task:
            return
        if task.cancelled():
            finish = _failed(operation, "cancelled", "its handler was cancelled")
        else:
            finish = task.result()
        if operation in self._cancelled and finish.outcome == "failed":
            # The cancellation is why it failed, whatever the handler raised then.
            finish = _failed(operation, *self._cancelled[operation])
        await self._finish(finish)

    async def _give_up(self, operation: str, task: _Task) -> None:
        """Finish a cancelled operation whose handler does not end."""
        await asyncio.wait({task}, timeout=self._waits.grace)
        if not task.done() and self._tasks.get(operation) is task:
            self._warn_of_unended(operation)
            await self._finish(_failed(operation, *self._cancelled[operation]))

    def _warn_of_unended(self, operation: str) -> None:
        name = one_line(operation)
        self._warn(f"the handler of operation {name} was cancelled but still runs")

    async def _finish(self, finish: protocol.Finish) -> None:
        encoded = self._record(finish)
        del self._tasks[finish.id]
        await self._close_log(finish.id)
        await self._send(encoded)

    async def _close_log(self, operation: str) -> None:
        """Send the rest of an operation's output, which the gateway ignores after the finish."""
        log = self._logs.pop(operation, None)
        if log is not None:
            await log.close()

    def _record(self, finish: protocol.Finish) -> bytes:
        encoded = _encoded(finish)
        try:
            self._journal.finish(finish.id, encoded)
        except FolderUnusable as problem:
            self._warn(str(problem))
            self._unwritten[finish.id] = encoded
        return encoded

    def _report(self, operation: Operation) -> Report:
        async def report(
            fraction: float | None = None, message: str | None = None, *, data: Any = None
        ) -> None:
            try:
                encoded = _encoded_progress(operation.id, fraction, message, data)
            except ValueError as error:
                raise InvalidValue(str(error)) from error
            except TypeError as error:
                raise InvalidType(str(error)) from error
            await self._send(encoded)

        return report


def _encoded_progress(
    operation: str, fraction: float | None, message: str | None, data: object
) -> bytes:
    """The message of a progress report. Raises TypeError or ValueError."""
    if fraction is not None and not 0 <= (fraction := float(fraction)) <= 1:
        raise ValueError("fraction must be from 0 to 1")
    if message is not None and not isinstance(message, str):
        raise TypeError("message must be a string")
    progress = protocol.Progress(
        id=operation,
        fraction=fraction,
        message=message,
        data=msgspec.UNSET if data is None else msgspec.Raw(_json_of(data)),
    )
    encoded = protocol.notification("operation.progress", progress)
    if len(encoded) > protocol.MAX_MESSAGE:
        raise ValueError("this progress report exceeds the size of a message")
    return encoded


def _encoded(finish: protocol.Finish) -> bytes:
    # The operation's id serves as the request's: an ICE makes no other request.
    return protocol.request("operation.finish", finish, finish.id)


_CANCELLED: Final[Mapping[str, tuple[str, str]]] = {
    protocol.CancelReason.REQUESTED: ("cancelled", "cancelled on request"),
    protocol.CancelReason.DEADLINE: ("deadline", "its deadline has passed"),
    protocol.CancelReason.REREGISTERED: ("reregistered", "the ICE was reregistered meanwhile"),
    protocol.CancelReason.UNKNOWN: ("unknown", "the gateway no longer waits for it"),
}
"""Code and sentence for each reason of a cancellation."""
_INTERRUPTED: Final = ("interrupted", "the ICE was stopped while it worked on this")
_RESTARTED: Final = ("interrupted", "the ICE was restarted while it worked on this")


async def _run_handler(operation: Operation, handler: Handler, report: Report) -> protocol.Finish:
    """Run a handler and return its finish; raises only CancelledError.

    asyncio would end the program if a handler raised SystemExit or KeyboardInterrupt.
    """
    try:
        return _succeeded(operation.id, await handler(operation, report))
    except asyncio.CancelledError:
        raise
    except OperationFailed as error:
        code = getattr(error, "code", "")  # a subclass may not set it
        return _failed(operation.id, text_of(code), text_of(error))
    except BaseException as error:
        # Python raises GeneratorExit in handlers that still wait when the loop has been closed.
        if not isinstance(error, GeneratorExit):
            logger.exception("the handler of operation %s failed", operation.id)
        return _failed(operation.id, "failed", described(error))


def _succeeded(operation_id: str, result: object) -> protocol.Finish:
    try:
        encoded = _json_of(result)
    except ValueError as error:
        return _failed(operation_id, "invalid", f"the result cannot be sent: {error}")
    if len(encoded) > protocol.MAX_VALUE:
        reason = f"the result exceeds {protocol.MAX_VALUE:,} bytes"
        return _failed(operation_id, "too-large", reason)
    return protocol.Finish(
        id=operation_id,
        outcome="succeeded",
        result=None if result is None else msgspec.Raw(encoded),
    )


def _json_of(value: object) -> bytes:
    """A handler's value as JSON. Raises ValueError, which says why it cannot be sent."""
    try:
        encoded = msgspec.json.encode(value)
        # msgspec would encode a number that is not finite as null.
        json.dumps(msgspec.to_builtins(value), allow_nan=False)
    except RecursionError:
        raise ValueError("it is too deep, or contains itself") from None
    except Exception as error:  # attributes and keys may raise anything
        raise ValueError(f"{type(error).__name__}: {error}") from error
    protocol.check_json(encoded)
    return encoded


def _failed(operation_id: str, code: str, message: str) -> protocol.Finish:
    # Lone surrogates, as in file names that are not UTF-8, cannot be sent.
    text = message[:_ERROR_LIMIT].encode(errors="replace").decode()
    error = {"code": one_line(code)[:_CODE_LIMIT] or "failed", "message": text}
    return protocol.Finish(id=operation_id, outcome="failed", error=error)
