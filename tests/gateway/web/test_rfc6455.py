"""RFC 6455 on the server's side, to the letter: the session layer's echo on real sockets, on every loop.

The groups are those of the Autobahn suite. Frames are made and read by hand here, so that no
mistake of the library is shared; what its core answers to the same octets has to be the same, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass

import pytest
import uvloop
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from websockets.exceptions import PayloadTooBig
from websockets.frames import Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from client.protocol import MAX_MESSAGE
from gateway.web.frames import is_empty_pong, whole_text
from gateway.web.websocket import _SPARE, Limits, WebSocket
from tests.bench import echo
from tests.support.ice import PATIENCE, Ice

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NAMES = {CONT: "cont", TEXT: "text", BINARY: "binary", CLOSE: "close", PING: "ping", PONG: "pong"}
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
NEVER = 3600.0
AT_ONCE = 0.05
NO_CODE = 1005
NO_CLOSE_FRAME = 1006


# --- frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A frame as section 5.2 draws it, or as it should not be."""

    opcode: int
    data: bytes = b""
    fin: bool = True
    rsv: int = 0
    key: bytes | None = b"\x37\xfa\x21\x3d"
    """The masking key; None for a frame that is not masked."""
    width: int = 0
    """Octets of the extended payload length; 0 for as few as are needed."""
    announced: int | None = None
    """The payload length that the header states; None for the true one."""

    def __repr__(self):
        shown = repr(self.data) if len(self.data) <= 32 else f"{len(self.data)} octets"
        more = "" if self.fin else ", to be continued"
        if self.opcode == CLOSE:
            shown = f"{self.code} {self.data[2:]!r}"
        return f"{self.name}({shown}{more})"

    @property
    def name(self):
        return NAMES.get(self.opcode, f"opcode {self.opcode}")

    @property
    def octets(self):
        length = len(self.data) if self.announced is None else self.announced
        width = self.width or (0 if length < 126 else 2 if length < 65536 else 8)
        short = {0: length, 2: 126, 8: 127}[width]
        masked = 0 if self.key is None else 0x80
        head = bytes([self.fin << 7 | self.rsv << 4 | self.opcode, masked | short])
        head += length.to_bytes(width, "big") if width else b""
        return head + (self.data if self.key is None else self.key + mask(self.data, self.key))

    @property
    def code(self):
        return int.from_bytes(self.data[:2], "big") if self.data else NO_CODE

    @classmethod
    def take(cls, buffer):
        """Take the server's next frame off `buffer`; None while it is not whole."""
        if len(buffer) < 2:
            return None
        first, second = buffer[:2]
        assert not first & 0x70, "the server must not set reserved bits"
        assert not second & 0x80, "the server must not mask"
        width = {126: 2, 127: 8}.get(second, 0)
        if len(buffer) < 2 + width:
            return None
        length = int.from_bytes(buffer[2 : 2 + width], "big") if width else second
        assert length >= {0: 0, 2: 126, 8: 65536}[width], "the server must state lengths minimally"
        end = 2 + width + length
        if len(buffer) < end:
            return None
        frame = cls(first & 0x0F, bytes(buffer[2 + width : end]), bool(first & 0x80))
        del buffer[:end]
        return frame


