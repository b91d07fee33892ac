"""A gateway that lives long: ICEs come, work and go, admins act, the clock jumps, certificates change.

    python -m tests.soak --hours 2 [--every 5] [--ices 20] [--engine postgresql]

Every so many minutes, after a whole round of clock jumps, it prints the gateway's memory, handles, tasks, objects, rows, database, log and CPU. It fails (status 1)
when one of them grows after the warm-up (a third of the run) beyond what is kept, and when an answer was wrong. The
gateway runs in a process of its own (`tests.soak.served`), with short times of keeping, so that what is kept has its full
size after minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.scale.report import when_and_where
from tests.soak import actors
from tests.soak.actors import ADMIN, PASSWORD, USER, World
from tests.soak.observe import HEADER, Observer, growth, row
from tests.soak.trend import WARM_UP
from tests.support.authority import Authority
from tests.support.harness import Api
from tests.support.node import Node, run_command, running
from tests.support.postgres import Postgres, postgres
from tests.support.receiver import receiving

_JUMPS = (0, 90, -90, 0, 30, 0)
"""Seconds by which the gateway's clock is ahead, in turn. No proof is refused for its time after the last three."""
_PAUSE = 17.0
"""Seconds between two jumps."""
_FARTHEST = 900.0
"""Seconds of one short jump before each round, at most half of the warm-up: rows dated then are kept that much longer."""
_MOMENT = 2.0
_SETTINGS = {
    "OPERATIONS__KEEP": "1m",
    "OPERATIONS__KEPT_BYTES": "2000000",
    "ADMIN__LOGIN_IDLE": "60s",
    "ADMIN__LOGIN_LIFETIME": "5m",
    "NOTICES__AWAY_AFTER": "30s",
    "WEBHOOKS__ALLOW": "127.0.0.0/8",
    "LOG__FORMAT": "json",
}


async def _renew_certificates(authority: Authority, node: Node, pause: float) -> None:
    while True:
        await asyncio.sleep(pause)
        authority.certificate("127.0.0.1")
        node.signal(signal.SIGHUP)


async def _jump_for(seconds: float, clock: Path, node: Node, far: float) -> None:
    """Let the clock jump, in whole rounds, for at least that long.

    The number of rows and of refused proofs follows the clock, so figures taken in the middle of a round would seem to grow.
    """
    ending = time.monotonic() + seconds
    while time.monotonic() < ending:
        for ahead, pause in ((far, _MOMENT), *((ahead, _PAUSE) for ahead in _JUMPS)):
            clock.write_text(str(ahead))  # noqa: ASYNC240 - a few bytes, in memory or cached
            node.signal(signal.SIGUSR1)
            await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def _served(
    folder: Path, server: Postgres | None
) -> AsyncIterator[tuple[Node, Observer, World, Authority, Any]]:
    """A gateway over TLS, with an admin who has a password and an API token."""
    authority = Authority(folder)
    certificate, key = authority.certificate("127.0.0.1")
    clock, state = folder / "clock", folder / "state.json"
    clock.write_text("0")
    os.environ.update(ICE_SOAK_CLOCK=str(clock), ICE_SOAK_STATE=str(state))
    database = f"sqlite:///{folder}/ice.db"
    if server is not None:
        server.sql("CREATE DATABASE soak")
        database = server.url("soak")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    settings = {
        "SERVER__TLS_CERTIFICATE": str(certificate),
        "SERVER__TLS_KEY": str(key),
        "SERVER__PORT": str(port),
        **_SETTINGS,
    }
    node = Node(folder, "gw-1", database, url, ("tests.soak.served",), **settings)
    password = folder / "password"
    password.write_text(PASSWORD)
    options = ("users", "add", ADMIN, "--role", "admin", "--password-file", str(password))
    await run_command(folder, database, *options)
    await run_command(folder, database, "users", "add", USER, "--role", "member", "--no-password")
    made = ("api-tokens", "create", "--user", ADMIN, "--name", "soak", "--accounts")
    token = await run_command(folder, database, *made)
    tls = authority.trust()
    async with (
        running([node]),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0)) as session,
    ):
        api = Api(session, url, token)
        world = World(folder, url, authority.file, api, random.Random(1))
        yield node, Observer(node, database, state, server), world, authority, tls


async def soak(hours: float, every: float, ices: int, engine: str) -> tuple[list[str], Observer]:
    """Run; what is amiss, a sentence each. `every` is in seconds."""
    async with contextlib.AsyncExitStack() as stack:
        server = None
        if engine == "postgresql":
            server = await asyncio.to_thread(
                lambda: stack.enter_context(postgres("autovacuum=on", "autovacuum_naptime=10s"))
            )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ice-soak-")))
        served = await stack.enter_async_context(_served(folder, server))
        node, observer, world, authority, tls = served
        names = [f"ice-{number:02}" for number in range(ices)]
        for name in names:
            body = {"ice_name": name, "ice_type": "ci-cd"}
            world.give(name, (await world.call("POST", "/ices", body, good=(201,))).json["token"])
        hook = await stack.enter_async_context(receiving())
        acts: list[tuple[Any, ...]] = [
            *((actors.ice, name) for name in names),
            (actors.lifecycle, names),
            *(((actors.operator, names),) * 2),
            (actors.planner, names),
            (actors.accounts,),
            (actors.person, tls),
            *((actors.watcher,),) * 2,
            (actors.receiver, hook),
        ]
        works = [actors.kept_up(world, *act) for act in acts]
        works.append(_renew_certificates(authority, node, 20.0))
        far = min(_FARTHEST, 3600 * hours / WARM_UP / 2)
        tasks = [asyncio.create_task(work) for work in works]
        try:
            print(HEADER, flush=True)
            ending = time.monotonic() + 3600 * hours
            while (left := ending - time.monotonic()) > 0:
                before = world.did.copy()
                await _jump_for(min(every, left), folder / "clock", node, far)
                print(row(await observer.look()), flush=True)
                for what in world.resting(before):
                    world.faults[f"nothing of {what!r} between two looks"] += 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        node.signal(signal.SIGTERM)
        status = await node.ended()
        faults = [] if status == 0 else [f"the gateway ended with {status}"]
        faults += [f"{count} times: {text}" for text, count in world.faults.most_common(20)]
        faults += _logged(node.log)
        print(f"done: {dict(world.did.most_common())}", flush=True)
        return faults + growth(observer.looks), observer


def _logged(log: Path) -> list[str]:
    """The errors that the gateway has logged."""
    with log.open() as lines:
        errors = [line for line in lines if '"level":"error"' in line or "Traceback" in line]
    return [f"{len(errors)} errors were logged, the first: {errors[0][:500]}"] if errors else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--hours",
        type=float,
        default=2.0,
        help="with less than 0.17 rows are not yet as many as are kept",
    )
    parser.add_argument(
        "--every", type=float, default=5.0, help="minimum minutes between two looks"
    )
    parser.add_argument("--ices", type=int, default=20)
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--looks", type=Path, help="write every look to this file, as JSON")
    options = parser.parse_args()
    print(f"{options.engine}; {when_and_where()}", flush=True)
    faults, observer = asyncio.run(
        soak(options.hours, 60 * options.every, options.ices, options.engine)
    )
    if options.looks is not None:
        options.looks.write_text(json.dumps([vars(look) for look in observer.looks]))
    print(*(f"FAULT: {text}" for text in faults), sep="\n")
    print("nothing grows beyond what is kept" if not faults else f"{len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
