"""The hand-over of a connection from aiohttp to its `WebSocket`, on every loop, plain and under TLS."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.frames import Frame, Opcode

from client.protocol import MAX_MESSAGE
from gateway.app import DEFAULT_TUNING, Tuning, run_gateway
from gateway.core.ice import IceType
from gateway.node.session import Session
from gateway.web.websocket import DEFAULT_LIMITS, SLICE, Limits, WebSocket
from tests.support.harness import ADMIN, settings_for
from tests.support.ice import PATIENCE, Ice, until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    (folder / "certificate.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "certificate.pem", folder / "key.pem"


class Stage:
    """Runs a story with a gateway and its ICE on one of the loops."""

    def __init__(self, folder, loop_factory, certificate):
        self._folder = folder
        self._loop_factory = loop_factory
        self._certificate = certificate
        self.tls = None
        self.tuning = DEFAULT_TUNING

    def play(self, story):
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._play(story))

    async def _play(self, story):
        options = {}
        if self._certificate is not None:
            certificate, key = map(str, self._certificate)
            options = {"server__tls_certificate": certificate, "server__tls_key": key}
            self.tls = ssl.create_default_context(cafile=certificate)
        settings = settings_for(self._folder, **options)
        async with run_gateway(settings, tuning=self.tuning, doors=2) as running:
            made = await running.services.provisioning.provision(ADMIN, "ci-1", IceType.CI_CD, None)
            ice = Ice(running.url, made.token.reveal(), tls=self.tls)
            try:
                await story(running, ice)
            finally:
                for connection in ice.connections:
                    await connection.close()


LOOPS = {"asyncio": None, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[(loop, tls) for loop in LOOPS for tls in ("plain", "tls")], ids="-".join)
def stage(request, tmp_path, certificate):
    loop, tls = request.param
    return Stage(tmp_path, LOOPS[loop], certificate if tls == "tls" else None)


@pytest.fixture(params=LOOPS)
def plain_stage(request, tmp_path):
    return Stage(tmp_path, LOOPS[request.param], None)


def request_of(number, size=0):
    message = {"jsonrpc": "2.0", "method": "no.such", "id": number, "params": ["x" * size]}
    return Frame(Opcode.TEXT, json.dumps(message).encode()).serialize(mask=True)


async def answered(connection, numbers):
    assert [(await connection.message())["id"] for _ in numbers] == list(numbers)


class Ends:
    """Counts the ends of sessions."""

    def __init__(self, running, monkeypatch):
        self.codes = []
        ended = running.node.ended

        def counting(session, code):
            self.codes.append(code)
            ended(session, code)

        monkeypatch.setattr(running.node, "ended", counting)


# --- the hand-over ---------------------------------------------------------------------------------


def test_aiohttp_has_let_go(stage, monkeypatch):
    async def story(running, ice):
        server, admit, before_it = running.runner.server, running.node.admit, []

        async def recording(*handshake):
            [protocol] = server.connections
            before_it.append((protocol, protocol.transport))
            return await admit(*handshake)

        monkeypatch.setattr(running.node, "admit", recording)
        before = asyncio.all_tasks()
        connection = await ice.connect()
        await connection.round_trip()
        [(protocol, transport)] = before_it
        assert protocol not in server.connections
        assert protocol.transport is None
        assert transport.get_protocol() is running.node.hub.get("ci-1").transport
        await until(lambda: asyncio.all_tasks() <= before)
        # Nor does aiohttp close it for being idle.
        assert protocol._keepalive_handle.cancelled()
        await connection.round_trip()

    stage.play(story)


def test_a_session_from_the_handshake_to_the_farewell(stage):
    async def story(running, ice):
        connection = await ice.connect()
        big = request_of("big", MAX_MESSAGE - 200)
        connection.writer.write(big)
        await answered(connection, ["big"])
        running.node.hub.get("ci-1").close(4201)
        assert await connection.expect_dropped(4201) == "disconnected"
        assert await connection.frame() is None
        connection = await ice.connect()
        await connection.leave()
        # The server closes first (RFC 6455 section 7.1.1).
        assert await connection.frame() is None

    stage.play(story)


def test_early_frames_are_neither_lost_nor_garbled(stage):
    """What comes in one segment with the handshake, or behind it at any moment."""
    numbers = range(40)
    frames = b"".join(map(request_of, numbers))

    async def story(_, ice):
        for turn in range(24):
            reader, writer = await ice.dial()
            cut = len(frames) * turn // 24
            writer.write(ice.request() + frames[:cut])
            for _ in range(turn % 12):
                await asyncio.sleep(0)
            for start in range(cut, len(frames), 100):
                writer.write(frames[start : start + 100])
                await asyncio.sleep(0)
            await answered(await ice.finish(reader, writer), numbers)

    stage.play(story)


def test_early_frames_that_wait_for_the_entry(stage, monkeypatch):
    """More of them than aiohttp keeps before it stops reading."""

    async def story(running, ice):
        loader = running.node.admission.loader
        find, asked, go = loader.find, asyncio.Event(), asyncio.Event()

        async def held(name):
            asked.set()
            await go.wait()
            return await find(name)

        monkeypatch.setattr(loader, "find", held)
        reader, writer = await ice.begin()
        await asked.wait()
        for number in range(10):
            writer.write(request_of(number, 100_000))
        go.set()
        await answered(await ice.finish(reader, writer), range(10))

    stage.play(story)


class Recorder:
    def __init__(self):
        self.told = []

    def received(self, text):
        self.told.append(text)

    def overflowed(self):
        self.told.append("overflowed")

    def closed(self, code):
        self.told.append(code)


class Transport(asyncio.Transport):
    """Takes everything and sends nothing."""

    def __init__(self):
        super().__init__()
        self.written = b""
        self.eof = False

    def write(self, data):
        self.written += data

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.eof = True

    def is_closing(self):
        return False

    def pause_reading(self):
        """Nothing comes by itself."""

    def resume_reading(self):
        """Likewise."""

    def get_write_buffer_size(self):
        return 0

    def abort(self):
        """Nothing more is read."""


@pytest.fixture
async def bare():
    """A wire without a network: what it told, and its transport."""
    recorder, transport = Recorder(), Transport()
    wire = WebSocket(recorder)
    wire.connection_made(transport)
    yield wire, recorder.told, transport
    wire.connection_lost(None)


def text_frame(text):
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=True)


async def test_what_came_first_is_received_first(bare):
    wire, told, _ = bare
    data = text_frame("first") + text_frame("second")
    wire.begin_with(data[:9])
    assert told == [], "the welcome goes out first"
    wire.data_received(data[9:])
    await asyncio.sleep(0)
    assert told == ["first", "second"]
    await asyncio.sleep(0)
    assert told == ["first", "second"]


async def test_a_half_read_frame_mixes_with_nobody_elses(bare):
    wire, told, _ = bare
    others, recorder = [], Recorder()
    frame = text_frame("mine")
    for cut in range(1, len(frame)):
        other = WebSocket(recorder)
        other.connection_made(Transport())
        wire.data_received(frame[:cut])
        other.data_received(text_frame("theirs"))
        wire.data_received(frame[cut:])
        others.append(other)
    assert told == ["mine"] * (len(frame) - 1)
    assert recorder.told == ["theirs"] * (len(frame) - 1)
    assert all(other._core is None for other in (wire, *others)), "a wire at rest holds no parser"
    for other in others:
        other.connection_lost(None)


async def test_between_fragments_a_wire_keeps_its_parser(bare):
    wire, told, _ = bare
    other = WebSocket(recorder := Recorder())
    other.connection_made(Transport())
    wire.data_received(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True))
    mine = wire._core
    assert mine is not None
    # A message of its own, where a continuation is expected, would be a violation.
    other.data_received(text_frame("theirs"))
    assert wire._core is mine
    wire.data_received(Frame(Opcode.CONT, b"mine").serialize(mask=True))
    assert (told, recorder.told) == (["mine"], ["theirs"])
    assert wire._core is None
    other.connection_lost(None)


async def test_a_length_longer_than_it_needs_to_be_is_no_rest(bare):
    """RFC 6455 section 5.2 wants the minimal number of bytes; the parser takes more of them."""
    wire, told, _ = bare
    wire.data_received(b"\x81\xfe\x00\x01" + bytes(4) + b"a")
    assert told == ["a"]
    mine = wire._core
    assert mine is not None, "what is counted must not be taken for a rest"
    wire.data_received(text_frame("b"))
    assert told == ["a", "b"]
    assert wire._core is mine


async def test_what_came_first_is_received_before_the_end(bare):
    wire, told, transport = bare
    wire.begin_with(text_frame("first"))
    assert not wire.eof_received()
    assert told == ["first", 1006]
    assert transport.eof


async def test_what_came_first_is_nothing_once_the_connection_is_lost(bare):
    wire, told, _ = bare
    wire.begin_with(text_frame("first"))
    wire.connection_lost(None)
    await asyncio.sleep(0)
    assert told == [1006]
    await wire.lost


async def test_between_the_end_of_the_stream_and_the_loss_nothing_is_sent(bare):
    wire, told, transport = bare
    wire.eof_received()
    wire.send(b"{}")
    wire.ping()
    wire.close(1012, "restart")
    assert told == [1006]
    assert transport.written == b""


async def test_a_closing_wire_sends_and_receives_nothing_more(bare):
    wire, told, transport = bare
    wire.close(4101, "deregistered")
    written = transport.written
    wire.send(b"{}")
    wire.ping()
    wire.close(4201, "disconnected")
    wire.data_received(text_frame("too late"))
    wire.connection_lost(None)
    assert (
        transport.written
        == written
        == Frame(Opcode.CLOSE, (4101).to_bytes(2, "big") + b"deregistered").serialize(mask=False)
    )
    assert told == [4101]


@pytest.mark.parametrize("sent", [1000, 1009, 1012, 4101, 4103, 4203, 4999])
async def test_who_leaves_does_not_say_that_it_was_dropped(bare, sent):
    """Or else the ICE's timeline and the metrics would show what no admin has done."""
    wire, told, transport = bare
    wire.data_received(Frame(Opcode.CLOSE, sent.to_bytes(2, "big")).serialize(mask=True))
    assert told == [1000 if sent == 1012 or 4100 < sent < 4300 else sent]
    assert transport.written[2:4] == sent.to_bytes(2, "big"), "RFC 6455: the code is echoed"


