"""The listener against clients that send or read too slowly, on a small application of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from aiohttp import web

from gateway.listener import Runner
from tests.support.ice import until

LARGE = 16 * 1024 * 1024
"""More than the kernel takes for a client that does not read."""


@contextlib.asynccontextmanager
async def listening(handler, **options):
    app = web.Application()
    app.router.add_get("/", handler)
    runner = Runner(app, shutdown_timeout=0.1, **options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def client(runner, request):
    """A socket that has sent a request and reads nothing by itself."""
    loop = asyncio.get_running_loop()
    with socket.socket() as ours:
        ours.setblocking(False)
        await loop.sock_connect(ours, runner.addresses[0])
        await loop.sock_sendall(ours, request)
        await until(lambda: runner.server.connections)
        yield ours


async def rest(ours):
    """How many bytes there were to be read."""
    loop, count = asyncio.get_running_loop(), 0
    with contextlib.suppress(ConnectionResetError):
        while data := await loop.sock_recv(ours, 1 << 20):
            count += len(data)
    return count


def request(connection="keep-alive"):
    return f"GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode()


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("waits", ["for more", "for the rest"])
async def test_client_that_does_not_read_is_cut_off(monkeypatch, connection, waits):
    monkeypatch.setattr("gateway.listener.READ_TIMEOUT", 0.05)

    async def answer(asked):
        if waits == "for the rest":  # the answer counts as written, and its end is waited for
            asked.transport.set_write_buffer_limits(high=2 * LARGE)
        return web.Response(body=bytes(LARGE))

    async with (
        listening(answer, keepalive_timeout=0.05) as runner,
        client(runner, request(connection)) as ours,
    ):
        await until(lambda: not runner.server.connections)
        assert await rest(ours) < LARGE, "what was never read was to be given up"


async def test_client_that_reads_slowly_but_reads_is_served(monkeypatch):
    waited = []

    def wait(connection):
        waited.append(connection)

    monkeypatch.setattr("gateway.listener._Connection._wait", wait)

    async def answer(_):
        return web.Response(body=bytes(LARGE))

    async with (
        listening(answer, keepalive_timeout=5) as runner,
        client(runner, request("close")) as ours,
    ):
        assert await rest(ours) > LARGE
        assert waited, "a large answer makes the transport wait"


@pytest.mark.parametrize("part", [b"", b"GE", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_request_that_never_ends_is_cut_off(part):
    async def answer(_):
        return web.Response()

    async with listening(answer, keepalive_timeout=0.05) as runner, client(runner, part) as ours:
        for _ in range(3):  # whatever trickles in does not prolong it
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(ours, part[-1:])
        await until(lambda: not runner.server.connections)
        await rest(ours)  # ends
