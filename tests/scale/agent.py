"""One ICE of the generator, without I/O: its key, its handshakes, the frames that it gets and sends.

It comes back by the rules of the reference client (`client.backoff`). Written for tens of thousands in one process:
an idle one keeps no buffer.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from client.backoff import Backoff, Closed, Refused, Stopped
from client.environment import Environment
from gateway.core import base64url

PUBLIC = "http://gateway.example"
"""The URL that all proofs name: that of a balancer, which the generator plays."""
HTU = f"{PUBLIC}/ice/v1"
_ECDSA = ec.ECDSA(hashes.SHA256())
_TEXT, _CLOSE, _PING = 1, 8, 9
_ENVIRONMENT = Environment()
_GONE = 1006  # RFC 6455 section 7.4.1: without a close frame


def name_of(number: int) -> str:
    return f"ice-{number:07}"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The welcome came."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An HTTP answer other than 101."""

    code: str
    retry_after: float | None
    retry: bool


class Agent:
    """An ICE. `token` is set once its entry is there."""

    __slots__ = (
        *("backoff", "buffer", "close_code", "close_reason", "since", "fd", "head", "heard"),
        *("key", "left", "node", "number", "opened", "state", "token"),
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.token = ""
        self.key = ec.generate_private_key(ec.SECP256R1())
        head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk}
        self.head = base64url.encode(json.dumps(head).encode())
        self.fd = -1
        self.node = -1
        self.state = IDLE
        self.buffer = b""
        self.backoff: Backoff | None = None
        self.since = self.opened = self.heard = 0.0
        """When its handshake began, its session began, and something came, by `time.monotonic`."""
        self.left = 0.0
        """When its session ended unless it is connected, was never, or went by itself."""
        self.close_code = _GONE
        self.close_reason = ""

    @property
    def jwk(self) -> dict[str, str]:
        numbers = self.key.public_key().public_numbers()
        x, y = (base64url.encode(part.to_bytes(32)) for part in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y}

    def _proof(self) -> str:
        ath = base64url.encode(hashlib.sha256(self.token.encode()).digest())
        claims = (
            f'{{"jti":"{secrets.token_urlsafe(16)}","htm":"GET","htu":"{HTU}",'
            f'"iat":{time.time()},"ath":"{ath}"}}'
        )
        signed = f"{self.head}.{base64url.encode(claims.encode())}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), _ECDSA))
        return f"{signed}.{base64url.encode(r.to_bytes(32) + s.to_bytes(32))}"

    def request(self) -> bytes:
        """A handshake, with a proof made now."""
        return (
            "GET /ice/v1 HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: ice.v1\r\nAuthorization: DPoP {self.token}\r\nDPoP: {self._proof()}\r\n\r\n"
        ).encode()

    def hello(self) -> bytes:
        """What a client says of itself after the welcome."""
        facts = {
            "version": "1.0.0",
            "platform": "Linux 6.1 x86_64",
            "hostname": f"host-{self.number:07}",
            "instance": f"{self.number:032x}",
            "running": [],
        }
        return frame(
            _TEXT,
            json.dumps({"jsonrpc": "2.0", "method": "ice.hello", "params": facts}).encode(),
        )

    def received(self, data: bytes, now: float) -> tuple[bytes, Admitted | Rejected | None]:
        """What to send upon what came, and what it means for the handshake. Raises ValueError for nonsense."""
        self.heard = now
        data = self.buffer + data
        self.buffer = b""
        outcome: Admitted | Rejected | None = None
        if self.state == OPENING:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.buffer = head
                return b"", None
            lines = head.decode("latin-1").split("\r\n")
            if lines[0].split(" ")[1] != "101":
                return b"", _rejected(lines, data)
            self.state = WELCOMED
        answer = b""
        for opcode, payload in self._frames(data):
            if opcode == _PING:
                answer += frame(10, payload)
            elif opcode == _CLOSE:
                self.close_code = int.from_bytes(payload[:2]) or 1005
                self.close_reason = payload[2:].decode()
                self.left = now
                answer += frame(_CLOSE, payload[:2])
            elif opcode == _TEXT and self.state == WELCOMED:
                self.state = OPEN
                outcome = Admitted()
                answer += self.hello()
        return answer, outcome

    def _frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The whole frames of what came (RFC 6455 section 5.2); the rest is kept."""
        at, size = 0, len(data)
        while size - at >= 2:
            length, begin = data[at + 1] & 127, at + 2
            if length == 126:
                if size < at + 4:
                    break
                length, begin = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif length == 127:
                raise ValueError("a frame of 64 KiB or more was not expected")
            if size < begin + length:
                break
            yield data[at] & 15, data[begin : begin + length]
            at = begin + length
        self.buffer = data[at:]

    def refused(self, rejected: Rejected) -> float | Stopped:
        """Seconds until the next attempt, or why there is none; by the rules of the client."""
        refused = Refused(rejected.code, "", rejected.retry, rejected.retry_after)
        return self._rules().refused(refused, was_admitted=True)

    def closed(self, now: float) -> float | Stopped:
        """Likewise after the end of a session."""
        return self._rules().closed(
            Closed(self.close_code, "", self.close_reason), lasted=now - self.opened
        )

    def _rules(self) -> Backoff:
        if self.backoff is None:
            self.backoff = Backoff(_ENVIRONMENT)
        return self.backoff


IDLE, OPENING, WELCOMED, OPEN, LEAVING, STOPPED = range(6)
"""The states of an agent: without a connection, handshake sent, 101 seen, welcomed, closing, never again."""


def frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame of less than 64 KiB. The mask is zero: nothing between the two ends has to be misled."""
    size = len(payload)
    length = bytes([128 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([128 | opcode]) + length + b"\0\0\0\0" + payload


def leaving() -> bytes:
    """The close frame of an ICE that goes by itself."""
    return frame(_CLOSE, (1000).to_bytes(2))


def _rejected(lines: list[str], body: bytes) -> Rejected:
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    try:
        problem = json.loads(body)
    except ValueError:
        problem = {}
    after = fields.get("retry-after")
    code = problem.get("code", f"http-{lines[0].split(' ')[1]}")
    return Rejected(code, float(after) if after else None, bool(problem.get("retry", True)))
