"""Several gateways on one machine, all of them started, watched and ended by one parent.

The parent holds the database and the address for them; each is a node of its own. It serves no ICE
itself, so that nothing but the end of the service ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import secrets
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from gateway.database_url import file_of
from gateway.keyfile import KeyStore
from gateway.listener import Runner
from gateway.process import cannot_listen, supervise
from gateway.respond import json_response
from gateway.settings import BadSetting, Settings
from gateway.sockets import Share, bind
from gateway.store import proofs
from gateway.store.engine import StoreRefused, StoreUnavailable
from gateway.store.ices import Ices
from gateway.store.nodes import forget, forget_all
from gateway.store.opening import open_store
from gateway.store.setup import held, resolve
from gateway.worker import Report, Start

SILENCE: Final = 5.0
"""Seconds without a report after which a worker is called silent."""
_STARTING: Final = 60.0
"""Seconds until its first."""
_ONCE_MORE: Final = 1.0
_ENDING: Final = 9.0
"""Seconds for a worker to end after a SIGTERM."""
_RESTART: Final = (0.5, 30.0)
"""Seconds until a worker that has died is started again: twice as long each time that it was for nothing."""
_LAST_PORT: Final = 65_535
_LASTED: Final = 60.0
"""Seconds after which the start of a worker was not for nothing."""

_log = structlog.get_logger()


class Worker:
    """One worker and its present process. `kept` are handles that it inherits to hold them open."""

    def __init__(
        self,
        settings: Settings,
        share: Share,
        *,
        bell: tuple[int, list[int]] | None,
        nonce_key: bytes | None,
        kept: Sequence[int],
    ) -> None:
        self.name = settings.node_name
        self._settings = settings
        self._share = share
        self._bell = bell
        self._nonce_key = nonce_key
        self._kept = kept
        self.process: asyncio.subprocess.Process | None = None
        self.report: Report | None = None
        """The last of this process."""
        self.heard = asyncio.Event()
        """Set once it is known whether it could start at all."""
        self.served = False
        self.fault: str | None = None
        """Why its last process was not to be had."""
        self._heard_at = 0.0

    @property
    def runs(self) -> bool:
        """Whether there is a process now."""
        return self.process is not None and self.process.returncode is None

    @property
    def refused(self) -> str | None:
        """Why the last process did not start, where it has said so."""
        return None if self.report is None else self.report.refused

    async def live(self) -> None:
        """Start a process and hear it until it has ended. Raises `OSError` where that cannot be done."""
        self.report, said = None, False
        ours, its = socket.socketpair()
        with ours:
            with its, contextlib.ExitStack() as stack:
                sockets = [stack.enter_context(one).fileno() for one in self._share.take()]
                rung = () if self._bell is None else (self._bell[0], *self._bell[1])
                self.process = await asyncio.create_subprocess_exec(
                    # Not from the present folder, which may be anybody's.
                    *(sys.executable, "-P", "-m", "gateway.worker"),
                    stdin=its.fileno(),
                    pass_fds=(*sockets, *rung, *self._kept),
                )
            start = Start(self._settings, sockets, self._bell, self._nonce_key)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                writer.write(pickle.dumps(start))
                # One that was killed may leave half a line.
                while (line := await self._line(reader)).endswith(b"\n"):
                    self.report = msgspec.json.decode(line, type=Report)
                    self._heard_at = asyncio.get_running_loop().time()
                    if self.report.refused is None:
                        if self.heard.is_set() and not said:
                            _log.info("worker started again", node=self.name, pid=self.process.pid)
                        said = self.served = True
                        self.heard.set()
            except OSError:
                pass  # it has died
            finally:
                writer.close()
            await self.process.wait()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        """What it tells next, empty where it has ended; who says nothing for too long is killed.

        By then its lease has run out: it may do nothing any more, and keeps connections waiting.
        """
        patience = _STARTING if self.report is None else self._settings.node_lease + SILENCE
        # Twice: it may have been this process that stood still.
        for seconds in (patience, _ONCE_MORE):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await reader.readline()
        _log.error("worker hangs", node=self.name, seconds=patience)
        self.signal(signal.SIGKILL)
        return b""

    def signal(self, number: int) -> None:
        """Send its process a signal, if there is one."""
        if self.process is not None and self.runs:
            self.process.send_signal(number)

    def told(self) -> dict[str, Any]:
        """What an operator is told of it."""
        report = (self.report if self.runs else None) or Report()
        return {
            "name": self.name,
            "state": self._state(report),
            "pid": self.process.pid if self.process is not None and self.runs else None,
            "connected": report.connected,
            "faults": report.faults,
        }

    def _state(self, report: Report) -> str:
        if not self.runs:
            return "ended"
        if self.report is None:
            return "starting"
        if asyncio.get_running_loop().time() - self._heard_at > SILENCE:
            return "silent"
        return "ready" if report.not_ready is None else "not ready"


class Workers:
    """All of them; made by `run_workers`. `failed` is done with an error if one is watched no more."""

    def __init__(self, settings: Settings, workers: Sequence[Worker]) -> None:
        self.all = workers
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    @property
    def url(self) -> str:
        """Where they serve."""
        report = self.all[0].report
        return "" if report is None else report.url

    async def start(self) -> None:
        """Start all; returns when they serve. Raises `BadSetting`."""
        self._tasks = [
            supervise(self._keep(worker), worker.name, self.failed) for worker in self.all
        ]
        for worker in self.all:
            await worker.heard.wait()
            if not worker.served:
                raise BadSetting(worker.fault or f"{worker.name} did not start; its log says why")

    async def _keep(self, worker: Worker) -> None:
        """Have a process of `worker` until all are to end."""
        loop = asyncio.get_running_loop()
        shortest, longest = _RESTART
        pause = shortest
        while not self._ending.is_set():
            began = loop.time()
            try:
                await worker.live()
                reason = worker.refused
            except OSError as error:
                reason = f"it cannot be started: {error}"
            worker.fault = reason
            worker.heard.set()
            if self._ending.is_set() or not worker.served:
                break
            status = None if worker.process is None else worker.process.returncode
            _log.error("worker died", node=worker.name, status=status, reason=reason)
            await self._forget(worker)
            pause = shortest if loop.time() - began > _LASTED else min(2 * pause, longest)
            await asyncio.sleep(pause)
        await asyncio.Event().wait()  # until `stop` is done

    async def _forget(self, worker: Worker) -> None:
        """Tell the others that nothing of it is left; on a server nobody but its lease knows that."""
        if file_of(self._settings.database_url) is None:
            return
        try:
            async with open_store(self._settings.database_url, create=False) as engine:
                await engine.write(lambda transaction: forget(transaction, worker.name))
        except (StoreUnavailable, StoreRefused) as error:
            _log.warning("a dead worker stands in the table still", reason=str(error))

    def reload(self) -> None:
        """Let each read its certificate again."""
        for worker in self.all:
            if worker.report is not None:  # or it is still starting, and reads it then
                worker.signal(signal.SIGHUP)

    async def stop(self) -> None:
        """End all; whoever does not end in time is killed."""
        self._ending.set()
        for worker in self.all:
            worker.signal(signal.SIGTERM)
        ending = [worker.process.wait() for worker in self.all if worker.process is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                await asyncio.gather(*ending)
        for worker in self.all:
            worker.signal(signal.SIGKILL)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def health(self, _: web.Request) -> web.Response:
        """200 as long as the parent lives, with what it knows of each worker."""
        return json_response({"status": "alive", "workers": [worker.told() for worker in self.all]})


@contextlib.asynccontextmanager
async def run_workers(settings: Settings) -> AsyncIterator[Workers]:
    """Take what `server.workers` gateways need; `Workers.start` starts them. On leaving they drain and stop.

    Raises:
        BadSetting, KeyFileUnusable, StoreRefused, StoreUnavailable: they cannot start; the text says
            what to change.
    """
    for warning in settings.check_exposure():
        _log.warning(warning)
    listen = settings.metrics_listen
    if listen is not None and not 0 < listen[1] <= _LAST_PORT - settings.server_workers:
        raise BadSetting(
            f"metrics.listen {listen[0]}:{listen[1]}: worker k has port + k, so take one from 1 to"
            f" {_LAST_PORT - settings.server_workers}, or leave it empty"
        )
    async with contextlib.AsyncExitStack() as stack:
        common = await _prepare(settings, stack)
        try:
            shares = bind(settings.server_host, settings.server_port, settings.server_workers)
        except OSError as error:
            raise cannot_listen(settings, error) from error
        settings = replace(settings, server_port=shares[0].port)
        workers = []
        for number, share in enumerate(shares, 1):
            stack.callback(share.close)
            workers.append(
                Worker(
                    _settings_of(settings, number),
                    share,
                    bell=common.bell(number - 1),
                    nonce_key=common.nonce_key,
                    kept=common.kept,
                )
            )
        started = Workers(settings, workers)
        stack.push_async_callback(started.stop)
        await _expose(settings, started, stack)
        yield started


def _settings_of(settings: Settings, number: int) -> Settings:
    """Those of one worker: a name and a port for metrics of its own."""
    listen = settings.metrics_listen
    return replace(
        settings,
        node_name=f"{settings.node_name or socket.gethostname()}-{number}",
        metrics_listen=listen and (listen[0], listen[1] + number),
    )


@dataclass
class _Common:
    """What all workers have in common; empty where that is a database on a server."""

    kept: list[int] = field(default_factory=list)
    """The handle that holds an SQLite file for them."""
    pipes: list[tuple[int, int]] = field(default_factory=list)
    nonce_key: bytes | None = None
    """Another at each start, as used proofs are forgotten then."""

    def bell(self, number: int) -> tuple[int, list[int]] | None:
        """The pipe at which worker `number` is woken, and those of the others."""
        if not self.pipes:
            return None
        others = [end for other, (_, end) in enumerate(self.pipes) if other != number]
        return self.pipes[number][0], others


async def _prepare(settings: Settings, stack: contextlib.AsyncExitStack) -> _Common:
    """Make what workers could not make side by side: tables, keys, and what they share on a file."""
    path = file_of(settings.database_url)
    common = _Common()
    if path is not None:
        path = resolve(path)
        common.kept = [await asyncio.to_thread(lambda: stack.enter_context(held(path)))]
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
        common.nonce_key = secrets.token_bytes(32)
        for _ in range(settings.server_workers):
            common.pipes.append(os.pipe())
            for end in common.pipes[-1]:
                stack.callback(os.close, end)
    return common


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
        address = ":".join(map(str, settings.metrics_listen))
        reason = error.strerror or str(error)
        _log.warning("health of the workers not served", listen=address, reason=reason)
