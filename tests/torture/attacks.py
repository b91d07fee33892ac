"""What an abuser does, each for some seconds and from a process of its own; returns what it counted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from websockets.frames import Frame, Opcode

from tests.support.ice import Ice, Key, Refused, b64, b64_json

WORKERS = 50
_WAIT = 1.0
"""Seconds for an answer."""


@dataclass(frozen=True)
class Target:
    """The gateway, and what the abuser has got hold of: tokens and keys of rogue ICEs."""

    url: str
    rogues: Sequence[tuple[str, bytes]]
    seconds: float

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)


Attack = Callable[[Target], Awaitable[Counter[str]]]


async def _crowd(target: Target, work: Callable[[Counter[str]], Awaitable[None]]) -> Counter[str]:
    """Have many workers do `work` again and again; they count what becomes of it."""
    counted: Counter[str] = Counter()
    until = time.monotonic() + target.seconds

    async def worker() -> None:
        while time.monotonic() < until:
            counted["attempts"] += 1
            try:
                async with asyncio.timeout(15):
                    await work(counted)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                counted[type(error).__name__] += 1

    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    return counted


async def _exchange(target: Target, data: bytes) -> bytes:
    """Send bytes on a connection of their own; the first line of the answer."""
    reader, writer = await asyncio.open_connection(*target.address)
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WAIT):
                return (await reader.read(64)).split(b"\r\n")[0]
        return b""  # it waits for the rest of what was sent
    finally:
        writer.transport.abort()


def _handshake(token: str, proof: str, **headers: str) -> bytes:
    fields = {
        "Host": "x",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": "ice.v1",
        "Authorization": f"DPoP {token}",
        "DPoP": proof,
        **headers,
    }
    lines = "\r\n".join(f"{name}: {value}" for name, value in fields.items())
    return f"GET /ice/v1 HTTP/1.1\r\n{lines}\r\n\r\n".encode("latin-1")


def _forged() -> str:
    """Shaped like a token of ours."""
    header = b64_json({"alg": "dir", "enc": "A256GCM", "kid": b64(os.urandom(6)), "iat": 1.0})
    return f"{header}..{b64(os.urandom(12))}.{b64(os.urandom(90))}.{b64(os.urandom(16))}"


async def garbage(target: Target) -> Counter[str]:
    """Handshakes that are none: noise, halves, TLS, too much of everything."""
    genuine = target.rogues[0][0]
    kinds: list[Callable[[], bytes]] = [
        lambda: os.urandom(random.randint(1, 4000)),
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        lambda: _handshake(_forged(), "x")[: random.randint(1, 300)],
        lambda: _handshake("A" * 30_000, "x"),
        lambda: _handshake(genuine, "B" * 30_000),
        lambda: _handshake(genuine, f"{b64(os.urandom(99))}.{b64(os.urandom(99))}.{b64(b'x')}"),
        lambda: _handshake(genuine, Key.ed25519().proof("http://elsewhere/ice/v1", genuine)),
        lambda: _handshake(_forged(), "x", **{"Sec-WebSocket-Key": "short"}),
        lambda: _handshake(_forged(), "x", **{f"X-{number}": "y" for number in range(200)}),
        lambda: b"GET /ice/v1 HTTP/1.1\r\n\r\n" * 50,
        lambda: b"[" * 60_000,
    ]

    async def work(counted: Counter[str]) -> None:
        line = await _exchange(target, random.choice(kinds)())
        counted[line.decode("latin-1")[9:12] or "no answer"] += 1

    return await _crowd(target, work)


async def tokens(target: Target) -> Counter[str]:
    """Guessing tokens, each time as somebody else by X-Forwarded-For."""

    async def work(counted: Counter[str]) -> None:
        poses = ".".join(str(random.randint(1, 250)) for _ in range(4))
        spoofed = {"X-Forwarded-For": poses, "Forwarded": f"for={poses}", "X-Real-IP": poses}
        line = await _exchange(target, _handshake(_forged(), "x", **spoofed))
        counted[line.decode("latin-1")[9:12] or "no answer"] += 1

    return await _crowd(target, work)


async def logins(target: Target) -> Counter[str]:
    """Guessing passwords and API tokens."""

    async def work(counted: Counter[str]) -> None:
        if random.random() < 0.5:
            body = urlencode({"name": f"user-{random.randint(1, 99)}", "password": "x"})
            head = (
                f"POST /admin/login HTTP/1.1\r\nHost: {urlsplit(target.url).netloc}\r\n"
                f"Origin: {target.url}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            kind = "login"
        else:
            head = (
                "GET /admin/api/v1/ices HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Authorization: Bearer icegw_{b64(os.urandom(32))}\r\n\r\n"
            )
            body, kind = "", "api"
        line = await _exchange(target, (head + body).encode())
        counted[f"{kind} {line.decode('latin-1')[9:12] or 'no answer'}"] += 1

    return await _crowd(target, work)


def _frames() -> list[bytes]:
    def text(data: bytes) -> bytes:
        return Frame(Opcode.TEXT, data).serialize(mask=True)

    return [
        Frame(Opcode.PING, b"").serialize(mask=True) * 8000,
        Frame(Opcode.PONG, b"").serialize(mask=True) * 8000,
        text(b"[" * 100),
        text(b'{"jsonrpc":"2.0","method":"no"}') * 8000,
        text(b'{"jsonrpc":"2.0","id":"' + b"i" * 4000 + b'","method":"no"}') * 4000,
        Frame(Opcode.TEXT, b"[", fin=False).serialize(mask=True)
        + Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 8000,
        text(b"\xff"),
        text(b"x" * (1 << 20) + b"x"),
        os.urandom(5000),
    ]


async def floods(target: Target) -> Counter[str]:
    """Registered ICEs gone rogue: floods of frames that they do not read the answers to, again and again."""
    counted: Counter[str] = Counter()
    until = time.monotonic() + target.seconds
    kinds = _frames()

    async def rogue(token: str, pem: bytes) -> None:
        ice = Ice(target.url, token, key_from(pem))
        while time.monotonic() < until:
            counted["attempts"] += 1
            try:
                connection = await ice.connect()
                connection.writer.write(random.choice(kinds))
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(5):
                        await connection.writer.drain()
                        await connection.expect_dropped(0)
            except AssertionError:
                close = connection.core.close_rcvd
                counted[f"closed {close.code if close else 'without a code'}"] += 1
            except Refused as refused:
                counted[refused.code] += 1
            except OSError as error:
                counted[type(error).__name__] += 1
            finally:
                for each in ice.connections:
                    each.writer.transport.abort()
                ice.connections.clear()

    await asyncio.gather(*(rogue(token, pem) for token, pem in target.rogues))
    return counted


def key_from(private: bytes) -> Key:
    """An Ed25519 key from its bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    return Key(Ed25519PrivateKey.from_private_bytes(private))


