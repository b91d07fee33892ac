"""TLS on a connection: what the protocol above sees, and what the client does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tracemalloc

import pytest
import uvloop

from gateway.web.tls_transport import TlsTransport
from tests.support.authority import Authority
from tests.support.ice import PATIENCE, until


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine on each kind of loop."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class Recorder(asyncio.Protocol):
    """The protocol above: notes what happens."""

    def __init__(self):
        self.said, self.received = [], bytearray()

    def connection_made(self, transport):
        self.transport = transport
        self.said.append("made")

    def data_received(self, data):
        assert not self.paused, "nothing was to be delivered"
        self.received += data

    paused = False

    def eof_received(self):
        self.said.append("eof")

    def connection_lost(self, exc):
        self.said.append("lost")

    def pause_writing(self):
        self.said.append("pause")

    def resume_writing(self):
        self.said.append("resume")


class Client:
    """A client of TLS that decides what it sends and reads when."""

    def __init__(self, context, reader, writer):
        self.reader, self.writer = reader, writer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    async def does(self, action, *args, last=b""):
        """What `action` returns, once it has all that it waits for; `last` is sent with its last bytes."""
        while True:
            try:
                done = action(*args)
            except ssl.SSLWantReadError:
                self.writer.write(self.outgoing.read())
                data = await self.reader.read(65536)
                assert data, "the server has closed"
                self.incoming.write(data)
                continue
            if last:
                self.tls.write(last)
            self.writer.write(self.outgoing.read())
            return done

    async def has_read(self, size):
        found = bytearray()
        while len(found) < size:
            found += await self.does(self.tls.read, 65536)
        return found


@contextlib.asynccontextmanager
async def talking(authority, *, greeting=b"", shake=True, patience=PATIENCE, closing=PATIENCE):
    """A client, and the recorder at the server's side of its connection; without `shake` what waits for that."""
    loop, above = asyncio.get_running_loop(), Recorder()
    shaken, context = loop.create_future(), authority.server_context("127.0.0.1")

    def accepted():
        return TlsTransport(
            lambda: above,
            context,
            shaken,
            handshake_timeout=patience,
            shutdown_timeout=closing,
        )

    server = await loop.create_server(accepted, "127.0.0.1", 0)
    async with asyncio.timeout(PATIENCE):
        streams = await asyncio.open_connection(*server.sockets[0].getsockname())
        client = Client(authority.trust(), *streams)
        if shake:
            await client.does(client.tls.do_handshake, last=greeting)
            await shaken
        try:
            yield client, above if shake else shaken
        finally:
            client.writer.transport.abort()
            if above.said:
                above.transport.abort()  # it may have paused
            server.close()
        await shaken
        if above.said:
            await until(lambda: "lost" in above.said)
            assert above.said.count("lost") == above.said.count("made") == 1


BIG = bytes(range(256)) * 64_000  # 16 MB, more than the sockets hold


def test_data_that_comes_with_the_end_of_the_handshake_is_delivered(run, authority):
    async def story():
        async with talking(authority, greeting=b"early") as (_, above):
            await until(lambda: above.received == b"early")

    run(story())


def test_much_data_arrives_whole_both_ways(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            client.tls.write(BIG)
            client.writer.write(client.outgoing.read())
            await until(lambda: len(above.received) == len(BIG))
            assert above.received == BIG
            above.transport.write(BIG)
            assert above.transport.get_write_buffer_size() > 0
            assert "pause" in above.said
            assert await client.has_read(len(BIG)) == BIG
            await until(lambda: above.said[-1] == "resume")
            assert above.transport.get_write_buffer_size() == 0

    run(story())


def test_a_paused_protocol_gets_nothing_and_then_everything(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            above.transport.pause_reading()
            assert not above.transport.is_reading()
            above.paused = True
            client.tls.write(BIG)
            client.writer.write(client.outgoing.read())
            # The first bytes would have been delivered by then: another connection gets its own.
            async with talking(authority, greeting=b"later") as (_, other):
                await until(lambda: other.received == b"later")
            above.paused = False
            above.transport.resume_reading()
            await until(lambda: len(above.received) == len(BIG))
            assert above.received == BIG

    run(story())


def test_a_protocol_that_pauses_within_its_data_gets_no_more_of_it(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            deliver = above.data_received

            def pausing(data):
                deliver(data)
                above.paused = True
                above.transport.pause_reading()

            above.data_received = pausing
            for part in (b"a" * 100, b"b" * 100):  # a record each
                client.tls.write(part)
            client.writer.write(client.outgoing.read())
            await until(lambda: above.received)
            assert above.received == b"a" * 100
            above.paused = False
            above.transport.resume_reading()
            await until(lambda: len(above.received) == 200)

    run(story())


def test_our_close_is_said_and_waits_for_the_clients(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            above.transport.write(b"last words")
            above.transport.close()
            above.transport.write(b"too late")
            assert above.transport.is_closing()
            assert await client.has_read(10) == b"last words"
            assert await client.does(client.tls.read, 10) == b"", "close_notify was to come"
            client.tls.write(b"still talking")  # which nobody hears
            client.writer.write(client.outgoing.read())
            assert "lost" not in above.said
            await client.does(client.tls.unwrap)
            assert await client.reader.read() == b""
            await until(lambda: above.said[-1] == "lost")
            assert not above.received
            assert "eof" not in above.said

    run(story())


def test_the_clients_close_is_answered(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            client.tls.write(b"last words")
            await client.does(client.tls.unwrap)
            await until(lambda: above.said[-1] == "lost")
            assert above.received == b"last words"
            assert above.said == ["made", "eof", "lost"]

    run(story())


def test_a_client_that_does_not_answer_our_close_is_cut(run, authority):
    async def story():
        async with talking(authority, closing=0.01) as (_, above):
            above.transport.close()
            await until(lambda: above.said[-1] == "lost")

    run(story())


def test_a_client_that_never_begins_is_cut(run, authority):
    async def story():
        async with talking(authority, shake=False, patience=0.01) as (client, shaken):
            assert await client.reader.read() == b""
            await shaken

    run(story())


def test_a_connection_that_ends_without_a_close_is_lost(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            client.writer.write_eof()
            await until(lambda: above.said[-1] == "lost")
            assert above.said == ["made", "lost"]

    run(story())


def test_what_is_not_tls_after_the_handshake_ends_the_connection(run, authority):
    async def story():
        async with talking(authority) as (client, above):
            client.writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
            await until(lambda: above.said[-1] == "lost")
            assert not above.received
            above.transport.write(b"to nobody")
            above.transport.close()

    run(story())


def test_a_failed_handshake_says_why(run, authority):
    async def story():
        async with talking(authority, shake=False) as (client, _):
            old = ssl.create_default_context(cafile=authority.file)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            old.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the server's key is no RSA
            client.tls = old.wrap_bio(client.incoming, client.outgoing, server_hostname="127.0.0.1")
            with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                await client.does(client.tls.do_handshake)

    run(story())


def test_an_idle_connection_holds_no_read_buffer(run, authority):
    """The loops' own TLS has one of 256 KiB for each connection."""

    async def story():
        async with (
            talking(authority),
            contextlib.AsyncExitStack() as stack,
        ):  # the first one imports
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                for _ in range(5):
                    await stack.enter_async_context(talking(authority))
                held = (tracemalloc.get_traced_memory()[0] - before) / 5
            finally:
                tracemalloc.stop()
        assert held < 128 * 1024, f"{held:.0f} bytes, both sides together"

    run(story())
