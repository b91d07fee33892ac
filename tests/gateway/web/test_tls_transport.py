"""TLS on a connection: what the protocol above sees, and what the client does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tracemalloc

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from gateway.web.tls_transport import MAX_ANSWERS, RECORD, TlsTransport
from tests.support.ice import PATIENCE, until


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


class KeyUpdates:
    """Makes updates of a client's keys, which Python's client cannot (RFC 8446 sections 4.6.3, 5.2, 7.1 and 7.2)."""

    def __init__(self, keylog):
        lines = [line.split() for line in keylog.read_text().splitlines()]
        self.secret = bytes.fromhex(
            next(line[2] for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")
        )

    def next(self):
        """A record that asks the server to update its keys, too."""
        key, iv = self.derived(b"key", 32), self.derived(b"iv", 12)
        content = b"\x18\x00\x00\x01\x01\x16"  # key_update, update_requested; a handshake's record
        head = b"\x17\x03\x03" + (len(content) + 16).to_bytes(2, "big")
        self.secret = self.derived(b"traffic upd", 48)
        return head + AESGCM(key).encrypt(iv, content, head)

    def derived(self, label, size):
        info = size.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self.secret)


@contextlib.asynccontextmanager
async def talking(
    authority, *, greeting=b"", shake=True, patience=PATIENCE, closing=PATIENCE, keylog=None
):
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
        trust = authority.trust()
        if keylog is not None:
            trust.keylog_filename = keylog
        client = Client(trust, *streams)
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
            for part in (b"a" * RECORD, b"b" * 100):
                client.tls.write(part)
            client.writer.write(client.outgoing.read())
            await until(lambda: above.received)
            assert above.received == b"a" * RECORD
            above.paused = False
            above.transport.resume_reading()
            await until(lambda: len(above.received) == RECORD + 100)

    run(story())


def test_small_records_are_delivered_together(run, authority):
    """A client that sends each byte in a record of its own must not cost a call of the protocol for each."""

    async def story():
        async with talking(authority) as (client, above):
            pieces, deliver = [], above.data_received
            above.data_received = lambda data: (pieces.append(len(data)), deliver(data))
            text = BIG[:5000]
            for start in range(len(text)):
                client.tls.write(text[start : start + 1])
            client.writer.write(client.outgoing.read())
            await until(lambda: len(above.received) == len(text))
            assert above.received == text
            assert len(pieces) < 500, pieces

    run(story())


@pytest.mark.parametrize("end", ["close", "garbage"])
def test_what_comes_before_the_end_is_delivered(run, authority, end):
    """Data, and what ends the connection, may arrive together."""

    async def story():
        async with talking(authority) as (client, above):
            for part in (b"last ", b"words"):
                client.tls.write(part)
            if end == "close":
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.unwrap()
            client.writer.write(client.outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
            await until(lambda: above.said[-1] == "lost")
            assert above.received == b"last words"
            assert above.said == ["made", *(["eof"] if end == "close" else []), "lost"]

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


class SlowSocket(asyncio.Transport):
    """A socket whose client has read a little more each time that somebody looks."""

    def __init__(self):
        super().__init__()
        self.sent, self.waiting, self.aborted = bytearray(), 5, asyncio.Event()

    def write(self, data):
        self.sent += data

    def get_write_buffer_size(self):
        self.waiting = max(0, self.waiting - 1)
        return self.waiting

    def is_closing(self):
        return self.aborted.is_set()

    def resume_reading(self):
        """It reads."""

    def abort(self):
        self.aborted.set()


def begun(authority, above, socket):
    """A client that has said all of its handshake, and the server's side of `socket`, which has not heard the end."""
    server = TlsTransport(
        lambda: above,
        authority.server_context("127.0.0.1"),
        asyncio.Future(),
        handshake_timeout=PATIENCE,
        shutdown_timeout=0.001,
    )
    server.connection_made(socket)
    client = Client(authority.trust(), None, None)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    server.data_received(client.outgoing.read())
    client.incoming.write(bytes(socket.sent))
    client.tls.do_handshake()
    return client, server


def test_a_socket_that_fails_below_delivers_no_more(run, authority):
    """The protocol above would begin with a request, and only then learn that its client is gone."""

    async def story():
        above, socket = Recorder(), SlowSocket()
        client, server = begun(authority, above, socket)
        client.tls.write(b"early")
        socket.write = lambda _: socket.aborted.set()  # the end of the handshake cannot be answered
        server.data_received(client.outgoing.read())
        server.connection_lost(None)
        assert above.said == ["made", "lost"]
        assert not above.received

    run(story())


def test_a_client_that_reads_slowly_is_not_cut(run, authority):
    """What waits when we close is sent as long as the client reads on."""

    async def story():
        above, socket = Recorder(), SlowSocket()
        client, server = begun(authority, above, socket)
        server.data_received(client.outgoing.read())
        assert above.said == ["made"]
        socket.waiting = 100
        server.close()
        await asyncio.wait_for(socket.aborted.wait(), PATIENCE)
        assert not socket.waiting
        server.connection_lost(None)

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


def test_a_client_that_asks_for_answers_and_reads_none_is_cut(run, authority, tmp_path):
    """Otherwise the answers to updates of its keys would fill the memory."""

    async def story():
        keylog = tmp_path / "keys"
        async with talking(authority, keylog=keylog) as (client, above):
            updates = KeyUpdates(keylog)
            above.transport.write(BIG)
            waiting = above.transport.get_write_buffer_size()
            assert waiting > 0
            client.writer.write(b"".join(updates.next() for _ in range(100)))
            await until(lambda: above.transport.get_write_buffer_size() > waiting)
            assert "lost" not in above.said
            client.writer.write(b"".join(updates.next() for _ in range(MAX_ANSWERS // 25)))
            await until(lambda: above.said[-1] == "lost")

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
