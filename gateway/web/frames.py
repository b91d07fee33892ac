"""Writes the frames of a WebSocket server, and reads the simple ones without a parser (RFC 6455 section 5.2).

Tested in tests/gateway/web/test_websocket.py.
"""

from __future__ import annotations

import struct
from typing import Final

from websockets.frames import (  # type: ignore[attr-defined] # apply_mask: compiled if possible
    Opcode,
    apply_mask,
)

TEXT: Final = Opcode.TEXT
_FIN: Final = 0x80
_MASK: Final = 0x80
_PONG: Final = bytes((_FIN | Opcode.PONG, _MASK))
_EMPTY: Final = 6
"""Bytes of a client's frame without payload: two, and the masking key."""


def framed(opcode: Opcode, data: bytes) -> bytes:
    """`data` as one frame from a server: final, unmasked (RFC 6455 section 5.2)."""
    size = len(data)
    if size < 126:  # noqa: PLR2004 - the RFC's own numbers
        return bytes((_FIN | opcode, size)) + data
    if size < 65536:  # noqa: PLR2004
        return struct.pack("!BBH", _FIN | opcode, 126, size) + data
    return struct.pack("!BBQ", _FIN | opcode, 127, size) + data


def whole_text(data: bytes) -> bytes | None:
    """The payload if `data` is exactly one unfragmented, masked text frame from a client.

    None for anything else, which the core must read: fragments, reserved bits, no mask, 64 KiB or more
    (RFC 6455 section 5.2). The caller bounds the length of `data`, and so of the message.
    """
    size = len(data) - 6  # two bytes and the masking key
    if size < 0 or data[0] != _FIN | TEXT:
        return None
    if size < 126:  # noqa: PLR2004 - the RFC's own numbers
        return apply_mask(data[6:], data[2:6]) if data[1] == _MASK | size else None
    size -= 2  # two more bytes hold the length
    if data[1] != _MASK | 126 or size != data[2] << 8 | data[3]:
        return None
    return apply_mask(data[8:], data[4:8])


def is_empty_pong(data: bytes) -> bool:
    """Whether `data` is exactly the answer of a client to a ping without payload (RFC 6455 section 5.5.3)."""
    return len(data) == _EMPTY and data.startswith(_PONG)
