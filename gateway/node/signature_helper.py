"""Has a process on another core check signatures while very many handshakes arrive at once.

There is one such process, at most. It starts when it is first worth it, and ends when it has had nothing to do for
a while. Whatever it does not say is valid is checked in place: if it dies, hangs or is busy, that costs time alone.

A `ProcessPoolExecutor` would need threads, which wait for Python's lock beside a busy loop, and cannot stop a
process that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.core.signatures import Signature
from gateway.runtime import signature_process
from gateway.runtime.eventloop import cancel_and_wait
from gateway.runtime.settings import ENV_PREFIX
from gateway.runtime.signature_process import ANSWER

_PENDING: Final = 2
"""Batches at the process at most: it checks one while the other waits for it."""
_START: Final = (
    # The gateway's own import path, and not the working folder, which may be anybody's.
    "import sys; sys.path[:] = sys.argv[1:];"
    " from gateway.runtime.signature_process import main; main()"
)
_log = structlog.get_logger()


def command() -> list[str]:
    """The command that starts the process."""
    return [sys.executable, "-P", "-c", _START, *sys.path]


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment() -> dict[str, str]:
    """The gateway's environment without its settings, some of which are secret."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


@dataclass(frozen=True, slots=True)
class HelperPace:
    """When the process is used; times in seconds."""

    start: int = 64
    """Signatures at once for which the process is started, which takes a tenth of a second."""
    few: int = 8
    """Fewer signatures are checked in place: the way to the process costs as much."""
    patience: float = 1.0
    """For an answer, which takes some 10 ms. Then the process hangs, or the machine has no core for it."""
    pause: float = 60.0
    """Before another start, after a process that failed."""
    start_patience: float = 10.0
    """For a new process to be ready."""
    idle: float = 60.0
    """Without a request, after which the process ends."""


DEFAULT_HELPER_PACE: Final = HelperPace()


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    size: int
    answer: asyncio.Future[bytes]


class SignatureHelper:
    """Checks batches of signatures on another core. One core needs no helper: there none is started."""

    def __init__(
        self,
        pace: HelperPace = DEFAULT_HELPER_PACE,
        *,
        cores: Callable[[], int] = usable_cores,
        command: Callable[[], list[str]] = command,
    ) -> None:
        self._pace = pace
        self._cores = cores
        self._command = command
        self._not_before = 0.0
        self._running: asyncio.Task[None] | None = None
        self._link: _Link | None = None
        self._closed = False

    def check(self, batch: Sequence[Signature]) -> Awaitable[bytes] | None:
        """Have a batch checked; None if the caller has to do it.

        The result, which never raises, has a byte a signature. Only 1 means that it is valid; all others, and those
        for which there is no byte, the caller has to check.
        """
        if len(batch) < self._pace.few:
            return None
        if self._link is not None:
            return self._link.ask(batch)
        if len(batch) >= self._pace.start:
            self._start()
        return None

    def _start(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._running is not None or self._closed or now < self._not_before:
            return
        # Looked at again each time: an operator can change the cores of a running process.
        if self._cores() > 1:
            self._running = asyncio.create_task(self._run(), name="signature helper")
        else:
            self._not_before = now + self._pace.pause

    async def _run(self) -> None:
        process: Process | None = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=_environment(),
                # A terminal's Ctrl-C is for the gateway, which ends this process.
                start_new_session=True,
            )
            async with asyncio.timeout(self._pace.start_patience):
                link = await _Link.to(process, self._pace)
            self._link = link
            await link.pass_answers()
        except (OSError, EOFError, TimeoutError, _WrongAnswer) as error:
            self._not_before = asyncio.get_running_loop().time() + self._pace.pause
            _log.warning("signature helper lost", reason=_reason(error), again_in=self._pace.pause)
        finally:
            if self._link is not None:
                self._link.give_up()
                self._link = None
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            self._running = None

    async def close(self) -> None:
        """End the process; from now on everything is checked in place."""
        self._closed = True
        if self._running is not None:
            await cancel_and_wait(self._running)


class _WrongAnswer(Exception):
    """The process answered another question."""


class _Link:
    """The pipes to a process, and the batches that it has not answered."""

    def __init__(
        self, sink: asyncio.StreamWriter, source: asyncio.StreamReader, pace: HelperPace
    ) -> None:
        self._sink = sink
        self._source = source
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Batch] = deque()
        self._numbers = itertools.count(1)
        self._limit = asyncio.timeout(pace.idle)

    @classmethod
    async def to(cls, process: Process, pace: HelperPace) -> _Link:
        """The link to a process, once that answers. Raises EOFError."""
        assert process.stdin is not None  # noqa: S101 - they are pipes
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(signature_process.request(0, ()))
        await process.stdout.readexactly(ANSWER.size)
        return cls(process.stdin, process.stdout, pace)

    def ask(self, batch: Sequence[Signature]) -> Awaitable[bytes] | None:
        """See `SignatureHelper.check`."""
        if len(self._pending) >= _PENDING or self._sink.is_closing() or self._limit.expired():
            return None
        if not self._pending:
            self._limit.reschedule(self._loop.time() + self._pace.patience)
        one = _Batch(next(self._numbers), len(batch), self._loop.create_future())
        self._pending.append(one)
        self._sink.write(signature_process.request(one.number, batch))
        return one.answer

    async def pass_answers(self) -> None:
        """Pass the answers on, until nothing was asked for a while.

        Raises EOFError if the process ends, TimeoutError if it does not answer, and `_WrongAnswer`.
        """
        try:
            async with self._limit:
                while True:
                    number = ANSWER.unpack(await self._source.readexactly(ANSWER.size))[0]
                    if not self._pending or self._pending[0].number != number:
                        raise _WrongAnswer
                    valid = await self._source.readexactly(self._pending[0].size)
                    batch = self._pending.popleft()
                    pace = self._pace.patience if self._pending else self._pace.idle
                    self._limit.reschedule(self._loop.time() + pace)
                    if not batch.answer.done():
                        batch.answer.set_result(valid)
        except TimeoutError:
            if self._pending:
                raise

    def give_up(self) -> None:
        """Leave what was not answered to the callers."""
        for batch in self._pending:
            if not batch.answer.done():
                batch.answer.set_result(b"")


def _reason(error: Exception) -> str:
    """Why the process was lost, for an operator."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, EOFError):
        return "it ended"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else "it could not be started"
    return "it answered another question"
