"""One of several gateways that a parent has started on one machine: `python -m gateway.worker`.

The parent hands everything over the line on the standard input: settings, sockets that are bound, pipes.
The worker tells over it how it is, and ends when the parent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway import process
from gateway.app import Gateway, run_gateway
from gateway.keyfile import KeyFileUnusable
from gateway.logs import configure
from gateway.settings import BadSetting, Settings
from gateway.store.bell import Bell
from gateway.store.engine import StoreRefused, StoreUnavailable

REPORT_EVERY: Final = 0.5
"""Seconds between two reports."""
LINGER: Final = 0.5
"""Seconds for which a gateway that stops still answers handshakes, with `draining`."""
_MAX_HANDLES: Final = 200
_SIZE: Final = struct.Struct("!I")


class Report(msgspec.Struct):
    """How a worker is: what is wrong with it by part, and why it admits nobody; or why it cannot start."""

    url: str = ""
    connected: int = 0
    faults: dict[str, str] = {}
    not_ready: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """What a parent gives to a worker; the handles go beside it, in the order of their numbers here."""

    settings: Settings
    sockets: int
    bell: int
    """Its own pipe and those of the others; 0 where the database tells of commits itself."""
    kept: int
    """Handles that need only stay open: they hold the database for all."""


# --- the parent's side ---------------------------------------------------------------------------


def seat(line: socket.socket, given: Seat, handles: list[int]) -> None:
    """Give a worker its seat, over a line that nothing has been written to yet."""
    content = pickle.dumps(given)
    socket.send_fds(line, [_SIZE.pack(len(content))], handles)
    line.sendall(content)


# --- the worker's --------------------------------------------------------------------------------


def main() -> None:
    """Take the seat and serve."""
    line = socket.socket(fileno=os.dup(0))
    given, handles = _take_seat(line)
    configure(given.settings.log_format, given.settings.log_level, node=given.settings.node_name)
    process.run(_serve(line, given, handles))


def _take_seat(line: socket.socket) -> tuple[Seat, list[int]]:
    # Of more handles than fit the rest would be lost.
    size, handles, flags, _ = socket.recv_fds(line, _SIZE.size, _MAX_HANDLES)
    if len(size) < _SIZE.size or flags & socket.MSG_CTRUNC:
        raise SystemExit("ice-gateway: this is started by `ice-gateway serve --workers`")
    with line.makefile("rb") as stream:
        content = stream.read(*_SIZE.unpack(size))
    return pickle.loads(content), list(handles)  # noqa: S301 - the parent's own, over a line of its own


async def _serve(line: socket.socket, given: Seat, handles: list[int]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    reader, writer = await asyncio.open_unix_connection(sock=line)

    def tell(report: Report) -> None:
        writer.write(msgspec.json.encode(report) + b"\n")

    sockets = [socket.socket(fileno=handles.pop(0)) for _ in range(given.sockets)]
    pipes = [handles.pop(0) for _ in range(given.bell)]
    bell = Bell(pipes[0], pipes[1:]) if pipes else None
    orphaned = asyncio.create_task(_until_orphaned(reader, stop.set))
    try:
        async with run_gateway(
            given.settings, linger=LINGER, sockets=sockets, bell=bell
        ) as gateway:
            loop.add_signal_handler(signal.SIGHUP, gateway.reload)
            process.warm()
            gateway.failed.add_done_callback(lambda _: stop.set())
            while not stop.is_set():
                tell(_report(gateway))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPORT_EVERY):
                        await stop.wait()
            if gateway.failed.done():
                raise SystemExit(1)
    except (BadSetting, KeyFileUnusable, StoreRefused, StoreUnavailable) as error:
        tell(Report(refused=str(error)))
        with contextlib.suppress(OSError):
            await writer.drain()
        raise SystemExit(1) from None
    finally:
        orphaned.cancel()
        writer.close()


def _report(gateway: Gateway) -> Report:
    reasons = gateway.vitals.faults(needed=True).values()
    return Report(
        url=gateway.url,
        connected=len(gateway.hub),
        faults=gateway.vitals.faults(),
        not_ready=". ".join(dict.fromkeys(reasons)) or None,
    )


async def _until_orphaned(line: asyncio.StreamReader, orphaned: Callable[[], None]) -> None:
    """Wait for the end of the line, which is the parent's."""
    with contextlib.suppress(OSError):
        await line.read()
    orphaned()


if __name__ == "__main__":
    main()
