"""An ICE for tests, written apart from `client`: it can also do everything wrong.

It speaks the handshake over a plain socket and parses frames with the sans-I/O core of `websockets`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

PATIENCE = 10.0
"""Seconds after which an expectation has failed; nothing is expected to take long."""
PROCESS_PATIENCE = 60.0
"""The same for a process that starts or ends: beside others a machine gives it an eighth of a processor."""


async def until(holds: Callable[[], object]) -> None:
    """Let the loop run until `holds()`, for what this process does by itself a moment later."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - there is no event for what is not ours
            await asyncio.sleep(0.001)  # to spin would keep the disk's threads from their work


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64_json(value: Any) -> str:
    return b64(json.dumps(value).encode())


@dataclass
class Key:
    """An ICE's key pair, ES256 or Ed25519."""

    private: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __repr__(self) -> str:
        return f"Key({self.alg})"

    @classmethod
    def ed25519(cls) -> Key:
        return cls(Ed25519PrivateKey.generate())

    @property
    def alg(self) -> str:
        return "Ed25519" if isinstance(self.private, Ed25519PrivateKey) else "ES256"

    @property
    def jwk(self) -> dict[str, str]:
        if self.alg == "Ed25519":
            x = self.private.public_key().public_bytes_raw()
            return {"kty": "OKP", "crv": "Ed25519", "x": b64(x)}
        numbers = self.private.public_key().public_numbers()
        x, y = (value.to_bytes(32, "big") for value in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)}

    def sign(self, data: bytes) -> bytes:
        if self.alg == "Ed25519":
            return self.private.sign(data)
        r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def proof(self, url: str, token: str, *, header=None, **claims: Any) -> str:
        """A DPoP proof; `header` and `claims` override, a claim of None is left out."""
        head = {"typ": "dpop+jwt", "alg": self.alg, "jwk": self.jwk, **(header or {})}
        body = {
            "jti": secrets.token_urlsafe(16),
            "htm": "GET",
            "htu": url,
            "iat": time.time(),
            "ath": b64(hashlib.sha256(token.encode()).digest()),
            **claims,
        }
        body = {name: value for name, value in body.items() if value is not None}
        signed = f"{b64_json(head)}.{b64_json(body)}"
        return f"{signed}.{b64(self.sign(signed.encode()))}"


Headers = Mapping[str, str | Sequence[str] | None]


