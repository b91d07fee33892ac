"""Several gateways on one machine, all of them started, watched and ended by one parent.

The parent holds the database and the address for them; each is a node of its own. It serves no ICE
itself, so that nothing but the end of the service ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from gateway.database_url import file_of
from gateway.keyfile import KeyStore
from gateway.listener import Runner
from gateway.respond import json_response
from gateway.settings import BadSetting, Settings, cannot_listen
from gateway.sockets import bind
from gateway.store import proofs
from gateway.store.engine import StoreUnavailable
from gateway.store.ices import Ices
from gateway.store.nodes import forget, forget_all
from gateway.store.opening import open_store
from gateway.store.setup import held, resolve
from gateway.worker import Report, Seat, seat

SILENCE: Final = 5.0
"""Seconds without a report after which a worker is called silent."""
_ENDING: Final = 15.0
"""Seconds for a worker to end after a SIGTERM."""
_RESTART: Final = (0.5, 30.0)
"""Seconds until a worker that has died is started again: twice as long each time that it was for nothing."""
_LASTED: Final = 60.0
"""Seconds after which the start of a worker was not for nothing."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Place:
    """What a worker is given at each of its starts."""

    settings: Settings
    sockets: list[socket.socket]
    bell: list[int]
    kept: list[int]

    @property
    def name(self) -> str:
        return self.settings.node_name


