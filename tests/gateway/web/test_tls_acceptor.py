"""Connections for TLS, from the moment they are accepted: on a small application, and on a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket

from aiohttp import web

from gateway.web.connection import DEFAULT_TIMEOUTS, Timeouts
from gateway.web.load_shedding import LoadShedding
from gateway.web.server import Runner
from tests.support.ice import PATIENCE, until
from tests.support.served import serving


class Watching(LoadShedding):
    """Tells how many strangers there are."""

    def __init__(self):
        super().__init__()
        self.here = set()

    def accepted(self, connection, handle):
        self.here.add(connection)
        super().accepted(connection, handle)

    def forget(self, connection):
        self.here.discard(connection)
        super().forget(connection)


@contextlib.asynccontextmanager
async def listening(authority, shedding, timeouts=DEFAULT_TIMEOUTS):
    async def answer(_):
        return web.Response(text="served")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = Runner(app, shutdown_timeout=0.1, load_shedding=shedding, timeouts=timeouts)
    await runner.listen("127.0.0.1", 0, authority.server_context("127.0.0.1"))
    try:
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()


async def asked(address, authority):
    """What is answered over TLS."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(*address, ssl=authority.trust())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


def test_who_never_begins_tls_gives_way(run, authority):
    async def story():
        shedding = Watching()
        async with listening(authority, shedding) as address:
            strangers = []
            for number in range(3):
                strangers.append(await asyncio.open_connection(*address))
                await until(lambda number=number: len(shedding.here) == number + 1)
            assert shedding.shed(2) == 2
            for reader, _ in strangers[:2]:
                async with asyncio.timeout(PATIENCE):
                    assert await reader.read() == b"", "the oldest were to be cut"
            await until(lambda: len(shedding.here) == 1)
            assert (await asked(address, authority)).endswith(b"served")
            assert not strangers[2][0].at_eof(), "one was to stay"
            for _, writer in strangers:
                writer.close()
            await until(lambda: not shedding.here)

    run(story())


def test_another_protocol_ends_its_own_connection_alone(run, authority):
    async def story():
        shedding = Watching()
        async with listening(authority, shedding) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(PATIENCE):
                await reader.read()
            writer.close()
            await until(lambda: not shedding.here)
            assert (await asked(address, authority)).endswith(b"served")

    run(story())


def test_closing_ends_the_handshakes_that_are_not_done(run, authority):
    async def story():
        shedding = Watching()
        async with listening(authority, shedding) as address:
            reader, writer = await asyncio.open_connection(*address)
            await until(lambda: shedding.here)
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        assert not shedding.here

    run(story())


def test_no_handle_left_is_a_pause(run, authority, monkeypatch):
    """As in asyncio: it goes on accepting when there are handles again."""

    async def story():
        shedding = Watching()
        async with listening(authority, shedding, Timeouts(accept_again=0.01)) as address:
            accept, left = socket.socket.accept, iter(range(3))

            def accepting(listening):
                if next(left, None) is not None:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return accept(listening)

            monkeypatch.setattr(socket.socket, "accept", accepting)
            assert (await asked(address, authority)).endswith(b"served")
            assert next(left, None) is None, "the system was to be short of handles first"

    run(story())


async def test_an_ice_gets_in_though_strangers_hold_all_handles(tmp_path, authority):
    certificate, key = authority.certificate("127.0.0.1")
    env = {
        "ICE_GATEWAY_SERVER__TLS_CERTIFICATE": str(certificate),
        "ICE_GATEWAY_SERVER__TLS_KEY": str(key),
        "ICE_GATEWAY_METRICS__LISTEN": "",
    }
    with serving(tmp_path, **env) as served:
        ice = await served.provision("among-strangers", tls=authority.trust())
        _, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (400, hard))
        port = int(served.url.rpartition(":")[2])
        strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(500)]
        connection = await ice.connect()
        await connection.round_trip()
        await connection.close()
        for _, writer in strangers:
            writer.close()