async def test_a_flood_takes_turns_with_everybody_else(bare):
    wire, told, _ = bare
    one = text_frame("x")
    wire.data_received(one * 1000)
    assert 0 < len(told) <= SLICE // len(one)
    await until(lambda: len(told) == 1000)


# --- ends ------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_ends_its_session_once(stage, monkeypatch):
    async def story(running, ice):
        ends = Ends(running, monkeypatch)
        connection = await ice.connect()
        wire = running.node.hub.get("ci-1").transport
        connection.writer.transport.abort()
        await wire.lost
        assert ends.codes == [1006]
        assert list(running.node.hub) == []
        # Whatever comes late finds nobody.
        wire.send(b"{}")
        wire.ping()
        wire.close(4201, "disconnected")
        assert ends.codes == [1006]

    stage.play(story)


def test_a_connection_lost_within_the_hand_over(stage, monkeypatch):
    """It was there at the last look, and is gone when the 101 is written."""

    async def story(running, ice):
        ends = Ends(running, monkeypatch)
        make, sessions = running.node.session, []

        def losing(*args):
            [protocol] = running.runner.server.connections
            protocol.transport.abort()
            sessions.append(make(*args))
            return sessions[-1]

        with monkeypatch.context() as patch:
            patch.setattr(running.node, "session", losing)
            with pytest.raises(ConnectionError):
                await ice.connect()
        await sessions[0].transport.lost
        assert ends.codes == [1006]
        assert list(running.node.hub) == []
        await (await ice.connect()).round_trip()

    stage.play(story)


