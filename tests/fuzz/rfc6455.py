"""A server's reading of a WebSocket stream by RFC 6455, plain and slow: the reference for the product's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_DATA, _CONTROL = (0, 1, 2), (8, 9, 10)
_CONT, _TEXT, _BINARY, _CLOSE, _PING, _PONG = *_DATA, *_CONTROL
PROTOCOL_ERROR, TEXT_ONLY, INVALID, TOO_BIG = 1002, 1003, 1007, 1009
NO_STATUS: Final = 1005


@dataclass
class Reading:
    """What a stream says.

    Attributes:
        messages: the text messages before it ends.
        pings: what has to be sent back.
        ends: the codes of the close frame with which the server may answer; empty if the stream goes on.
        cut: whether the stream ends within the frame for which it ends: the server may wait for the rest.
    """

    messages: list[str] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    cut: bool = False


def _is_code(code: int) -> bool:
    """Whether a peer may send this code (RFC 6455 section 7.4, and the IANA registry)."""
    return code in (*range(1000, 1004), *range(1007, 1015)) or 3000 <= code < 5000


class Reader:
    """Reads one stream; `limit` is the most bytes of a message."""

    def __init__(self, data: bytes, limit: int) -> None:
        self._data = data
        self._limit = limit
        self._at = 0
        self._message: bytearray | None = None
        self.reading = Reading()

    def read(self) -> Reading:
        """Read all of it."""
        while not self.reading.ends and self._frame():
            pass
        return self.reading

    def _end(self, *codes: int, cut: bool = False) -> bool:
        self.reading.ends = frozenset(codes)
        self.reading.cut = cut
        return False

    def _frame(self) -> bool:
        """Read a frame; False if there is no further one."""
        rest = self._data[self._at :]
        if len(rest) < 2:
            return False
        fin, opcode, length = bool(rest[0] & 0x80), rest[0] & 0x0F, rest[1] & 0x7F
        size = {126: 2, 127: 8}.get(length, 0)
        begin = 6 + size
        if size:
            length = int.from_bytes(rest[2 : 2 + size])
        cut = len(rest) < begin + length
        before = len(self._message or b"")
        faults = set()
        if (
            rest[0] & 0x70
            or opcode not in _DATA + _CONTROL
            or not rest[1] & 0x80
            or (opcode in _CONTROL and (length > 125 or not fin))
            or (opcode in _DATA and (opcode == _CONT) == (self._message is None))
        ):
            faults.add(PROTOCOL_ERROR)
        # The size of a frame with another fault may be looked at first, as if it went on with the message.
        if opcode != _CONT and not faults:
            before = 0
        if len(rest) >= 2 + size and before + length > self._limit:
            faults.add(TOO_BIG)
        if faults:
            return self._end(*faults, cut=cut)
        if cut:
            return False
        mask = rest[begin - 4 : begin]
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(rest[begin : begin + length]))
        self._at += begin + length
        if opcode in _CONTROL:
            return self._control(opcode, payload)
        return self._part(opcode, payload, fin=fin)

    def _control(self, opcode: int, payload: bytes) -> bool:
        if opcode == _PING:
            self.reading.pings.append(payload)
        if opcode != _CLOSE:
            return True
        if not payload:
            return self._end(NO_STATUS)
        code = int.from_bytes(payload[:2]) if len(payload) > 1 else 0
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            return self._end(INVALID, PROTOCOL_ERROR)
        return self._end(code if _is_code(code) else PROTOCOL_ERROR)

    def _part(self, opcode: int, payload: bytes, *, fin: bool) -> bool:
        if opcode == _BINARY:
            return self._end(TEXT_ONLY)
        self._message = (self._message or bytearray()) + payload
        if not fin:
            return True
        message, self._message = bytes(self._message), None
        try:
            self.reading.messages.append(message.decode())
        except UnicodeDecodeError:
            return self._end(INVALID)
        return True
