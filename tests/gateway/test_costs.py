"""What an admission and an idle session cost, counted and not timed: a guard against creeping costs.

The bounds are what was counted when they were set, and a fifth more. Whoever has to raise one says why.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import tracemalloc
from pathlib import Path

import aiosqlite
import pytest

import gateway
from client.protocol import PATH
from gateway.node.signature_helper import SignatureHelper
from tests.support import work
from tests.support.ice import until

CALLS = 205
"""Python calls of an admission, from the accepted connection to presence in the table."""
TRACKED = 17
"""Objects of an idle session that the garbage collector has to look at."""
TRACED = 3900
"""Bytes of an idle session that Python has allocated; 3,465 were counted."""
SWITCHES = 13
"""Thread switches of SQLite from the request of an operation to its result at the caller."""
MANY = 100

_COUNTED = (
    str(Path(gateway.__file__).parent),
    *(str(Path("site-packages", name)) for name in ("aiohttp", "aiosqlite", "prometheus_client")),
)


async def arrivals(running, names):
    """Registered ICEs, each with a new connection on which its handshake stands already.

    Their signatures are checked in place, as on one core: another process would check some of them, at its own time.
    """
    running.gateway.node.admission.screening.signatures = SignatureHelper(cores=lambda: 1)
    ices = [await running.provision(name, "ci-cd") for name in names]
    for ice in ices:
        await (await ice.connect()).close()
    await until(lambda: not len(running.gateway.node.hub))
    await running.settled()
    sockets = []
    for ice in ices:
        host, _, port = ice.url.removeprefix("http://").partition(":")
        sockets.append(socket.create_connection((host, int(port))))
        sockets[-1].sendall(ice.request(path=PATH))
    return sockets


async def admitted(running, count):
    """All who have arrived are in the hub, and everybody may know."""
    await until(lambda: len(running.gateway.node.hub) == count)
    await running.settled()


# On a busy machine a second passes meanwhile, and each ICE would be read again.
@pytest.mark.gateway(monotonic=lambda: 0.0)
async def test_the_calls_of_an_admission(running):
    sockets = await arrivals(running, [f"ci-{number}" for number in range(MANY)])
    calls = {}

    def count(frame, event, _):
        code = frame.f_code
        if event == "call" and any(part in code.co_filename for part in _COUNTED):
            name = f"{Path(code.co_filename).name}:{code.co_qualname}"
            calls[name] = calls.get(name, 0) + 1

    sys.setprofile(count)
    try:
        await admitted(running, MANY)
    finally:
        sys.setprofile(None)
    for ours in sockets:
        ours.close()
    each = sum(calls.values()) / MANY
    most = sorted(((number / MANY, name) for name, number in calls.items()), reverse=True)
    assert calls["hub.py:Hub.promote"] == MANY
    assert each <= CALLS, (
        f"{each:.0f} calls an admission, {CALLS} were expected; the most: {most[:40]}"
    )


async def test_what_an_idle_session_holds(running):
    names = [f"ci-{number}" for number in range(MANY)]
    sockets = await arrivals(running, names)
    tasks = len(asyncio.all_tasks())
    gc.collect()
    tracemalloc.start()
    try:
        tracked = len(gc.get_objects())
        before = tracemalloc.get_traced_memory()[0]
        await admitted(running, MANY)
        for name in names:
            running.gateway.node.hub.get(name).transport.ping()
        gc.collect()
        traced = (tracemalloc.get_traced_memory()[0] - before) / MANY
        tracked = (len(gc.get_objects()) - tracked) / MANY
    finally:
        tracemalloc.stop()
    for ours in sockets:
        ours.close()
    # The gateway may have a few under way by itself, such as a query.
    more = len(asyncio.all_tasks()) - tasks
    assert more < MANY / 2, f"no session was expected to have a task of its own: {more} more"
    assert tracked <= TRACKED, f"{tracked:.1f} objects a session, {TRACKED} were expected"
    assert traced <= TRACED, f"{traced:.0f} bytes a session, {TRACED} were expected"


@pytest.mark.sqlite
async def test_the_thread_switches_of_an_operation(running):
    """Each takes a tenth of a millisecond, and more beside a busy loop; three of them are commits."""
    connection = await work.connected(running)
    await running.settled()
    switch, statements = aiosqlite.Connection._execute.__code__, []

    def note(frame, event, called):
        # A coroutine is called again at each step; it hands its work to the thread once.
        if event == "c_call" and frame.f_code is switch and called.__name__ == "put_nowait":
            sql = [one for one in frame.f_locals["args"] if isinstance(one, str)]
            statements.extend(sql or [frame.f_locals["fn"].__name__])

    sys.setprofile(note)
    try:
        asked = asyncio.create_task(
            work.ask(running.admin, query="?wait=5", params={"argv": ["true"]})
        )
        await work.finished(connection, await work.take(connection), result={})
        answer = await asked
    finally:
        sys.setprofile(None)
    assert answer.json["state"] == "succeeded"
    of_it = [sql for sql in statements if not sql.startswith("PRAGMA")]
    assert of_it.count("_transact") == 3
    assert len(of_it) <= SWITCHES, f"{len(of_it)}, {SWITCHES} were expected: {of_it}"
