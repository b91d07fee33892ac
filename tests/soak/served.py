"""The gateway of the soak in its process: it serves as `ice-gateway serve` does, with a clock that jumps.

    python -m tests.soak.served

Settings come from the environment. SIGUSR1 sets the clock by the file ICE_SOAK_CLOCK (seconds ahead), SIGHUP reads the
certificate again, SIGUSR2 deletes what is not to be kept, and writes what is alive in the process to ICE_SOAK_STATE: tasks,
threads, objects by type.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.app import Gateway, run_gateway
from gateway.core.audit_event import Actor, Via
from gateway.core.times import utc_now
from gateway.node.expiry import OperationExpiry
from gateway.runtime import eventloop
from gateway.runtime.logs import configure
from gateway.runtime.setting_sources import load
from gateway.runtime.tls import reload_certificate

KEPT = timedelta(minutes=2)
"""Of the audit log."""
_ACTOR = Actor("soak", Via.COMMAND, "localhost")
_TYPES = 400
"""The most frequent types are told."""


class JumpingClock:
    """The machine's clock, ahead by what a file says."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self._ahead

    def read(self) -> None:
        self._ahead = timedelta(seconds=float(self._file.read_text()))


def alive() -> dict[str, Any]:
    """What this process holds, after a collection."""
    gc.collect()
    objects = gc.get_objects()
    types = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    tasks = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    return {
        "objects": len(objects),
        "types": dict(types.most_common(_TYPES)),
        "tasks": dict(tasks),
        "threads": threading.active_count(),
    }


async def _tell(gateway: Gateway, clock: JumpingClock, file: Path) -> None:
    pruned = await gateway.services.audit.prune(_ACTOR, clock() - KEPT)
    keep = gateway.settings.operations_keep
    # Every ten minutes it does so by itself, and looks would see waves.
    await OperationExpiry(gateway.engine, clock, keep, lambda _: None).forget()
    found = {"pruned": pruned if isinstance(pruned, str) else pruned.count, **alive()}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(found))
    new.rename(file)


async def _serve() -> None:
    settings = load(None, dict(os.environ), {})
    configure(settings.log_format, settings.log_level)
    clock = JumpingClock(Path(os.environ["ICE_SOAK_CLOCK"]))
    state = Path(os.environ["ICE_SOAK_STATE"])
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    telling: set[asyncio.Task[None]] = set()

    def told(task: asyncio.Task[None]) -> None:
        telling.discard(task)
        task.result()  # else the soak waits for the file in vain, and here is why

    async with run_gateway(settings, clock=clock) as gateway:

        def tell() -> None:
            task = loop.create_task(_tell(gateway, clock, state))
            telling.add(task)
            task.add_done_callback(told)

        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload_certificate, gateway.tls)
        loop.add_signal_handler(signal.SIGUSR1, clock.read)
        loop.add_signal_handler(signal.SIGUSR2, tell)
        gateway.failed.add_done_callback(lambda _: stop.set())
        sys.stdout.write(f"soak serves {gateway.url} on {gateway.engine.name}\n")
        sys.stdout.flush()
        eventloop.freeze_heap()
        await stop.wait()
        if gateway.failed.done():
            gateway.failed.result()


if __name__ == "__main__":
    eventloop.run(_serve())