def test_half_a_connection_is_none(plain_stage, monkeypatch):
    async def story(running, ice):
        ends = Ends(running, monkeypatch)
        connection = await ice.connect()
        wire = running.node.hub.get("ci-1").transport
        connection.writer.write(request_of(1))
        connection.writer.write_eof()
        await answered(connection, [1])
        assert await connection.frame() is None
        await wire.lost
        assert ends.codes == [1006]

    plain_stage.play(story)


@pytest.mark.long
def test_half_a_connection_that_does_not_read_either(plain_stage, monkeypatch):
    """Its answers cannot be sent; it is over all the same, and nothing trips over it."""
    plain_stage.tuning = Tuning(websocket=Limits(close_timeout=0.05))

    async def story(running, ice):
        ends = Ends(running, monkeypatch)
        connection = await ice.connect()
        session = running.node.hub.get("ci-1")
        link = connection.writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.writer.transport.pause_reading()
        # More than the sockets take, less than a slow consumer is dropped for.
        while not session.transport._transport.get_write_buffer_size():
            connection.writer.write(request_of("x" * 100_000))
            await asyncio.sleep(0)
        connection.writer.write_eof()
        await until(lambda: ends.codes)
        assert list(running.node.hub) == []
        running.node.heartbeat.sweep(asyncio.get_running_loop().time() + 1000)
        session.close(4101)
        await session.transport.lost
        # Whichever is noticed first: that it does not read, or that it has ended.
        assert ends.codes in ([1006], [4202])
        connection.writer.transport.abort()

    plain_stage.play(story)


