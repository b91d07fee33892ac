"""One of several gateways that a parent has started on one machine: `python -m gateway.worker`.

The parent hands everything over at the start, on the line at the standard input. The worker tells over it how
it is, and ends when the parent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway import process
from gateway.app import LINGER, Gateway, run_gateway
from gateway.keyfile import KeyFileUnusable
from gateway.logs import configure
from gateway.settings import BadSetting, Settings
from gateway.sockets import Share
from gateway.standard_streams import decouple
from gateway.store.bell import Bell
from gateway.store.engine import StoreRefused, StoreUnavailable

REPORT_EVERY: Final = 0.5
"""Seconds between two reports."""


class Report(msgspec.Struct):
    """How a worker is: what is wrong with it by part, and why it admits nobody; or why it cannot start."""

    url: str = ""
    connected: int = 0
    faults: dict[str, str] = {}
    not_ready: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker is started with; handles are numbers of files that it inherits.

    `bell` is the end of its own pipe and those of the others', None where the database tells of commits
    itself; `nonce_key` None where the token keys give one.
    """

    settings: Settings
    sockets: list[int]
    bell: tuple[int, list[int]] | None
    nonce_key: bytes | None


def main() -> None:
    """Serve as the parent says."""
    line = socket.socket(fileno=os.dup(0))
    with line.makefile("rb") as stream:
        start: Start = pickle.load(stream)  # noqa: S301 - the parent's own, over a line of its own
    settings = start.settings
    decouple()
    configure(settings.log_format, settings.log_level, node=settings.node_name)
    process.run(_serve(line, start))


async def _serve(line: socket.socket, start: Start) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    reader, writer = await asyncio.open_unix_connection(sock=line)

    def tell(report: Report) -> None:
        writer.write(msgspec.json.encode(report) + b"\n")

    orphaned = asyncio.create_task(_until_orphaned(reader, stop.set))
    try:
        async with run_gateway(
            start.settings,
            linger=LINGER,
            share=Share([socket.socket(fileno=number) for number in start.sockets]),
            bell=None if start.bell is None else Bell(*start.bell),
            nonce_key=start.nonce_key,
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
    vitals = gateway.vitals
    return Report(gateway.url, len(gateway.hub), vitals.faults(), vitals.reason)


async def _until_orphaned(line: asyncio.StreamReader, orphaned: Callable[[], None]) -> None:
    """Wait for the end of the line, which is the parent's."""
    with contextlib.suppress(OSError):
        await line.read()
    orphaned()


if __name__ == "__main__":
    main()
