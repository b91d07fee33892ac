"""The gates of the listener: an upgrade is answered the same, whether it takes the short way or the long.

The short way is for what comes whole, and first on its connection; all else goes by aiohttp's router.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from gateway.core.problems import problem
from gateway.web.connection import Timeouts
from gateway.web.responses import problem_response
from gateway.web.server import Runner
from gateway.web.upgrade import HandedOver, Upgrade, hand_over
from gateway.web.websocket import WebSocket
from tests.support.ice import PATIENCE, until

UPGRADE = (
    b"GET /gate HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PLAIN = b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n"


class Receiver:
    def __init__(self):
        self.wire = WebSocket(self)
        self.codes = []

    def received(self, text):
        self.wire.send(text.encode())

    def closed(self, code):
        self.codes.append(code)


class Gate:
    """Lets everybody in, or refuses them, and notes by which way they came."""

    def __init__(self, refuses=False):
        self.refuses = refuses
        self.short = self.long = 0
        self.receivers = []

    async def __call__(self, upgrade):
        self.short += 1
        return self.answer(upgrade)

    async def by_router(self, request):
        self.long += 1
        return self.answer(Upgrade.of(request)) or HandedOver()

    def answer(self, upgrade):
        if self.refuses:
            return problem_response(problem("forbidden"))
        self.receivers.append(Receiver())
        hand_over(upgrade, self.receivers[-1].wire, None)
        return None


@contextlib.asynccontextmanager
async def listening(gate, by_router=None, **options):
    async def plain(_):
        return web.Response(text="plain")

    app = web.Application()
    app.router.add_get("/plain", plain)
    app.router.add_get("/gate", by_router or gate.by_router)
    runner = Runner(app, shutdown_timeout=0.1, upgrades={"/gate": gate}.get, **options)
    await runner.listen("127.0.0.1", 0)
    try:
        yield runner
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def connected(runner):
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    async with asyncio.timeout(PATIENCE):
        try:
            yield reader, writer
        finally:
            writer.close()


async def head(reader):
    return await reader.readuntil(b"\r\n\r\n")


async def in_pieces(writer, data):
    for octet in data:
        writer.write(bytes([octet]))
        await writer.drain()
        await asyncio.sleep(0)


async def test_what_comes_whole_and_first_takes_the_short_way():
    gate = Gate()
    async with listening(gate) as runner, connected(runner) as (reader, writer):
        writer.write(UPGRADE)
        assert (await head(reader)).startswith(SWITCHED)
        assert (gate.short, gate.long) == (1, 0)
        await until(lambda: not runner.server.connections)  # aiohttp has let go


@pytest.mark.parametrize(
    "sent",
    [
        UPGRADE.replace(b"/gate", b"/gate?query"),
        UPGRADE.replace(b"/gate", b"/%67ate"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n"),
    ],
    ids=["a query", "another spelling", "an expectation"],
)
async def test_what_is_odd_takes_the_long_way(sent):
    gate = Gate()
    async with listening(gate) as runner, connected(runner) as (reader, writer):
        writer.write(sent)
        answer = await head(reader)
        if b"Expect" in sent:
            assert answer == b"HTTP/1.1 100 Continue\r\n\r\n"
            answer = await head(reader)
        assert answer.startswith(SWITCHED)
        assert (gate.short, gate.long) == (0, 1)


async def test_what_comes_in_pieces_takes_the_long_way():
    gate = Gate()
    async with listening(gate) as runner, connected(runner) as (reader, writer):
        await in_pieces(writer, UPGRADE)
        assert (await head(reader)).startswith(SWITCHED)
        assert gate.short + gate.long == 1


@pytest.mark.parametrize("together", [True, False])
async def test_an_upgrade_behind_a_request_takes_the_long_way(together):
    """A proxy may well use a connection again that it has kept."""
    gate = Gate()
    async with listening(gate) as runner, connected(runner) as (reader, writer):
        writer.write(PLAIN + (UPGRADE if together else b""))
        assert (await head(reader)).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(5) == b"plain"
        if not together:
            writer.write(UPGRADE)
        assert (await head(reader)).startswith(SWITCHED)
        assert (gate.short, gate.long) == (0, 1)


@pytest.mark.parametrize("send", [lambda w: w.write(UPGRADE), lambda w: in_pieces(w, UPGRADE)])
async def test_a_refusal_is_the_same_either_way(send):
    gate = Gate(refuses=True)
    async with listening(gate) as runner, connected(runner) as (reader, writer):
        waits = send(writer)
        if waits is not None:
            await waits
        answer = await head(reader)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"\r\nServer: ice-gateway\r\n" in answer
        assert b"\r\nContent-Type: application/problem+json\r\n" in answer
        assert gate.short + gate.long == 1


async def test_a_gate_that_fails_is_an_internal_error(said):
    async def fails(_):
        raise ZeroDivisionError

    async with listening(fails, Gate().by_router) as runner, connected(runner) as (reader, writer):
        writer.write(UPGRADE)
        assert (await head(reader)).startswith(b"HTTP/1.1 500 ")
        assert json.loads(await reader.read(10_000))["code"] == "internal"
    assert [(line["event"], line["log_level"]) for line in said] == [("unexpected error", "error")]


async def test_a_gate_that_takes_too_long_is_503_and_is_ended(said):
    ended = asyncio.Event()

    async def never(_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with (
        listening(never, Gate().by_router, timeouts=Timeouts(request=0.05, head=0.05)) as runner,
        connected(runner) as (reader, writer),
    ):
        writer.write(UPGRADE)
        assert (await head(reader)).startswith(b"HTTP/1.1 503 ")
        assert ended.is_set(), "what nobody waits for any more was to be ended"
        assert said == [
            {"event": "no answer", "log_level": "error", "method": "GET", "path": "/gate"}
        ]


async def test_a_gate_thinks_no_longer_about_who_has_gone(caplog):
    entered, left = asyncio.Event(), asyncio.Event()

    async def slow(_):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with listening(slow, Gate().by_router) as runner:
        async with connected(runner) as (_, writer):
            writer.write(UPGRADE)
            await entered.wait()
            writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await left.wait()
        await until(lambda: not runner.server.connections)
    assert not caplog.records, "that a client has gone was expected to be no fault"


async def test_who_is_asked_while_the_listener_stops_is_not_waited_for_without_end():
    entered = asyncio.Event()

    async def never(_):
        entered.set()
        await asyncio.Event().wait()

    async with listening(never, Gate().by_router) as runner, connected(runner) as (reader, writer):
        writer.write(UPGRADE)
        await entered.wait()
        async with asyncio.timeout(PATIENCE):
            await runner.cleanup()
        assert await reader.read() == b"", "the connection was to end"