def send_all_then_read(address, tls, request, data):
    """A client without any loop: what it receives after the handshake, once all has been sent."""
    with socket.create_connection(address, timeout=10) as plain:
        link = tls.wrap_socket(plain, server_hostname=address[0]) if tls else plain
        with link:
            link.sendall(request)
            received = b""
            while b"ice.welcome" not in received:
                received += link.recv(4096)
            link.sendall(data)
            while not (received := link.recv(4096)):
                pass
            return received


def test_an_ice_that_reads_only_when_it_has_sent_all_sees_the_code(stage):
    """A transport that closes with data unread resets the connection, and the code is lost."""
    stage.tuning = Tuning(websocket=Limits(close_timeout=PATIENCE))  # on a busy machine, too
    much = 16 * MAX_MESSAGE
    begins = {
        1009: b"\x81\xff" + much.to_bytes(8, "big") + bytes(4),
        1003: b"\x82\x80" + bytes(4),
        1002: b"\x83\x80" + bytes(4),
    }

    async def story(running, ice):
        address = ("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
        for code, begin in begins.items():
            data = begin + bytes(much)
            frame = await asyncio.to_thread(
                send_all_then_read, address, stage.tls, ice.request(), data
            )
            assert (frame[0], int.from_bytes(frame[2:4], "big")) == (0x88, code)

    stage.play(story)


# --- leftovers -------------------------------------------------------------------------------------


def living(kind):
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


@pytest.mark.long
def test_two_hundred_connections_leave_nothing_behind(plain_stage):
    async def story(running, ice):
        await (await ice.connect()).leave()
        await ice.connections.pop().close()
        await until(lambda: not running.node._closing)
        tasks = asyncio.all_tasks()
        before = living(WebSocket), living(Session)
        for turn in range(200):
            connection = await ice.connect()
            if turn % 3 == 1:
                await connection.leave()
            elif turn % 3 == 2:
                connection.writer.transport.abort()
            # or else the next one supersedes it
        for connection in ice.connections:
            await connection.close()
        ice.connections.clear()
        del connection
        await until(lambda: not running.node._closing)
        assert list(running.node.hub) == []
        await until(lambda: asyncio.all_tasks() <= tasks)

        async def nothing(_):
            """Comes after whatever is being written."""

        # Presence has yet to write that they are gone; the last may still stand in a frame that waits.
        await running.node.presence.flush()
        await running.engine.write(nothing)
        await until(lambda: living(WebSocket) <= before[0] + 2 and living(Session) <= before[1] + 2)
        assert running.node.hub._pending == {}

    plain_stage.play(story)


# No credit comes while they are parsed, or a busy machine would find them slow enough.
@pytest.mark.gateway(tuning=Tuning(websocket=Limits(rate=0)))
@pytest.mark.parametrize("frame", [(Opcode.PING, b""), (Opcode.TEXT, b"{}"), (Opcode.CONT, b"")])
async def test_a_flood_of_frames_is_a_violation(running, frame):
    """However small they are: parsing them would hold up everybody else."""
    ice = await running.provision("ci-1", "ci-cd")
    connection = await ice.connect()
    opcode, data = frame
    if opcode is not Opcode.PING:
        connection.send_frame(Opcode.TEXT, b"[", fin=False)
        opcode = Opcode.CONT
    one = Frame(opcode, data, opcode is Opcode.PING).serialize(mask=True)
    connection.writer.write(one * (int(DEFAULT_LIMITS.burst) + 1))
    assert await connection.expect_dropped(1008) == "too-many-frames"
    assert "ci-1" not in running.gateway.node.hub


async def test_many_frames_over_time_are_no_flood(bare, monkeypatch):
    wire, told, _ = bare
    loop, rate = asyncio.get_running_loop(), int(DEFAULT_LIMITS.rate)
    for second in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda second=second: 1e6 + second)
            for _ in range(rate):
                wire.data_received(text_frame("x"))
    assert told == ["x"] * 10 * rate