NASTY = "\x1b[31m\x1b]0;x\x07\u202e\u2066<script>{}\\n\r\n%s${jndi:x}"


async def injections(target: Target) -> Counter[str]:
    """Text that would become a second line, a colour or a formula wherever it is shown."""
    token, pem = target.rogues[0]
    ice = Ice(target.url, token, key_from(pem))

    async def work(counted: Counter[str]) -> None:
        raw = NASTY.encode()
        paths = [b"/ice/v1", b"/admin/", b"/admin/api/v1/ices/"]
        line = raw.replace(b"\r\n", b"")
        for path in paths:
            counted[
                (await _exchange(target, b"GET " + path + line + b" HTTP/1.1\r\n\r\n"))[
                    9:12
                ].decode("latin-1")
            ] += 1
        header = b"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: " + line + b"\r\n\r\n"
        counted[(await _exchange(target, header))[9:12].decode("latin-1")] += 1
        with contextlib.suppress(Refused, AssertionError):
            connection = await ice.connect()
            connection.hello(version=NASTY, platform=NASTY * 1000, hostname=NASTY)
            connection.send_frame(Opcode.CLOSE, b"\x0f\xa0" + raw[:100])
            await connection.writer.drain()
            await connection.close()

    return await _crowd(target, work)


ATTACKS: dict[str, Attack] = {
    "garbage": garbage,
    "tokens": tokens,
    "logins": logins,
    "floods": floods,
    "injections": injections,
}