class Refused(Exception):
    """The gateway refused the handshake."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.problem = json.loads(body) if body else {}
        super().__init__(f"refused: {status} {self.problem.get('code')}")

    @property
    def code(self) -> str:
        return self.problem.get("code", "")


class Connection:
    """An admitted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.core = Protocol(CLIENT, state=OPEN, max_size=None)
        self.welcome: dict[str, Any] = {}
        self._frames: list[Frame] = []
        self.answers_close = True
        self.answers_pings = True
        self.patience: float | None = PATIENCE

    async def frame(self) -> Frame | None:
        """The next frame, None at the end of the stream."""
        async with asyncio.timeout(self.patience):
            while not self._frames:
                try:
                    data = await self.reader.read(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    return None
                self.core.receive_data(data)
                self._frames += self.core.events_received()
                answers = self.core.data_to_send()
                if self.answers_close and self.answers_pings:
                    for answer in answers:
                        if answer:
                            self.writer.write(answer)
        return self._frames.pop(0)

    async def message(self) -> dict[str, Any]:
        """The next JSON message."""
        while True:
            frame = await self.frame()
            assert frame is not None, "the gateway ended the stream instead of sending a message"
            assert frame.opcode is not Opcode.CLOSE, (
                f"the gateway closed with {self.core.close_rcvd} instead of sending a message"
            )
            if frame.opcode is Opcode.TEXT:
                return json.loads(bytes(frame.data))

    async def expect_dropped(self, code: int) -> str:
        """Wait for the close frame, which must bear `code`; returns the reason."""
        while True:
            frame = await self.frame()
            assert frame is not None, f"the stream ended without a close frame of {code}"
            if frame.opcode is Opcode.CLOSE:
                close = self.core.close_rcvd
                assert close is not None, f"expected {code}, got a close frame without a code"
                assert close.code == code, f"expected {code}, got {close}"
                return close.reason

    async def expect_ping(self) -> None:
        while (frame := await self.frame()) is not None:
            if frame.opcode is Opcode.PING:
                return
        raise AssertionError("the stream ended, a ping was expected")

    def send(self, message: Any) -> None:
        self.send_frame(Opcode.TEXT, json.dumps(message).encode())

    def send_frame(self, opcode: Opcode, data: bytes, *, fin: bool = True) -> None:
        self.writer.write(Frame(opcode, data, fin).serialize(mask=True))

    def hello(self, **facts: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": "ice.hello", "params": facts})

    async def request(self, method: str, request_id: Any = 1, **params: Any) -> dict[str, Any]:
        self.send({"jsonrpc": "2.0", "method": method, "id": request_id, "params": params})
        return await self.message()

    async def round_trip(self) -> None:
        """Return when the gateway has handled everything sent so far."""
        answer = await self.request("no.such.method", "round-trip")
        assert answer["id"] == "round-trip", f"unexpected message {answer}"

    async def leave(self, code: int = 1000) -> None:
        """The closing handshake, begun here; afterwards the gateway has ended the session."""
        self.send_frame(Opcode.CLOSE, code.to_bytes(2, "big"))
        await self.expect_dropped(code)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):  # a reset, or under TLS the same by another name
            await self.writer.wait_closed()


class Ice:
    """An ICE with a token and a key. `url` is the gateway's base URL, `tls` what trusts it."""

    def __init__(self, url: str, token: str, key: Key | None = None, tls: Any = None) -> None:
        self.url = url
        self.token = token
        self.key = key or Key()
        self.tls = tls
        self.connections: list[Connection] = []

    @property
    def htu(self) -> str:
        return f"{self.url}/ice/v1"

    def headers(self, **claims: Any) -> dict[str, str]:
        """Good headers; `claims` go into the proof."""
        proof = self.key.proof(claims.pop("htu", self.htu), self.token, **claims)
        return {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
            "Sec-WebSocket-Protocol": "ice.v1",
            "Authorization": f"DPoP {self.token}",
            "DPoP": proof,
        }

    def request(
        self,
        headers: Headers | None = None,
        *,
        path: str = "/ice/v1",
        method: str = "GET",
        version: str = "1.1",
        **claims: Any,
    ) -> bytes:
        """The handshake's bytes; `headers` override, None leaves one out, a list repeats it."""
        fields = {"Host": urlsplit(self.url).netloc, **self.headers(**claims), **(headers or {})}
        lines = [f"{method} {path} HTTP/{version}"]
        for name, given in fields.items():
            values = [given] if isinstance(given, str) else given or []
            lines += [f"{name}: {value}" for value in values]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which nothing has been sent."""
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port, ssl=self.tls)

    async def begin(
        self, headers: Headers | None = None, **how: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send the handshake; see `request`."""
        reader, writer = await self.dial()
        writer.write(self.request(headers, **how))
        return reader, writer

    async def connect(self, headers: Headers | None = None, **how: Any) -> Connection:
        """Connect and read the welcome. Raises `Refused`."""
        return await self.finish(*await self.begin(headers, **how))

    async def finish(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Connection:
        """Read the answer to a handshake."""
        async with asyncio.timeout(PATIENCE):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                writer.close()
                raise ConnectionResetError(
                    "the gateway ended the stream without an answer"
                ) from None
        status, *lines = head.strip().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        if int(status.split()[1]) != 101:
            body = await reader.readexactly(int(fields.get("Content-Length", 0)))
            writer.close()
            raise Refused(int(status.split()[1]), fields, body)
        assert fields["Sec-WebSocket-Protocol"] == "ice.v1", f"wrong subprotocol in {fields}"
        connection = Connection(reader, writer)
        self.connections.append(connection)
        message = await connection.message()
        assert message["method"] == "ice.welcome", f"the first frame was {message}"
        connection.welcome = message["params"]
        return connection

    async def refused(self, *args: Any, **kwargs: Any) -> Refused:
        """Connect, expecting a refusal."""
        try:
            connection = await self.connect(*args, **kwargs)
        except Refused as refused:
            return refused
        raise AssertionError(f"expected a refusal, but was admitted: {connection.welcome}")


class Nomad(Ice):
    """An ICE that comes to whichever node it is sent to, all of which are reached at `PUBLIC`."""

    PUBLIC = "http://gateway.example"

    @property
    def htu(self) -> str:
        return f"{self.PUBLIC}/ice/v1"

    def at(self, node: Any) -> Nomad:
        """The same ICE, going to a node with this `url`."""
        there = Nomad(node.url, self.token, self.key)
        there.connections = self.connections
        return there
