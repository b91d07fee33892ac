"""A whole gateway in this process whose connections are simulated: bytes in, and what it writes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp.web_app

from gateway.core.enrolment import MAX_USES
from gateway.core.roles import Role
from tests.fuzz.simulation import Transport
from tests.fuzz.target import Failed, require
from tests.support.harness import Harness, harness
from tests.support.ice import Ice
from tests.support.machine import Machine, new_key

_PATIENCE = 10.0
_TURNS = 10
"""Turns of the loop after which a request whose body is incomplete is not waited for."""


class _Handle:
    """The socket of a simulated connection."""

    @staticmethod
    def fileno() -> int:
        return 3


class _Connection(Transport):
    """A connection of a client at loopback, whose protocol may change."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._told = {
            "peername": ("127.0.0.1", 40000),
            "sockname": ("127.0.0.1", port),
            "socket": _Handle(),
        }
        self.protocol: Any = None
        self.answered = 0
        """Whole answers that were written."""

    def write(self, data: bytes) -> None:
        super().write(data)
        with contextlib.suppress(Failed):  # half an answer
            self.answered = len(answers_of(bytes(self.written))[0])

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._told.get(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))


@dataclass(frozen=True)
class Answer:
    """An answer of the gateway."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A gateway with an ICE `lab-1` of alice, an admin's token, and a machine that may enrol; see `harness`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = Path(tempfile.mkdtemp())
        self._stack = contextlib.AsyncExitStack()
        self.running: Harness = self._run(self._start())
        self.port = int(self.running.url.rpartition(":")[2])
        self.token = self.running.admin.token or ""
        self.ice: Ice = self._run(self.running.provision())
        _, secret = self._run(new_key(self.running, max_uses=MAX_USES))
        self.machine = Machine(self.running.session, self.running.url, secret)

    def _run(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)

    async def _start(self) -> Harness:
        started = await self._stack.enter_async_context(harness(self._folder, log__level="error"))
        await started.api("olivia", Role.AUDITOR)
        return started

    def close(self) -> None:
        """Stop the gateway."""
        self._run(self._stack.aclose())
        aiohttp.web_app._cached_build_middleware.cache_clear()
        self._loop.close()
        shutil.rmtree(self._folder)

    def exchange(self, pieces: list[bytes]) -> bytes:
        """What the gateway writes on a new connection on which these pieces arrive."""
        return self._run(self._exchange(pieces))

    async def _exchange(self, pieces: list[bytes]) -> bytes:
        server = self.running.gateway.runner.server
        assert server is not None
        transport = _Connection(self.port)
        connection: Any = server()
        transport.protocol = connection
        connection.connection_made(transport)
        for piece in pieces:
            if transport.closing:
                break
            transport.protocol.data_received(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(_PATIENCE):
            turns = 0
            while not (transport.closing or transport.protocol is not connection):
                waits = self._waits(connection) or transport.answered >= connection._request_count
                turns = turns + 1 if waits else 0
                if turns > _TURNS:
                    break
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        written = bytes(transport.written)
        transport.close()
        transport.protocol.connection_lost(None)
        for _ in range(_TURNS):  # until its tasks have ended
            await asyncio.sleep(0)
        return written

    @staticmethod
    def _waits(connection: Any) -> bool:
        """Whether the gateway waits for the client."""
        if connection._task_handler is None or connection._closed is not None:
            return True
        if connection._waiter is not None and not connection._messages:
            return True
        request = connection._current_request
        return request is not None and not request.content.is_eof()


@functools.cache
def wire() -> Wire:
    """The gateway of this process; `close` stops it."""
    return Wire()


def close() -> None:
    """Stop the gateway of this process, if it runs."""
    if wire.cache_info().currsize:
        wire().close()
        wire.cache_clear()


_HEAD = re.compile(
    rb"HTTP/[0-9]\.[0-9] ([1-5][0-9]{2}) [^\r\n]*\r\n((?:[!-9;-~]+: [^\r\n]*\r\n)*)\r\n"
)


def answers_of(written: bytes, *, to_head: bool = False) -> tuple[list[Answer], bytes]:
    """The answers in what was written, and what follows a 101. Each has to be whole.

    With `to_head` one may be that to a HEAD, which has no body (RFC 9110 section 9.3.2).
    """
    answers = []
    while written:
        found = _HEAD.match(written)
        require(found, f"no head of an answer: {written[:200]!r}")
        assert found
        lines = found[2].decode("latin-1").split("\r\n")[:-1]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status, written = int(found[1]), written[found.end() :]
        if status == 101:
            answers.append(Answer(status, headers, b""))
            return answers, written
        if status == 100:
            continue
        if headers.get("transfer-encoding") == "chunked":
            body, end, written = written.partition(b"0\r\n\r\n")
            require(end, "chunks without an end")
        else:
            size = int(headers.get("content-length", "0"))
            if to_head and (not written or written.startswith(b"HTTP/")):
                size = 0
            body, written = written[:size], written[size:]
            require(len(body) == size, f"{len(body)} of {size} bytes of the body")
        answers.append(Answer(status, headers, body))
    return answers, b""