@pytest.mark.parametrize("size", [500, 5000])
@pytest.mark.parametrize("rate", [0.0, 1e6])
async def test_a_peer_that_sends_much_is_read_later(monkeypatch, rate, size):
    """Nothing is lost: what it sends beyond its rate waits, and the others have their turn."""
    recorder, transport, reading = Recorder(), Transport(), []
    monkeypatch.setattr(transport, "pause_reading", lambda: reading.append(False))
    monkeypatch.setattr(transport, "resume_reading", lambda: reading.append(True))
    wire = WebSocket(recorder, Limits(byte_rate=rate, byte_burst=20_000.0))
    wire.connection_made(transport)
    frames = 60_000 // size
    wire.data_received(text_frame("x" * size) * frames)
    for _ in range(60_000 // SLICE):
        await asyncio.sleep(0)
    if rate:
        await until(lambda: len(recorder.told) == frames)
        await until(lambda: reading[-1])
    else:
        assert 15_000 < len(recorder.told) * size <= 20_000 + SLICE
        assert not reading[-1], "it is still read"
    wire.connection_lost(None)


@pytest.mark.parametrize("pieces", [1, 2], ids=["whole", "in two pieces"])
async def test_a_message_that_cannot_be_taken_fails_its_connection_alone(bare, pieces, monkeypatch):
    wire, told, transport = bare

    def broken(self, text):
        raise RuntimeError(text)

    monkeypatch.setattr(Recorder, "received", broken)
    frame = text_frame("x" * 200)
    half = len(frame) // 2
    for part in [frame] if pieces == 1 else [frame[:half], frame[half:]]:
        wire.data_received(part)
    assert told == [1011], f"the receiver was expected to be told of 1011 once, got {told}"
    assert b"\x03\xf3" in transport.written, "a close frame with 1011 was expected"
    wire.data_received(text_frame("more"))
    assert told == [1011], "nothing was expected to be taken of a connection that failed"
