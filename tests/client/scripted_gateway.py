"""A gateway that does what a test tells it: one turn of its script for each handshake."""

import asyncio
import base64
import json
import secrets
from collections import deque
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from client import protocol

NAME = "lab-1"
NOW = 1_800_000_000.0


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def make_token(iat=NOW, **header):
    """The text of a token as the gateway makes them; `iat=None` leaves the time out."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": "k1", "iat": iat} | header
    header = {name: value for name, value in header.items() if value is not None}
    parts = [json.dumps(header).encode(), b"", *(secrets.token_bytes(n) for n in (12, 90, 16))]
    return ".".join(map(b64, parts))


class FakeTime:
    """Clocks that only sleeping moves, sleep that returns at once, randomness that is told."""

    def __init__(self):
        self.elapsed = 0.0
        self.delays = []
        self.draws = []
        self.fraction = 1.0
        self._slept = asyncio.Condition()

    def now(self):
        return NOW + self.elapsed

    def monotonic(self):
        return self.elapsed

    async def sleep(self, seconds):
        self.delays.append(seconds)
        self.elapsed += seconds
        async with self._slept:
            self._slept.notify_all()

    async def after_sleeps(self, count):
        """Wait until somebody has slept this many times."""
        async with self._slept, asyncio.timeout(5):
            await self._slept.wait_for(lambda: len(self.delays) >= count)

    def uniform(self, low, high):
        self.draws.append((low, high))
        return low + (high - low) * self.fraction


@dataclass
class Handshake:
    """What an ICE brought to one handshake, or to another request."""

    path: str
    headers: object
    header: dict = field(default_factory=dict)
    claims: dict = field(default_factory=dict)
    method: str = "GET"
    body: bytes = b""

    @classmethod
    async def of(cls, request):
        parts = request.headers["DPoP"].split(".")
        header, claims = (json.loads(unb64(part)) for part in parts[:2])
        headers, body = request.headers.copy(), await request.read()
        return cls(request.path, headers, header, claims, request.method, body)


class Session:
    """An admitted connection, from the gateway's side."""

    def __init__(self, socket):
        self.socket = socket
        self.inbox = asyncio.Queue()
        self.ended = asyncio.get_running_loop().create_future()
        self.pongs = asyncio.Queue()
        self._ids = 0

    async def send(self, **message):
        await self.socket.send_json({"jsonrpc": "2.0"} | message)

    async def receive(self):
        return await asyncio.wait_for(self.inbox.get(), 5)

    async def expect(self, method):
        message = await self.receive()
        assert message.get("method") == method, f"the ICE should have sent {method}, not {message}"
        return message

    async def request(self, method, params):
        """Send a request and return the next message, which should be its answer."""
        self._ids += 1
        await self.send(method=method, params=params, id=self._ids)
        answer = await self.receive()
        assert answer.get("id") == self._ids, f"the ICE should have answered, not sent {answer}"
        return answer

    async def closed(self):
        """The code with which the ICE closed."""
        return await asyncio.wait_for(asyncio.shield(self.ended), 5)

    async def read(self):
        try:
            async for frame in self.socket:
                if frame.type is WSMsgType.TEXT:
                    self.inbox.put_nowait(json.loads(frame.data))
                elif frame.type is WSMsgType.PONG:
                    self.pongs.put_nowait(frame.data)
        finally:  # aiohttp cancels it where the peer is gone
            if not self.ended.done():
                self.ended.set_result(self.socket.close_code)


class ScriptedGateway:
    """Admits and holds once its script is at its end."""

    def __init__(self):
        self.script = deque()
        self.handshakes = []
        self.sessions = asyncio.Queue()
        self.held = asyncio.Queue()

    def app(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request):
        self.handshakes.append(await Handshake.of(request))
        turn = self.script.popleft() if self.script else admit(queue=self.held)
        return await turn(self, request)

    async def after_script(self):
        """Wait until the ICE has been admitted once the script was at its end."""
        session = await self.held.get()
        await session.expect("ice.hello")

    async def session(self):
        return await asyncio.wait_for(self.sessions.get(), 5)


def welcome(**changes):
    return {
        "ice_name": NAME,
        "ice_type": "normal",
        "provisionedto": "ada",
        "status": "registered",
        "generation": 1,
        "session": "s-1",
        "operations": ["execute"],
        "heartbeat": 30.0,
        "server": "ice-gateway/0",
    } | changes


def refuse(code, **changes):
    """Refuse with a problem of the catalogue, or another."""
    headers = changes.pop("headers", {})
    known = protocol.REFUSALS.get(code)
    body = {"code": code, "title": "T", "detail": f"detail of {code}", "retry": False}
    if known:
        body |= {"status": known.status, "retry": known.retry}
    body |= changes

    async def turn(gateway, request):
        return web.json_response(
            body,
            status=body.get("status", 403),
            headers=headers,
            content_type="application/problem+json",
        )

    return turn


def grant(token, *, status=201, name=NAME):
    """Give the machine that enrols its ICE."""

    async def turn(gateway, request):
        return web.json_response({"ice_name": name, "token": token}, status=status)

    return turn


def wait(enrolment="e-1", retry_after=5):
    """Let the machine that enrols wait for an approval."""

    async def turn(gateway, request):
        body = {"enrolment": enrolment, "retry_after": retry_after}
        return web.json_response(body, status=202)

    return turn


def answer(status, text="", **headers):
    """Answer as a proxy would."""

    async def turn(gateway, request):
        return web.Response(status=status, text=text, content_type="text/html", headers=headers)

    return turn


async def hang_up(gateway, request):
    """Take the request and say nothing."""
    request.transport.close()
    return web.Response()


def admit(*, close=None, first=None, protocols=("ice.v1",), queue=None, **changes):
    """Admit; then close with `(code, reason)` if given, else hold."""

    async def turn(gateway, request):
        socket = web.WebSocketResponse(protocols=protocols, autoping=False, timeout=1)
        await socket.prepare(request)
        session = Session(socket)
        if first is None:
            await session.send(method="ice.welcome", params=welcome(**changes))
        else:
            await socket.send_str(first)
        (queue or gateway.sessions).put_nowait(session)
        if close is not None:
            await socket.close(code=close[0], message=close[1].encode())
            return socket
        await session.read()
        return socket

    return turn