def mask(data, key):
    mine = int.from_bytes(data, "big")
    theirs = int.from_bytes((key * (len(data) // 4 + 1))[: len(data)], "big")
    return (mine ^ theirs).to_bytes(len(data), "big")


def text(data="", **how):
    return Frame(TEXT, data.encode() if isinstance(data, str) else data, **how)


def binary(data=b"", **how):
    return Frame(BINARY, data, **how)


def cont(data=b"", **how):
    return Frame(CONT, data.encode() if isinstance(data, str) else data, **how)


def ping(data=b"", **how):
    return Frame(PING, data, **how)


def pong(data=b"", **how):
    return Frame(PONG, data, **how)


def close(code=1000, reason=b"", **how):
    return Frame(CLOSE, code.to_bytes(2, "big") + reason, **how)


def fragments(opcode, *pieces):
    """One message in as many frames as there are pieces."""
    last = len(pieces) - 1
    return [
        Frame(CONT if number else opcode, piece, fin=number == last)
        for number, piece in enumerate(pieces)
    ]


def octet_by_octet(opcode, data):
    return fragments(opcode, *(data[i : i + 1] for i in range(len(data))))


# --- the two sides ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def patience(expected):
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise AssertionError(f"expected {expected}, and waited in vain") from None


class Client(Ice):
    """Speaks the opening handshake and nothing of ours."""

    def headers(self, **claims):
        return {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": KEY,
        }


async def head_of(reader):
    """The status and the headers of an answer, their names in lower case."""
    async with patience("an answer of the server to the handshake"):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.strip().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in fields.items()}


class Peer:
    """The client's end of a connection, and a view of the server's."""

    def __init__(self, reader, writer, server):
        self.reader = reader
        self.writer = writer
        self.server = server
        self._buffer = bytearray()
        self._sent = 0

    def write(self, *frames):
        data = b"".join(frame.octets for frame in frames)
        self._sent += len(data)
        self.writer.write(data)

    async def send(self, data, sizes=(2**30,)):
        """Send `data` in pieces of these sizes, each when the server has received the one before."""
        sizes = itertools.cycle(sizes)
        start = 0
        while start < len(data):
            piece = data[start : start + next(sizes)]
            start += len(piece)
            self._sent += len(piece)
            self.writer.write(piece)
            await self.taken()

    async def taken(self):
        """Wait until the server has received what was sent, or has ended the connection."""
        async with patience("the server to receive what was sent"):
            while self.server.octets < self._sent and not self.server.wire.lost.done():
                self.server.moved.clear()
                await self.server.moved.wait()

    async def frame(self):
        """The server's next frame; None at the end of the stream."""
        while (frame := Frame.take(self._buffer)) is None:
            async with patience("a frame or the end of the stream from the server"):
                data = await self.reader.read(2**18)
            if not data:
                assert not self._buffer, "the server ended the stream within a frame"
                return None
            self._buffer += data
        return frame

    async def rest(self, before_answer=None):
        """All frames up to the end of the stream; a close frame is answered when this is done."""
        frames = []
        while (frame := await self.frame()) is not None:
            frames.append(frame)
            if frame.opcode == CLOSE and before_answer is not None:
                await before_answer
                self.write(close())
        return frames

    async def exchange(self, data, sizes=(2**30,)):
        """Send `data`, read to the end as a good peer does, and leave."""
        sending = asyncio.ensure_future(self.send(data, sizes))
        frames = await self.rest(sending)
        await sending
        await self.leave()
        return frames

    async def leave(self):
        """End the stream; the server has to follow."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
        await self.gone()

    async def gone(self):
        async with patience("the server to let go of the connection"):
            await self.server.wire.lost

    async def fill(self):
        """Stop reading, and send until the system holds no more of the server's answers."""
        self.writer.transport.pause_reading()
        while not self.server.wire._transport.get_write_buffer_size():
            await self.send(text(bytes(2**16)).octets)


class Counting(WebSocket):
    """Tells its server of what it has received."""

    def data_received(self, data):
        super().data_received(data)
        server = self._receiver
        server.octets += len(data)
        server.most_unparsed = max(server.most_unparsed, len(self._backlog))
        server.moved.set()


class Server(echo.Echo):
    """The echo's end of a connection; it remembers what it was told."""

    def __init__(self, limits):
        super().__init__(lambda receiver: Counting(receiver, limits))
        self.limits = limits
        self.told = []
        self.echoed = 0
        self.octets = 0
        self.moved = asyncio.Event()
        self.most_unsent = 0
        self.most_unparsed = 0
        self.wire.lost.add_done_callback(lambda _: self.moved.set())  # there is no more to wait for

    def received(self, text):
        self.echoed += 1
        super().received(text)

    def overflowed(self):
        self.most_unsent = max(self.most_unsent, self.wire._transport.get_write_buffer_size())
        super().overflowed()

    def closed(self, code):
        self.told.append(code)
        super().closed(code)


class Stage:
    """The echo app as it is started."""

    def __init__(self, runner):
        self.play = runner.run
        self.servers = []
        # Nothing ends because time has passed, unless that is what is tested.
        self.limits = Limits(close_timeout=NEVER)
        """Of the connections to come."""
        self._peers = []
        self._faults = []

    async def open(self):
        asyncio.get_running_loop().set_exception_handler(lambda _, what: self._faults.append(what))

        def serve():
            self.servers.append(Server(self.limits))
            return self.servers[-1]

        self._runner = await echo.start("127.0.0.1", 0, welcome=False, echo=serve)
        host, port = self._runner.addresses[0]
        self.client = Client(f"http://{host}:{port}", "")

    async def close(self):
        for peer in self._peers:
            peer.writer.transport.abort()
            await peer.gone()
        await self._runner.cleanup()
        assert not self._faults, f"expected no exception in the loop, got {self._faults}"

    async def connect(self):
        reader, writer = await self.client.begin()
        status, _ = await head_of(reader)
        assert status == 101, f"expected the server to switch protocols, got {status}"
        self._peers.append(Peer(reader, writer, self.servers[-1]))
        return self._peers[-1]

    async def case(self, data, sizes):
        """A connection that sends this in pieces; what came back, and what the session was told."""
        peer = await self.connect()
        return await peer.exchange(data, sizes), peer.server.told


def octets(item):
    return item.octets if isinstance(item, Frame) else item


@pytest.fixture
def stage():
    """On the loop that serves; what differs between loops is in `test_wire`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stage = Stage(runner)
        runner.run(stage.open())
        yield stage
        runner.run(stage.close())
    for core in _SPARE:
        as_new = core.state is OPEN and not core.writes and not core.reader.buffer
        assert as_new, "a parser that is lent again was expected to be as new"


class Library:
    """What `websockets` answers as an echo server.

    Text is decoded and failed as its connections do it, in `websockets.asyncio.connection`; binary is
    refused at its first frame.
    """

    def __init__(self, limit=MAX_MESSAGE):
        self.core = Protocol(SERVER, state=OPEN, max_size=limit)
        self._message = b""

    def receive(self, item):
        if isinstance(item, Frame) and item.opcode == CLOSE:
            # It takes a close within a message in fragments for an error (sections 5.4, 7.1.5).
            self.core.current_size = None
        self.core.receive_data(octets(item))
        for frame in self.core.events_received():
            if self.core.state is not OPEN:
                continue
            if frame.opcode is Opcode.BINARY:
                self.core.send_close(1003, "text-only")
            elif frame.opcode in (Opcode.TEXT, Opcode.CONT):
                self._message += frame.data
                if frame.fin:
                    self._echo()
                    self._message = b""

    def _echo(self):
        try:
            self._message.decode()
        except UnicodeDecodeError:
            self.core.fail(1007)
        else:
            self.core.send_text(self._message)

    def answers(self):
        buffer = bytearray(b"".join(self.core.data_to_send()))
        frames = []
        while (frame := Frame.take(buffer)) is not None:
            frames.append(frame)
        return frames


# --- the cases -------------------------------------------------------------------------------------


def case(name, sent, *answers):
    """What the client sends and what the server answers, to the end.

    A number means that the server fails the connection with this code. Where the server does not
    close, the client does.
    """
    last = answers[-1] if answers else None
    if not isinstance(last, int) and (last is None or last.opcode != CLOSE):
        sent, answers = [*sent, close()], (*answers, close())
    return name, (sent, [one if isinstance(one, int) else plain(one) for one in answers])


def plain(frame):
    """As `Frame.take` gives it."""
    return Frame(frame.opcode, frame.data, frame.fin)


def framing():
    some = [text("one"), text("two"), text(), text("x" * 300), text()]
    yield case("several messages", some, *some)
    for length in (0, 1, 125, 126, 127, 128, 65535, 65536):
        message = text("*" * length)
        yield case(f"text of {length}", [message], message)
    for length, width in ((0, 2), (1, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65535, 8)):
        # The sender must state it in as few as it can; the library forgives one who does not.
        message = text(b"*" * length, width=width)
        yield case(f"text of {length} stated in {width} octets", [message], message)


TEXT_ONLY = close(1003, b"text-only")


def binary_messages():
    for length in (0, 1, 125, 126, 65535, 65536, MAX_MESSAGE):
        yield case(f"binary of {length}", [binary(bytes(length))], TEXT_ONLY)
    yield case("binary of 1 stated in 8 octets", [binary(b"x", width=8)], TEXT_ONLY)
    yield case("binary that is UTF-8", [binary(b"{}")], TEXT_ONLY)
    for name, data in INVALID.items():
        yield case(f"{name} in binary", [binary(data)], TEXT_ONLY)
    yield case("binary after text", [text("good"), binary(b"x")], text("good"), TEXT_ONLY)
    # Its first frame is refused: what it will be needs no waiting for.
    yield case("binary that goes on", [binary(b"x", fin=False)], TEXT_ONLY)
    sent = [*fragments(BINARY, b"x", b"y"), text("late"), binary(b"late")]
    yield case("binary in two, then messages", sent, TEXT_ONLY)
    yield case("binary, then a violation", [binary(b"x"), Frame(3)], TEXT_ONLY)
    yield case("ping, then binary", [ping(b"!"), binary(b"x")], pong(b"!"), TEXT_ONLY)


def pings_and_pongs():
    payloads = {
        "nothing": b"",
        "text": b"Hello",
        "octets": bytes(range(0xF0, 0x100)),
        "124 octets": b"\xfe" * 124,
        "125 octets": b"\xfe" * 125,
    }
    for name, data in payloads.items():
        yield case(f"ping of {name}", [ping(data)], pong(data))
        yield case(f"unsolicited pong of {name}", [pong(data)])
    for length in (126, 65536):
        yield case(f"ping of {length} octets", [ping(b"\xfe" * length)], 1002)
        yield case(f"pong of {length} octets", [pong(b"\xfe" * length)], 1002)
    wide = ping(b"a" * 125, width=8)
    yield case("ping of 125 octets stated in 8", [wide], pong(wide.data))
    yield case("unsolicited pong, then ping", [pong(b"unasked"), ping(b"asked")], pong(b"asked"))
    burst = [str(number).encode() for number in range(10)]
    yield case("ten pings", [ping(data) for data in burst], *(pong(data) for data in burst))
    sent = [frame for data in burst for frame in (text(data), ping(data))]
    answers = [frame for data in burst for frame in (text(data), pong(data))]
    yield case("messages and pings in turn", sent, *answers)


def reserved_bits():
    for rsv in range(1, 8):
        yield case(f"text with RSV {rsv:03b}", [text("x", rsv=rsv)], 1002)
        sent = [text("good"), text("bad", rsv=rsv), ping()]
        yield case(f"RSV {rsv:03b} between messages", sent, text("good"), 1002)
    for kind in (binary, ping, pong, close):
        for rsv in (1, 2, 4):
            frame = kind(rsv=rsv)
            yield case(f"{frame.name} with RSV {rsv:03b}", [frame], 1002)
    sent = [text("x", fin=False), cont("x", rsv=4)]
    yield case("continuation with RSV 100", sent, 1002)


def reserved_opcodes():
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield case(f"opcode {opcode}", [Frame(opcode)], 1002)
        yield case(f"opcode {opcode} within a message", [text(fin=False), Frame(opcode)], 1002)
        sent = [text("good"), ping(b"!"), Frame(opcode, b"bad"), text("late"), ping()]
        yield case(f"opcode {opcode} between messages", sent, text("good"), pong(b"!"), 1002)


def fragmentation():
    yield from fragments_of_text()
    for kind in (ping, pong, close):
        frame = kind(fin=False)
        yield case(f"fragmented {frame.name}", [frame], 1002)
        sent = [text("x", fin=False), frame, cont("x")]
        yield case(f"fragmented {frame.name} within a message", sent, 1002)
    yield case("fragmented ping, continued", [ping(b"a", fin=False), cont("b")], 1002)
    for fin, then in ((True, ""), (False, ", itself to be continued")):
        frame = cont("x", fin=fin)
        yield case(f"continuation of nothing{then}", [frame], 1002)
        yield case(f"empty continuation of nothing{then}", [cont(fin=fin), text("x")], 1002)
        sent = [text("x"), frame]
        yield case(f"continuation of a whole message{then}", sent, text("x"), 1002)
        yield case(f"continuation of a ping{then}", [ping(), frame], pong(), 1002)


def fragments_of_text():
    pieces = {
        "in two": [b"Hel", b"lo"],
        "in three, all empty": [b"", b"", b""],
        "in three, the middle empty": [b"a", b"", b"b"],
        "in three, the ends empty": [b"", b"a", b""],
        "in 200": [b"%d" % number for number in range(200)],
        "in fragments of every width": [b"a" * 125, b"b" * 126, b"c" * 65535, b"d" * 65536],
    }
    for how, parts in pieces.items():
        yield case(f"text {how}", fragments(TEXT, *parts), text(b"".join(parts)))
    first, last = fragments(TEXT, b"begin ", b"end")
    both = text("begin end")
    yield case("ping within text", [first, ping(b"!"), last], pong(b"!"), both)
    yield case("pong within text", [first, pong(b"!"), last], both)
    sent = [ping(b"1"), first, ping(b"2"), cont(fin=False), ping(b"3"), pong(), last, ping(b"4")]
    answers = [pong(b"1"), pong(b"2"), pong(b"3"), both, pong(b"4")]
    yield case("pings within and around text", sent, *answers)
    yield case("text in two, twice", [first, last, first, last], both, both)
    yield case("text in two, then whole", [first, last, text("x")], both, text("x"))
    for fin, then in ((True, ""), (False, ", itself to be continued")):
        yield case(f"text within text{then}", [first, text("x", fin=fin)], 1002)
        yield case(f"binary within text{then}", [first, binary(b"x", fin=fin), last], 1002)
        sent = [first, last, cont("x", fin=fin)]
        yield case(f"continuation of text that is over{then}", sent, both, 1002)
    # Section 5.4: control frames may be injected. Section 7.1.5: the code is the peer's own.
    yield case("close within text", [first, close()], close())
    yield case("close with 3000 within text", [first, close(3000, b"bye")], close(3000, b"bye"))
    yield case("empty close within text", [first, Frame(CLOSE)], Frame(CLOSE))
    yield case("a wrong close within text", [first, close(999)], 1002)
    yield case("ping, then close within text", [first, ping(b"!"), close()], pong(b"!"), close())


VALID = [
    "Hello-µ@ßöäüàá-UTF-8!!",
    "κόσμε",
    "\x00",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U00010000",
    "\U0001d11e",
    "\U0010ffff",
    "\ufeffmarked",
    "e\u0301",
]
INVALID = {
    "a surrogate": b"\xed\xa0\x80",
    "the last surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\xb4\xed\xb4\x9e",
    "overlong in 2": b"\xc0\xaf",
    "overlong in 3": b"\xe0\x80\xaf",
    "overlong in 4": b"\xf0\x80\x80\xaf",
    "overlong zero": b"\xc0\x80",
    "the largest overlong in 2": b"\xc1\xbf",
    "the largest overlong in 3": b"\xe0\x9f\xbf",
    "the largest overlong in 4": b"\xf0\x8f\xbf\xbf",
    "U+110000": b"\xf4\x90\x80\x80",
    "U+1FFFFF": b"\xf7\xbf\xbf\xbf",
    "a sequence of 5": b"\xf8\x88\x80\x80\x80",
    "a sequence of 6": b"\xfc\x84\x80\x80\x80\x80",
    "a lone continuation": b"\x80",
    "the last lone continuation": b"\xbf",
    "FE": b"\xfe",
    "FF": b"\xff",
    "truncated in 2": b"\xc3",
    "truncated in 3": b"\xe2\x82",
    "truncated in 4": b"\xf0\x9d\x84",
    "a lead after a lead": b"\xe2\xe2\x82\xac",
    "a letter within": b"\xe2\x82a\xac",
    "Latin-1": "Grüße".encode("latin-1"),
}
NOTE = "\U0001d11e"


def utf_8():
    for message in VALID:
        yield case(f"valid {message!a}", [text(message)], text(message))
        sent = octet_by_octet(TEXT, message.encode())
        yield case(f"valid {message!a}, a fragment for each octet", sent, text(message))
    note = NOTE.encode()
    for cut in (1, 2, 3):
        first, last = fragments(TEXT, note[:cut], note[cut:])
        answers = [pong(note[:cut]), text(NOTE)]
        yield case(f"ping in a code point after {cut}", [first, ping(note[:cut]), last], *answers)
    for name, wrong in INVALID.items():
        yield case(name, [text(wrong)], 1007)
        sent = [text("good"), text(b"good" + wrong + b"good")]
        yield case(f"{name} within text", sent, text("good"), 1007)
        sent = octet_by_octet(TEXT, b"x" + wrong)
        yield case(f"{name}, a fragment for each octet", sent, 1007)
    sent = fragments(TEXT, b"\xe2\x82", b"")
    yield case("truncated by an empty last fragment", sent, 1007)
    sent = [text(b"\xe2\x82"), text(b"\xac")]
    yield case("a code point across two messages", sent, 1007)


def closing():
    yield case("nothing but close", [close()], close())
    yield case("close of nothing", [Frame(CLOSE)], Frame(CLOSE))
    yield case("close of one octet", [Frame(CLOSE, b"\x03")], 1002)
    for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4101, 4999):
        for same in (close(code), close(code, b"because")):
            yield case(f"valid {same}", [same], same)
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535):
        for wrong in (close(code), close(code, b"because")):
            yield case(f"invalid {wrong}", [wrong], 1002)
    for reason in (b"x", b"x" * 122, b"x" * 123, "κόσμε".encode(), NOTE.encode() * 30):
        same = close(1000, reason)
        yield case(f"reason of {len(reason)} octets", [same], same)
    yield case("reason of 124 octets", [close(1000, b"x" * 124)], 1002)
    for name, wrong in INVALID.items():
        yield case(f"reason with {name}", [close(1000, b"why " + wrong)], 1007)
    yield case("message, then close", [text("x"), close()], text("x"), close())
    yield case("ping, then close", [ping(b"x"), close()], pong(b"x"), close())


def after_closing():
    ignored = {
        "text": text("late"),
        "binary": binary(b"late"),
        "ping": ping(b"late"),
        "pong": pong(b"late"),
        "another close": close(1001),
        "an invalid close": close(999),
        "a fragment": text("late", fin=False),
        "a reserved opcode": Frame(3),
        "reserved bits": text("late", rsv=7),
        "an unmasked frame": text("late", key=None),
        "too much": text("late", announced=2**62),
        "what is no frame": b"GET / HTTP/1.1\r\n\r\n",
    }
    for name, late in ignored.items():
        yield case(f"{name} after close", [close(), late], close())
        yield case(f"{name}, ten times after close", [close(1001), *[late] * 10], close(1001))


def masking():
    for frame in (text("x"), binary(b"x"), ping(b"x"), pong(b"x"), close()):
        bare = Frame(frame.opcode, frame.data, key=None)
        yield case(f"unmasked {frame.name}", [bare], 1002)
    yield case("unmasked continuation", [text(fin=False), cont("x", key=None)], 1002)
    sent = [text("x"), text("y", key=None), ping()]
    yield case("unmasked between messages", sent, text("x"), 1002)
    yield case("unmasked and empty", [text(key=None)], 1002)
    for key in (bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00"):
        for length in (0, 1, 2, 3, 4, 5, 127):
            message = text(bytes(range(length)), key=key)
            yield case(f"key {key.hex()}, {length} octets", [message], message)


def limits():
    full = MAX_MESSAGE
    note = NOTE * (full // 4)
    yield case("the largest text", [text(note)], text(note))
    parts = [note.encode()[start : start + 99_999] for start in range(0, full, 99_999)]
    yield case("the largest text in fragments", fragments(TEXT, *parts), text(note))
    sent = fragments(TEXT, bytes(full - 1), b"\x01", b"")
    yield case("the largest, then nothing", sent, text(bytes(full - 1) + b"\x01"))
    half = bytes(full // 2)
    sent = [*fragments(TEXT, half, half), *fragments(TEXT, half, half)]
    yield case("the sum begins anew", sent, text(half + half), text(half + half))
    # The header alone comes, without any data: one who waits for it can be flooded.
    for length in (full + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1):
        for frame in (text(announced=length), binary(announced=length)):
            yield case(f"the header of {frame.name} of {length}", [frame], 1009)
    yield case("a fragment too large", [text(announced=full + 1, fin=False)], 1009)
    sent = fragments(TEXT, bytes(full), b"x")
    yield case("fragments too large by one together", sent, 1009)
    sent = [text(bytes(full), fin=False), cont(announced=126)]
    yield case("the header of a fragment too large", sent, 1009)
    quarter = bytes(full // 4)
    sent = [*fragments(TEXT, *[quarter] * 4)[:3], cont(announced=full // 2, fin=False)]
    yield case("four fragments too large together", sent, 1009)
    sent = [text("good"), ping(), text(announced=full + 1)]
    yield case("too large after a good one", sent, text("good"), pong(), 1009)
    sent = [text(bytes(full + 1)), ping()]
    yield case("too large, with all its data", sent, 1009)


GROUPS = {
    "1 framing": framing,
    "1 binary messages": binary_messages,
    "2 pings and pongs": pings_and_pongs,
    "3 reserved bits": reserved_bits,
    "4 reserved opcodes": reserved_opcodes,
    "5 fragmentation": fragmentation,
    "6 UTF-8": utf_8,
    "7 closing": closing,
    "7 after closing": after_closing,
    "8 masking": masking,
    "9 limits": limits,
}


def seen(frames, answers):
    """The frames, with the code alone of the one that fails the connection; its reason is free."""
    fails = isinstance(answers[-1], int)
    return [frame.code if fails and frame.opcode == CLOSE else frame for frame in frames]


def ends_with(answer):
    """What a session is told of a connection that ends with this answer."""
    code = answer if isinstance(answer, int) else answer.code
    return 1000 if code == 1012 or 4100 < code < 4300 else code  # what only a gateway can mean


SIZES = {
    "at once": lambda length: [length],
    # All of it where that is little; otherwise its beginning, and then no more than a hundred pieces.
    "octet by octet": lambda length: [1] * min(length, 300) + [length // 100 + 1] * 100,
}


@pytest.mark.parametrize("how", SIZES)
@pytest.mark.parametrize("group", GROUPS)
def test_cases(stage, subtests, group, how):
    for name, (sent, answers) in GROUPS[group]():
        with subtests.test(name):
            data = b"".join(map(octets, sent))
            frames, told = stage.play(stage.case(data, SIZES[how](len(data))))
            got = seen(frames, answers)
            assert got == answers, f"expected {answers} of the server, got {frames}"
            ends = [ends_with(answers[-1])]
            assert told == ends, f"expected the session to be told {ends}, got {told}"


@pytest.mark.parametrize("group", GROUPS)
def test_the_library_agrees(subtests, group):
    for name, (sent, answers) in GROUPS[group]():
        with subtests.test(name):
            library = Library()
            for item in sent:
                library.receive(item)
            got = seen(library.answers(), answers)
            assert got == answers, f"expected {answers} of the library, got {got}"


def test_every_case_has_a_name_of_its_own():
    for group in GROUPS.values():
        names = [name for name, _ in group()]
        assert len(names) == len(set(names)), f"{group.__name__}: {sorted(names)}"


# --- chance ----------------------------------------------------------------------------------------

LIMIT = 2000
"""Octets of a message while chance plays, so that it meets the limit: more than are parsed at once."""
PAYLOADS = st.sampled_from(
    [
        *(b"", b"a", b"Hello", NOTE.encode(), "κόσμε".encode(), b"*" * 125, b"*" * 126),
        *(b"*" * (LIMIT // 2 - 1), b"*" * (LIMIT // 2), b"*" * LIMIT, b"*" * (LIMIT + 1)),
        *(b"\xe2\x82", b"\xac", b"\xff", b"\xed\xa0\x80"),
    ]
)
SHORT = PAYLOADS.filter(lambda data: len(data) <= 125)
CONTROLS = st.one_of(st.builds(ping, SHORT), st.builds(pong, SHORT))
CODES = st.sampled_from([1000, 1001, 1007, 3000, 4999, 0, 999, 1004, 1005, 1006, 2999, 5000])
KEYS = st.binary(min_size=4, max_size=4)


@st.composite
def messages(draw):
    """A message in some fragments, with control frames in between."""
    parts = draw(
        st.lists(st.sampled_from([b"", b"a", NOTE.encode()]) | SHORT, min_size=1, max_size=4)
    )
    frames = []
    for frame in fragments(draw(st.sampled_from([TEXT, BINARY])), *parts):
        frames += [frame, *draw(st.lists(CONTROLS, max_size=1))]
    return frames


ANY_FRAME = st.builds(
    Frame,
    opcode=st.sampled_from([TEXT, BINARY, CONT, PING, PONG]),
    data=PAYLOADS,
    fin=st.booleans(),
    key=KEYS,
    width=st.sampled_from([0, 8]),
)
WRONG_FRAME = st.one_of(
    st.builds(Frame, st.integers(0, 15), SHORT, rsv=st.integers(0, 7)),
    st.builds(Frame, st.sampled_from(list(NAMES)), SHORT, key=st.none()),
    st.builds(Frame, st.just(CLOSE), SHORT),
    st.builds(close, CODES, SHORT.filter(lambda data: len(data) <= 123)),
)
FRAMES = st.lists(
    messages()
    | messages()
    | messages()
    | st.lists(ANY_FRAME | WRONG_FRAME, min_size=1, max_size=1),
    max_size=8,
).map(lambda groups: [*itertools.chain(*groups), ping(b"last"), close()])
ANY_SIZES = st.lists(st.sampled_from([1, 2, 3, 5, 7, 64, 1024, 4096]), min_size=1, max_size=6)


def test_any_frames_in_any_pieces_are_answered_as_by_the_library(stage):
    stage.limits = Limits(max_message=LIMIT, close_timeout=NEVER)

    @settings(max_examples=100, deadline=None)
    @given(FRAMES, ANY_SIZES)
    def compare(sent, sizes):
        library = Library(LIMIT)
        for frame in sent:
            library.receive(frame)
            if library.core.parser_exc is not None:
                break
        # It takes control frames for a part of the message around them; see below.
        too_big = isinstance(library.core.parser_exc, PayloadTooBig)
        assume(not (too_big and frame.opcode in (CLOSE, PING, PONG) and len(frame.data) <= 125))
        expected = library.answers()
        frames, told = stage.play(stage.case(b"".join(map(octets, sent)), sizes))
        assert seen(frames, [1007]) == seen(expected, [1007]), (
            f"expected {expected} of the server as of the library, got {frames}"
        )
        codes = [frame.code for frame in frames if frame.opcode == CLOSE]
        assert told == codes, f"expected the session to be told so once, got {told}"

    compare()


LENGTHS = st.sampled_from([0, 1, 124, 125, 126, 127, 128, 255, 256, 65535, 65536])


@given(st.binary(max_size=200) | LENGTHS.map(bytes), KEYS)
def test_a_whole_text_frame_needs_no_parser(data, key):
    frame = text(data, key=key)
    expected = data if len(data) < 65536 else None
    assert whole_text(frame.octets) == expected, f"expected {frame} to be read as it was sent"


@given(KEYS)
def test_the_answer_to_a_ping_needs_no_parser(key):
    assert is_empty_pong(pong(b"", key=key).octets)


@pytest.mark.parametrize("size", [5, 125, 126, 1000])
def test_what_is_not_masked_needs_a_parser(size):
    octets = text("*" * size, key=None).octets
    assert whole_text(octets + b"....") is None, (
        f"expected the beginning of {octets[:9]!r} to be no masking key"
    )


@settings(max_examples=500)
@given(
    ANY_FRAME
    | WRONG_FRAME
    | st.builds(text, st.binary(max_size=200), key=KEYS)
    | st.builds(pong, st.just(b""), key=KEYS),
    st.data(),
)
def test_what_needs_no_parser_is_what_the_library_reads(frame, data):
    octets = bytearray(frame.octets)
    for place in data.draw(st.lists(st.integers(0, min(9, len(octets) - 1)), max_size=2)):
        octets[place] = data.draw(st.integers(0, 255))
    octets = bytes(octets[: data.draw(st.just(len(octets)) | st.integers(0, len(octets)))])
    octets += data.draw(st.just(b"") | st.binary(max_size=8))
    opcode, payload = (PONG, b"") if is_empty_pong(octets) else (TEXT, whole_text(octets))
    if payload is not None:
        core = Protocol(SERVER, state=OPEN)
        core.receive_data(octets)
        read = [(event.opcode, event.fin, event.data) for event in core.events_received()]
        assert read == [(opcode, True, payload)], (
            f"expected {octets!r} to be what the library reads"
        )
        core.receive_data(text(b"next").octets)
        assert [event.data for event in core.events_received()] == [b"next"], (
            f"expected nothing of {octets!r} to be left over"
        )


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [ping(b"Hello"), pong(b"Hello")], ids=repr)
def test_control_frames_are_no_part_of_a_message(stage, control):
    """Section 5.4: they may be injected in the middle of it, however large it is."""

    async def story():
        peer = await stage.connect()
        first, last = fragments(TEXT, bytes(MAX_MESSAGE), b"")
        frames = await peer.exchange(b"".join(map(octets, (first, control, last, close()))))
        answers = [text(bytes(MAX_MESSAGE)), close()]
        if control.opcode == PING:
            answers.insert(0, pong(control.data))
        answers = [plain(answer) for answer in answers]
        assert frames == answers, f"expected {answers} of the server, got {frames}"

    stage.play(story())


# --- how it ends -----------------------------------------------------------------------------------

FAILING = {1002: Frame(3), 1007: text(b"\xff"), 1009: text(announced=MAX_MESSAGE + 1)}


@pytest.mark.parametrize("code", FAILING)
def test_a_failed_connection_is_closed_without_waiting(stage, code):
    """Section 7.1.7; the peer neither answers nor closes."""

    async def story():
        peer = await stage.connect()
        peer.write(FAILING[code])
        frames = await peer.rest()
        assert [frame.code for frame in frames] == [code], f"expected {code} alone, got {frames}"
        await peer.leave()
        assert peer.server.told == [code], f"the session was told {peer.server.told}"

    stage.play(story())


@pytest.mark.parametrize("code", FAILING)
def test_nothing_is_processed_once_the_connection_has_failed(stage, code):
    """Section 7.1.7: not even a close frame, and no ping."""

    async def story():
        peer = await stage.connect()
        sent = [FAILING[code], ping(b"late"), text("late"), Frame(3), close(1001), ping(b"later")]
        frames = await peer.exchange(b"".join(map(octets, sent)))
        assert [frame.opcode for frame in frames] == [CLOSE], (
            f"expected one close frame of the server and nothing more, got {frames}"
        )
        assert peer.server.told == [code], f"the session was told {peer.server.told}"

    stage.play(story())


DROPPED = Frame(CLOSE, (4101).to_bytes(2, "big") + b"deregistered")
WHILE_CLOSING = {
    "an answer": ([close(4101)], []),
    "an answer with a code of its own": ([close(1001, b"leaving")], []),
    "an answer without a code": ([Frame(CLOSE)], []),
    "messages first": ([text("late"), binary(b"late"), close()], []),
    "the rest of a message first": ([text("la", fin=False), cont("te"), close()], []),
    # Allowed by section 5.5.1 (only data is not), and done by the library.
    "a ping first": ([ping(b"late"), close()], [plain(pong(b"late"))]),
    "a pong first": ([pong(b"late"), close()], []),
    "an invalid close": ([close(999)], []),
    "a reserved opcode": ([Frame(3)], []),
    "an unmasked frame": ([text("late", key=None)], []),
    "too much": ([text(announced=MAX_MESSAGE + 1)], []),
    "text that is none, and an answer": ([text(b"\xff"), close()], []),
}


@pytest.mark.parametrize("name", WHILE_CLOSING)
def test_the_server_closes_and_the_peer_sends(stage, name):
    """There is one close frame of the server's, and then the end of the stream."""

    async def story():
        sent, answers = WHILE_CLOSING[name]
        peer = await stage.connect()
        peer.server.wire.close(4101)
        frame = await peer.frame()
        assert frame == DROPPED, f"expected {DROPPED} of the server, got {frame}"
        peer.write(*sent)
        frames = await peer.rest()
        assert frames == answers, f"expected {answers} and the end of the stream, got {frames}"
        await peer.leave()
        assert peer.server.told == [4101], f"the session was told {peer.server.told}"

    stage.play(story())


def test_both_close_at_once(stage):
    async def story():
        peer = await stage.connect()
        peer.write(text("x"))
        await peer.taken()
        peer.write(close(1001))
        peer.server.wire.close(4101)
        frames = await peer.rest()
        assert frames == [plain(text("x")), DROPPED], (
            f"expected one close of the server, got {frames}"
        )
        await peer.leave()
        assert peer.server.told == [4101], f"the session was told {peer.server.told}"

    stage.play(story())


def test_after_its_close_frame_the_server_sends_nothing(stage):
    async def story():
        peer = await stage.connect()
        wire = peer.server.wire
        wire.close(4101)
        wire.send(b"late")
        wire.ping()
        wire.close(4201)
        peer.write(close(4101))
        frames = await peer.rest()
        assert frames == [DROPPED], f"expected {DROPPED} alone of the server, got {frames}"
        await peer.leave()

    stage.play(story())


async def says_nothing(peer):
    peer.server.wire.close(4101)


async def goes_on_sending(peer):
    peer.server.wire.close(4101)
    peer.write(*[text("late"), ping(b"late")] * 100)


async def begins_a_frame(peer):
    peer.server.wire.close(4101)
    await peer.send(text("late").octets[:-1])


async def answers_and_stays(peer):
    peer.server.wire.close(4101)
    peer.write(close())


async def closes_and_stays(peer):
    peer.write(close(4101))


async def breaks_the_protocol_and_stays(peer):
    peer.write(Frame(3))


async def sends_no_text_and_stays(peer):
    peer.write(text(b"\xff"))


async def reads_nothing(peer):
    await peer.fill()
    peer.server.wire.close(4101)


@pytest.mark.parametrize(
    "behave",
    [
        says_nothing,
        goes_on_sending,
        begins_a_frame,
        answers_and_stays,
        closes_and_stays,
        breaks_the_protocol_and_stays,
        sends_no_text_and_stays,
        reads_nothing,
    ],
)
def test_a_peer_that_does_not_close_is_cut_off_in_time(stage, behave):
    stage.limits = Limits(close_timeout=AT_ONCE)

    async def story():
        peer = await stage.connect()
        begin = asyncio.get_running_loop().time()
        await behave(peer)
        await peer.gone()
        waited = asyncio.get_running_loop().time() - begin
        assert waited > AT_ONCE / 2, f"expected the server to wait for {AT_ONCE} s, not {waited} s"
        assert len(peer.server.told) == 1, f"the session was told {peer.server.told}"

    stage.play(story())


HALVES = {
    "after nothing": ([], []),
    "after a message": ([text("x")], [text("x")]),
    "after a ping": ([ping(b"x")], [pong(b"x")]),
    "after many messages": ([text(str(n)) for n in range(500)], [text(str(n)) for n in range(500)]),
    "within a header": ([text("x"), b"\x81"], [text("x")]),
    "within a length": ([binary(b"x" * 126).octets[:3]], []),
    "within a key": ([text("x").octets[:4]], []),
    "within a payload": ([text("two").octets[:-1]], []),
    "within a message": ([text("x", fin=False), ping(b"x")], [pong(b"x")]),
    "within a message, at its start": ([text(fin=False)], []),
    "within a close frame": ([close().octets[:-1]], []),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_of_a_connection_is_closed(stage, name):
    """What came is answered; then the server ends its half too, without a close frame (7.1.5)."""

    async def story():
        sent, answers = HALVES[name]
        answers = [plain(answer) for answer in answers]
        peer = await stage.connect()
        peer.writer.write(b"".join(map(octets, sent)))
        peer.writer.write_eof()
        frames = await peer.rest()
        assert frames == answers, f"expected {answers} and the end of the stream, got {frames}"
        await peer.gone()
        told = peer.server.told
        assert told == [NO_CLOSE_FRAME], f"expected the session to be told 1006, got {told}"

    stage.play(story())


@pytest.mark.parametrize("begun", [b"", text("x", fin=False).octets, b"\x81"], ids=repr)
def test_the_connection_breaks(stage, begun):
    async def story():
        peer = await stage.connect()
        await peer.send(begun)
        peer.writer.transport.abort()
        await peer.gone()
        told = peer.server.told
        assert told == [NO_CLOSE_FRAME], f"expected the session to be told 1006, got {told}"

    stage.play(story())


def test_half_of_a_connection_is_closed_after_the_closing_handshake(stage):
    async def story():
        peer = await stage.connect()
        peer.write(close(1001))
        peer.writer.write_eof()
        frames = await peer.rest()
        assert frames == [plain(close(1001))], f"expected the close frame's echo, got {frames}"
        await peer.gone()
        assert peer.server.told == [1001], f"the session was told {peer.server.told}"

    stage.play(story())


# --- backpressure ----------------------------------------------------------------------------------


async def overflow(peer, frame, most):
    """Send without reading until the server has had enough of it."""
    await peer.fill()
    for _ in range(most):
        if peer.server.told:
            break
        await peer.send(frame.octets)
    server = peer.server
    assert server.told == [4202], (
        f"expected the session to be told 4202 after {most} times {frame}, got {server.told}"
    )
    most = peer.server.limits.max_buffer + len(frame.octets)
    assert peer.server.limits.max_buffer < server.most_unsent <= most, (
        f"expected the server to buffer {most} octets at the most, it had {server.most_unsent}"
    )


def test_a_peer_that_does_not_read_is_dropped(stage):
    async def story():
        peer = await stage.connect()
        message = text(b"x" * MAX_MESSAGE)
        await overflow(peer, message, 6)
        peer.writer.transport.resume_reading()
        *echoed, last = await peer.exchange(b"")
        assert plain(message) in echoed, f"expected whole messages of the server, got {echoed}"
        assert last == plain(close(4202, b"slow-consumer")), f"expected 4202 at last, got {last}"

    stage.play(story())


def test_pongs_are_buffered_no_further_either(stage):
    stage.limits = Limits(max_buffer=2**18, close_timeout=NEVER)

    async def story():
        peer = await stage.connect()
        await overflow(peer, ping(b"x" * 125), 2500)

    stage.play(story())


def test_a_peer_that_sends_more_than_is_parsed_is_held_back(stage):
    """The server reads on when it has parsed what it has read."""

    async def story():
        peer = await stage.connect()
        sent = [text(f"{number} {'x' * 4096}") for number in range(1000)]
        peer.write(*sent)
        for frame in sent:
            got = await peer.frame()
            assert got == plain(frame), f"expected {plain(frame)} of the server, got {got}"
        most = peer.server.most_unparsed
        assert 0 < most <= 2**18, f"expected the server to keep one reading unparsed, not {most}"
        peer.write(close())
        frames = await peer.rest()
        assert frames == [plain(close())], f"expected the close frame's echo, got {frames}"
        await peer.leave()

    stage.play(story())


def test_peers_take_turns(stage):
    """One that sends without end does not keep the server from answering another."""

    async def story():
        greedy, modest = await stage.connect(), await stage.connect()
        greedy.write(*[text("x" * 250)] * 4000)
        await greedy.frame()
        modest.write(ping(b"still there?"))
        got = await modest.frame()
        assert got == plain(pong(b"still there?")), f"expected a pong of the server, got {got}"
        assert greedy.server.echoed < 4000, "expected the server to answer one between the many"
        await modest.leave()
        await greedy.leave()

    stage.play(story())


# --- the opening handshake -------------------------------------------------------------------------

ACCEPTED = {
    "as it is": {},
    "of any case": {"Upgrade": "WebSocket", "Connection": "UPGRADE"},
    "with other options": {"Connection": "keep-alive, Upgrade"},
    "with another protocol": {"Upgrade": "h2c, websocket"},
    "from a page": {"Origin": "https://example.test"},
    "with extensions": {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"},
    "with subprotocols": {"Sec-WebSocket-Protocol": "chat, superchat"},
    "with an empty subprotocol": {"Sec-WebSocket-Protocol": ""},
}


def test_the_handshake_is_accepted(stage, subtests):
    async def story():
        for name, headers in ACCEPTED.items():
            with subtests.test(name):
                reader, writer = await stage.client.begin(headers)
                status, fields = await head_of(reader)
                fields["connection"] = fields["connection"].lower()
                expected = {
                    "upgrade": "websocket",
                    "connection": "upgrade",
                    "sec-websocket-accept": ACCEPT,
                }
                # Neither an extension nor a subprotocol: none is agreed that was not offered.
                assert (status, fields) == (101, expected), (
                    f"expected 101 with {expected} of the server, got {status} with {fields}"
                )
                writer.close()
                await writer.wait_closed()

    stage.play(story())


@pytest.mark.parametrize("offered", ["ice.v1", "chat, ice.v1", ["chat", "ice.v1"], "ice.v1,ice.v1"])
def test_one_of_the_offered_subprotocols_is_agreed(stage, offered):
    async def story():
        reader, writer = await stage.client.begin({"Sec-WebSocket-Protocol": offered})
        status, fields = await head_of(reader)
        agreed = fields.get("sec-websocket-protocol")
        assert (status, agreed) == (101, "ice.v1"), f"expected ice.v1 of the server, got {fields}"
        writer.close()
        await writer.wait_closed()

    stage.play(story())


REFUSED = {
    "no upgrade": ({"Upgrade": None, "Connection": None}, {}, 426),
    "Connection alone": ({"Upgrade": None}, {}, 426),
    "another protocol": ({"Upgrade": "h2c"}, {}, 400),
    "no Connection": ({"Connection": None}, {}, 400),
    "Connection without Upgrade": ({"Connection": "keep-alive"}, {}, 400),
    "no version": ({"Sec-WebSocket-Version": None}, {}, 400),
    "version 8": ({"Sec-WebSocket-Version": "8"}, {}, 400),
    "version 14": ({"Sec-WebSocket-Version": "14"}, {}, 400),
    "two versions": ({"Sec-WebSocket-Version": ["13", "8"]}, {}, 400),
    "no key": ({"Sec-WebSocket-Key": None}, {}, 400),
    "an empty key": ({"Sec-WebSocket-Key": ""}, {}, 400),
    "a key of 15 octets": ({"Sec-WebSocket-Key": "A" * 20}, {}, 400),
    "a key of 18 octets": ({"Sec-WebSocket-Key": "A" * 24}, {}, 400),
    "a key that is not base64": ({"Sec-WebSocket-Key": "?" * 24}, {}, 400),
    "two keys": ({"Sec-WebSocket-Key": [KEY, KEY]}, {}, 400),
    "HTTP/1.0": ({}, {"version": "1.0"}, 400),
    "POST": ({}, {"method": "POST"}, 405),
}


def test_the_handshake_is_refused(stage, subtests):
    async def story():
        for name, (headers, how, expected) in REFUSED.items():
            with subtests.test(name):
                reader, writer = await stage.client.begin(headers, **how)
                status, fields = await head_of(reader)
                assert status == expected, f"expected {expected} of the server, got {status}"
                # RFC 9110 section 15.5.22, and section 4.4.
                upgrade = "websocket" if status == 426 else None
                assert fields.get("upgrade") == upgrade, (
                    f"expected Upgrade: {upgrade}, got {fields}"
                )
                version = "13" if "version" in name else None
                assert fields.get("sec-websocket-version") == version, (
                    f"expected the version {version} of the server, got {fields}"
                )
                writer.close()
                await writer.wait_closed()
        assert stage.servers == [], "expected no session of a handshake that was refused"

    stage.play(story())


@pytest.mark.parametrize("cut", [0, 1, 5, 10])
def test_frames_that_come_with_the_handshake(stage, cut):
    """A client should wait for the answer; what it sends early is neither lost nor garbled."""

    async def story():
        reader, writer = await stage.client.dial()
        data = b"".join(map(octets, (text("early"), ping(b"early"), close())))
        writer.write(stage.client.request() + data[:cut])
        writer.write(data[cut:])
        status, _ = await head_of(reader)
        assert status == 101, f"expected the server to switch protocols, got {status}"
        peer = Peer(reader, writer, stage.servers[-1])
        frames = await peer.rest()
        answers = [plain(answer) for answer in (text("early"), pong(b"early"), close())]
        assert frames == answers, f"expected {answers} of the server, got {frames}"
        await peer.leave()

    stage.play(story())