class Worker:
    """One worker and its present process."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self.name = place.name
        self.process: asyncio.subprocess.Process | None = None
        self.report: Report | None = None
        """The last of this process."""
        self.heard = asyncio.Event()
        """Set once it is known whether it could start at all."""
        self.served = False
        self._heard_at = 0.0

    async def live(self) -> Report | None:
        """Start a process and hear it until it has ended; its last report, None where there was none."""
        self.report = None
        ours, its = socket.socketpair()
        with ours, its:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "gateway.worker"),
                stdin=its.fileno(),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_packages())},
            )
            its.close()
            place = self._place
            handles = [*(one.fileno() for one in place.sockets), *place.bell, *place.kept]
            counts = len(place.sockets), len(place.bell), len(place.kept)
            with contextlib.suppress(OSError):  # it has died at once
                seat(ours, Seat(place.settings, *counts), handles)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                while line := await self._line(reader):
                    self.report = msgspec.json.decode(line, type=Report)
                    self._heard_at = asyncio.get_running_loop().time()
                    if self.report.refused is None:
                        self.served = True
                        self.heard.set()
            except OSError:
                pass
            finally:
                writer.close()
            await self.process.wait()
        return self.report

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        """What it tells next, empty where it has ended; who has begun and says nothing is killed.

        By then its lease has run out: it may do nothing any more, and keeps connections waiting.
        """
        patience = self._place.settings.node_lease + SILENCE
        try:
            async with asyncio.timeout(patience if self.report is not None else None):
                return await reader.readline()
        except TimeoutError:
            _log.error("worker hangs", node=self.name, seconds=patience)
            self.signal(signal.SIGKILL)
            return b""

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    def told(self) -> dict[str, Any]:
        """What an operator is told of it."""
        report = self.report or Report()
        running = self.process is not None and self.process.returncode is None
        silent = asyncio.get_running_loop().time() - self._heard_at
        if not running:
            state = "ended"
        elif self.report is None:
            state = "starting"
        elif silent > SILENCE:
            state = "silent"
        else:
            state = "ready" if report.not_ready is None else "not ready"
        return {
            "name": self.name,
            "state": state,
            "pid": self.process.pid if running and self.process is not None else None,
            "connected": report.connected,
            "faults": report.faults,
        }


class Workers:
    """All of them; made by `run_workers`."""

    def __init__(self, settings: Settings, places: Sequence[_Place]) -> None:
        self._settings = settings
        self.all = [Worker(place) for place in places]
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False

    @property
    def url(self) -> str:
        """Where they serve."""
        report = self.all[0].report
        return "" if report is None else report.url

    async def start(self) -> None:
        """Start all; returns when they serve. Raises `BadSetting`."""
        self._tasks = [
            asyncio.create_task(self._keep(worker), name=worker.name) for worker in self.all
        ]
        for worker in self.all:
            await worker.heard.wait()
            if not worker.served:
                refused = worker.report and worker.report.refused
                raise BadSetting(refused or f"{worker.name} did not start; its log says why")

    async def _keep(self, worker: Worker) -> None:
        """Have a process of `worker` until all are to end."""
        loop = asyncio.get_running_loop()
        shortest, longest = _RESTART
        pause = shortest
        while True:
            began = loop.time()
            last = await worker.live()
            worker.heard.set()
            if self._ending or not worker.served:
                return
            assert worker.process is not None  # noqa: S101 - it has just ended
            _log.error(
                "worker died",
                node=worker.name,
                status=worker.process.returncode,
                reason=None if last is None else last.refused,
            )
            await self._forget(worker)
            pause = shortest if loop.time() - began > _LASTED else min(2 * pause, longest)
            await asyncio.sleep(pause)

    async def _forget(self, worker: Worker) -> None:
        """Tell the others that nothing of it is left; on a server nobody but its lease knows that."""
        if file_of(self._settings.database_url) is None:
            return
        try:
            async with open_store(self._settings.database_url, create=False) as engine:
                await engine.write(lambda transaction: forget(transaction, worker.name))
        except StoreUnavailable as error:
            _log.warning("a dead worker stands in the table still", reason=str(error))

    def reload(self) -> None:
        """Let each read its certificate again."""
        for worker in self.all:
            worker.signal(signal.SIGHUP)

    async def stop(self) -> None:
        """End all; whoever does not end in time is killed."""
        self._ending = True
        for worker in self.all:
            worker.signal(signal.SIGTERM)
        for task, worker in zip(self._tasks, self.all, strict=False):
            if worker.process is None or worker.process.returncode is not None:
                task.cancel()  # it waits to start it again
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_ENDING)
        for worker in self.all:
            worker.signal(signal.SIGKILL)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def health(self, _: web.Request) -> web.Response:
        """200 as long as the parent lives, with what it knows of each worker."""
        return json_response({"status": "alive", "workers": [worker.told() for worker in self.all]})


@contextlib.asynccontextmanager
async def run_workers(settings: Settings) -> AsyncIterator[Workers]:
    """Start `server.workers` gateways; on leaving they drain and stop.

    Raises:
        BadSetting, KeyFileUnusable, StoreRefused, StoreUnavailable: they cannot start; the text says
            what to change.
    """
    count = settings.server_workers
    for warning in settings.check_exposure():
        _log.warning(warning)
    async with contextlib.AsyncExitStack() as stack:
        kept, pipes = await _prepare(settings, count, stack)
        try:
            shares = bind(settings.server_host, settings.server_port, count)
        except OSError as error:
            raise cannot_listen(settings, error) from error
        for share in shares:
            for one in share:
                stack.callback(one.close)
        name = settings.node_name or socket.gethostname()
        places = []
        for number, share in enumerate(shares, 1):
            listen = settings.metrics_listen
            if listen is not None:
                listen = listen[0], listen[1] + number
            bell = []
            if pipes:
                others = [pipe[1] for other, pipe in enumerate(pipes, 1) if other != number]
                bell = [pipes[number - 1][0], *others]
            its = replace(settings, node_name=f"{name}-{number}", metrics_listen=listen)
            places.append(_Place(its, share, bell, kept))
        workers = Workers(settings, places)
        stack.push_async_callback(workers.stop)
        await _expose(settings, workers, stack)
        await workers.start()
        yield workers


async def _prepare(
    settings: Settings, count: int, stack: contextlib.AsyncExitStack
) -> tuple[list[int], list[tuple[int, int]]]:
    """Make what workers need that they could not make side by side.

    Of an SQLite file it is taken for all: the handle that holds it, and a pipe to wake each.
    """
    path = file_of(settings.database_url)
    kept: list[int] = []
    pipes: list[tuple[int, int]] = []
    if path is not None:
        path = resolve(path)
        kept.append(await asyncio.to_thread(lambda: stack.enter_context(held(path))))
    async with open_store(settings.database_url) as engine:
        keys = KeyStore(settings.key_file)
        if not keys.load() and not await Ices(engine).any():
            keys.for_sealing(may_create=True)
        if path is not None:
            await engine.write(forget_all)
    if path is not None:
        try:
            await asyncio.to_thread(proofs.make, path)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"{proofs.file_beside(path)} cannot be made: {error}") from error
        stack.callback(_remove_proofs, path)
        for _ in range(count):
            pipes.append(os.pipe())
            for end in pipes[-1]:
                stack.callback(os.close, end)
    return kept, pipes


def _remove_proofs(path: Path) -> None:
    with contextlib.suppress(OSError):
        proofs.remove(path)


async def _expose(settings: Settings, workers: Workers, stack: contextlib.AsyncExitStack) -> None:
    """Tell of all workers where the metrics of a gateway alone would be."""
    if settings.metrics_listen is None:
        return
    app = web.Application()
    app.router.add_get("/healthz", workers.health)
    runner = Runner(app, shutdown_timeout=1.0)
    stack.push_async_callback(runner.cleanup)
    try:
        await runner.listen(*settings.metrics_listen)
    except OSError as error:
        _log.warning("health of the workers not served", reason=str(error))


def _packages() -> list[str]:
    """Where this program lies, for one that starts without the present folder on its path."""
    here = str(Path(__file__).parents[1])
    return [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
