"""The process that checks signatures for the gateway, on another core: one batch after the other, over its pipes.

`node.signature_helper` starts one. A request is two numbers and a batch; the answer is the first number and a byte a signature, 1
if it is valid. The process ends when its standard input does, and so never outlives its gateway.

Tested in tests/unit/node/test_signature_helper.py.
"""

from __future__ import annotations

import marshal
import signal
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO, Final

from gateway.core.signatures import Signature

_REQUEST: Final = struct.Struct("!QI")  # the batch's number, and the bytes that follow
ANSWER: Final = struct.Struct("!Q")


def request(number: int, batch: Sequence[Signature]) -> bytes:
    """The request to check a batch."""
    body = marshal.dumps([tuple(one) for one in batch])
    return _REQUEST.pack(number, len(body)) + body


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer each request until `source` ends."""
    while head := source.read(_REQUEST.size):
        number, size = _REQUEST.unpack(head)
        # Only the gateway writes here, and it runs the same Python.
        batch = marshal.loads(source.read(size))  # noqa: S302
        valid = bytes(Signature(*one).fault() is None for one in batch)
        sink.write(ANSWER.pack(number) + valid)
        sink.flush()


def main() -> None:
    """Serve the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
