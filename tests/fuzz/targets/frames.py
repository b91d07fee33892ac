"""WebSocket frames: the product reads any stream, however it is cut, as a plain reading of RFC 6455 does.

The first byte of an input says into how many bytes at a time the rest is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from websockets.frames import Frame, Opcode

from gateway.web.websocket import SLICE, Limits, WebSocket
from tests.fuzz.rfc6455 import NO_STATUS, Reader
from tests.fuzz.simulation import Loop, Transport
from tests.fuzz.target import Target, require

_LIMIT = 600
_LIMITS = Limits(max_message=_LIMIT)
_PIECES = (10**6, 1, 2, 3, 7, 125, SLICE, SLICE + 1)
_ABNORMAL = 1006


@dataclass
class Receiver:
    """What a session would get."""

    messages: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def received(self, text: str) -> None:
        self.messages.append(text)

    def overflowed(self) -> None:
        raise AssertionError("the peer reads at once")

    def closed(self, code: int) -> None:
        self.codes.append(code)


def read(pieces: list[bytes]) -> tuple[Receiver, bytes, list[int]]:
    """What a WebSocket makes of these pieces: what it delivers and sends, and how it has closed by then."""
    loop, transport, receiver = Loop(), Transport(), Receiver()
    with loop.running():
        websocket = WebSocket(receiver, _LIMITS)
        websocket.connection_made(transport)  # type: ignore[arg-type]
        for piece in pieces:
            if transport.closing:
                break
            websocket.data_received(piece)
            loop.settle(lambda: not transport.paused or transport.closing)
        sent, codes = bytes(transport.written), list(receiver.codes)
        websocket.eof_received()
        loop.settle()
        websocket.connection_lost(None)
    return receiver, sent, codes


def check(data: bytes, product: Any) -> None:
    """See the module."""
    size, stream = _PIECES[data[0] % len(_PIECES)] if data else 1, data[1:]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    receiver, sent, codes = product(pieces)
    expected = Reader(stream, _LIMIT).read()
    require(receiver.messages == expected.messages, f"{receiver.messages} {expected.messages}")
    require(len(receiver.codes) == 1, f"the end was told as {receiver.codes}")
    pongs, closings = _sent(sent)
    require(pongs == expected.pings, f"pongs {pongs}, not {expected.pings}")
    if not codes:
        require(not closings, f"a close frame of {closings}, and the session knows nothing")
        require(not expected.ends or expected.cut, f"goes on, and has to end by {expected.ends}")
        require(receiver.codes == [_ABNORMAL], f"ended by {receiver.codes} without a close frame")
        return
    require(len(closings) == 1, f"{len(closings)} close frames: {closings}")
    require(closings[0] in expected.ends, f"closed by {closings[0]}, not {expected.ends}")


def _sent(data: bytes) -> tuple[list[bytes], list[int]]:
    """The pongs and the codes of close frames in what a server sent: short frames, not masked."""
    pongs, closings = [], []
    while data:
        opcode, length = data[0] & 0x0F, data[1]
        require(data[0] & 0xF0 == 0x80 and length < 126, f"{data[:8]!r} is no whole short frame")
        payload, data = data[2 : 2 + length], data[2 + length :]
        require(len(payload) == length, "half a frame was sent")
        if opcode == Opcode.PONG:
            # One after the close frame is in order (RFC 6455 section 5.5.2), and nobody waits for it.
            pongs += [] if closings else [payload]
        else:
            require(opcode == Opcode.CLOSE, f"a frame of opcode {opcode}")
            closings.append(int.from_bytes(payload[:2]) if payload else NO_STATUS)
    return pongs, closings


def _frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def _plain(first: int, payload: bytes) -> bytes:
    """A frame whose mask is 0, so that the fuzzer sees what it changes."""
    if len(payload) < 126:
        return bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload
    return bytes((first, 0xFE)) + len(payload).to_bytes(2) + bytes(4) + payload


_STREAMS = (
    _plain(0x81, b'{"jsonrpc":"2.0"}'),
    b"\x81\x83\x01\x02\x03\x04" + bytes(a ^ b for a, b in zip(b"abc", b"\1\2\3", strict=True)),
    _plain(0x01, b"\xc3") + _plain(0x89, b"ping") + _plain(0x80, b"\xa4"),
    _plain(0x81, b"x" * 200) * 3,
    _plain(0x81, b"y" * _LIMIT) + _plain(0x81, b"y" * (_LIMIT + 1)),
    _plain(0x01, b"y" * 500) + _plain(0x8A, b"") + _plain(0x80, b"y" * 101),
    _plain(0x81, b"\xff"),
    _plain(0x82, b"binary"),
    _plain(0x80, b"out of order"),
    _plain(0x01, b"a") + _plain(0x81, b"b"),
    _plain(0x88, b"\x03\xe8bye") + _plain(0x81, b"late"),
    _plain(0x88, b""),
    _plain(0x88, b"\x03"),
    _plain(0x88, b"\x03\xed"),
    _plain(0x88, b"\x10\x05\xff"),
    _plain(0x01, b"a") + _plain(0x88, b"\x10\x05"),
    _plain(0x89, b"z" * 126),
    _plain(0x09, b"z"),
    _plain(0xC1, b"reserved"),
    b"\x81\x03abc",
    b"\x81\xff\x80" + bytes(11),
    b"\x81\xfe\x00\x01\x00\x00\x00\x00a",
)
TARGET = Target(
    read,
    check,
    tuple(bytes([at]) + stream for stream in _STREAMS for at in (0, 1, 6)),
    (
        b"\x81\x80",
        b"\x81\xfe\0\x7e",
        b"\x01\x81",
        b"\x80\x81",
        b"\x89\x80",
        b"\x88\x82",
        b"\0\0\0\0",
        b"\x03\xe8",
    ),
    max_bytes=2048,
)
