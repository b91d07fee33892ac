"""A gateway on loopback that does what a scenario says; it judges each request and each message by itself.

Frames are written by hand, because a scenario sends what a library would not: fragments, and codes of any number.
An ICE is a local program that its author tries, so nothing here is a defence.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urljoin

from aiohttp import WSMsgType, web

from client import protocol
from client.conformance.enrolment_rules import is_enrolment, judge_enrolment
from client.conformance.message_rules import fault_of, judge_hello
from client.conformance.report import Finding, Report
from client.conformance.request_rules import Proof, Request, judge_proof, judge_request
from client.conformance.sentences import Sentence

_MAX_READ: Final = 4 * protocol.MAX_MESSAGE
"""The largest message that is read, to say how large it was."""
_FIN: Final = 0x80
_ICE_NAME: Final = "conformance-1"

Message = dict[str, Any]
Match = Callable[[Message], bool]


@dataclass(slots=True, eq=False)
class Attempt:
    """A handshake that waits for its answer; `at` is when it arrived, in seconds of a monotonic clock."""

    at: float
    request: Request
    proof: Proof
    body: bytes
    _answer: asyncio.Future[Callable[[web.BaseRequest], Any]]
    answered: float = 0.0
    """When it was refused."""

    def refuse(
        self, code: str, status: int, *, retry: bool, headers: dict[str, str] | None = None
    ) -> None:
        """Answer as the gateway does."""
        body = {
            "status": status,
            "title": "Refused",
            "detail": "The conformance kit refuses this attempt.",
            "code": code,
            "retry": retry,
        }
        if status == 401:  # noqa: PLR2004 - HTTP
            headers = {"WWW-Authenticate": "DPoP"} | (headers or {})
        self.answer(status, json.dumps(body), headers, "application/problem+json")

    def refuse_as(
        self,
        code: protocol.RefusalCode | protocol.EnrolmentCode,
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer with a code of the protocol."""
        self.refuse(code, code.status, retry=code.retry, headers=headers)

    def answer(
        self,
        status: int,
        text: str,
        headers: dict[str, str] | None = None,
        content_type: str = "text/html",
    ) -> None:
        """Answer with anything."""

        async def respond(_: web.BaseRequest) -> web.Response:
            return web.Response(
                status=status, text=text, headers=headers, content_type=content_type
            )

        self._respond(respond)

    def grant(self, token: str, *, status: int = 201) -> None:
        """Give a machine that enrols its ICE."""
        body = json.dumps({"ice_name": _ICE_NAME, "token": token})
        self.answer(status, body, content_type="application/json")

    def let_wait(self, enrolment: str, retry_after: float) -> None:
        """Let a machine that enrols wait for an approval."""
        body = json.dumps({"enrolment": enrolment, "retry_after": retry_after})
        self.answer(202, body, content_type="application/json")

    def hang_up(self) -> None:
        """Close the connection without an answer."""

        async def respond(request: web.BaseRequest) -> web.Response:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

        self._respond(respond)

    def _respond(self, respond: Callable[[web.BaseRequest], Any]) -> None:
        self.answered = time.monotonic()
        if not self._answer.done():
            self._answer.set_result(respond)

    def upgrade(self, session: Session, subprotocol: str) -> None:
        """Answer with the 101 and let `session` take over."""

        async def respond(request: web.BaseRequest) -> web.StreamResponse:
            return await session.serve(request, subprotocol)

        self._respond(respond)


@dataclass(slots=True)
class Received:
    """A message of the ICE, and when it came."""

    at: float
    message: Message


@dataclass(slots=True, eq=False)
class Session:
    """An admitted connection, from the gateway's side."""

    report: Report
    heartbeat: float = 30.0
    settled: set[str] = field(default_factory=set)
    """Operations whose finish was answered, over all connections: it may come again, because the
    ICE may have been killed before it stored the answer."""
    received: list[Received] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    close_code: int | None = None
    """The code in the ICE's close frame."""
    ended: float | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _transport: asyncio.Transport | None = None

    async def serve(self, request: web.BaseRequest, subprotocol: str) -> web.StreamResponse:
        """Take the connection over until it ends."""
        socket = web.WebSocketResponse(
            protocols=(subprotocol,) if subprotocol else (),
            autoping=False,
            autoclose=False,
            compress=False,
            max_msg_size=_MAX_READ,
        )
        await socket.prepare(request)
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - the connection is there
        self._transport = transport
        self._welcome()
        self.opened.set()
        try:
            while True:
                frame = await socket.receive()
                await self._take(frame.type, frame.data)
                if frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR):
                    break
        finally:
            self.ended = time.monotonic()
            transport.close()
            async with self._news:
                self._news.notify_all()
        return socket

    async def _take(self, kind: WSMsgType, data: Any) -> None:
        match kind:
            case WSMsgType.TEXT:
                fault = fault_of(data)
                self.report.add(Finding(Sentence.MESSAGES, fault is None, fault or ""))
                if fault is None:
                    self._keep(json.loads(data))
            case WSMsgType.BINARY:
                self.report.add(Finding(Sentence.MESSAGES, ok=False, seen="a binary frame"))
            case WSMsgType.PONG:
                self.pongs.append(bytes(data))
            case WSMsgType.PING:
                self.frame(WSMsgType.PONG, bytes(data))
            case WSMsgType.CLOSE:
                self.close_code = int(data)
            case WSMsgType.ERROR:
                self.report.add(Finding(Sentence.MESSAGES, ok=False, seen=f"a bad frame: {data}"))
        async with self._news:
            self._news.notify_all()

    def _keep(self, message: Message) -> None:
        self.received.append(Received(time.monotonic(), message))
        if message.get("method") == "ice.hello":
            self.report.add(judge_hello(message.get("params")))
        if _finished(message) in self.settled:
            self.answer(message)  # other finishes may wait for it

    # --- what a scenario sees ----------------------------------------------------------------------

    def all(self, match: Match) -> list[Message]:
        """The messages so far that match."""
        return [one.message for one in self.received if match(one.message)]

    async def wait(self, happened: Callable[[], bool], within: float) -> bool:
        """Wait until something happened on this connection; False if it did not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(lambda: happened() or self.ended is not None)
        return happened()

    async def find(self, match: Match, within: float) -> Received | None:
        """The first message that matches; None if there is none in time."""
        await self.wait(lambda: any(match(one.message) for one in self.received), within)
        return next((one for one in self.received if match(one.message)), None)

    # --- what a scenario sends ---------------------------------------------------------------------

    def frame(self, kind: WSMsgType, data: bytes, *, fin: bool = True) -> None:
        """Write one frame (RFC 6455 section 5.2)."""
        if self._transport is None or self._transport.is_closing():
            return
        first, size = (_FIN if fin else 0) | int(kind), len(data)
        if size < 126:  # noqa: PLR2004 - the RFC's own numbers
            head = bytes((first, size))
        elif size < 65536:  # noqa: PLR2004
            head = struct.pack("!BBH", first, 126, size)
        else:
            head = struct.pack("!BBQ", first, 127, size)
        self._transport.write(head + data)

    def text(self, text: str) -> None:
        """Send a text message."""
        self.frame(WSMsgType.TEXT, text.encode())

    def notify(self, method: str, params: Any) -> None:
        """Send a notification."""
        self.text(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))

    def new_id(self) -> str:
        """An id for a request or an operation of this session."""
        return secrets.token_hex(12)

    def request(self, method: str, params: Any, request_id: str) -> None:
        """Send a request."""
        body = {"jsonrpc": "2.0", "method": method, "params": params, "id": request_id}
        self.text(json.dumps(body))

    def answer(self, message: Message, error: tuple[int, str] | None = None) -> None:
        """Answer a request of the ICE, with `{}` or an error of this number and code."""
        if (name := _finished(message)) is not None:
            self.settled.add(name)
        body: Message = {"jsonrpc": "2.0", "id": message["id"]}
        if error is None:
            body["result"] = {}
        else:
            number, code = error
            body["error"] = {"code": number, "message": code, "data": {"code": code}}
        self.text(json.dumps(body))

    def close(self, code: int | None, reason: str = "") -> None:
        """Send a close frame, without a code for None."""
        data = b"" if code is None else struct.pack("!H", code) + reason.encode()
        self.frame(WSMsgType.CLOSE, data)

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _welcome(self) -> None:
        self.notify(
            "ice.welcome",
            {
                "ice_name": _ICE_NAME,
                "ice_type": "normal",
                "provisionedto": "conformance",
                "status": "registered",
                "generation": 1,
                "session": secrets.token_hex(8),
                "operations": [kind.value for kind in protocol.OperationKind],
                "heartbeat": self.heartbeat,
                "server": "ice-gateway/conformance",
            },
        )


def _finished(message: Message) -> str | None:
    """The operation that a message finishes, if it is a finish."""
    if message.get("method") != "operation.finish":
        return None
    params = message.get("params")
    name = params.get("id") if isinstance(params, dict) else None
    return name if isinstance(name, str) else None


class Gateway:
    """Listens on loopback, an async context manager; every request becomes an `Attempt`.

    Args:
        report: gets the findings of each request and message.
        token: what an ICE should send; a scenario may change it.
        secret: that of an enrolment key, with which an ICE may ask for the token.
        prefix: the path of the gateway's URL.
        tls: for https.
        host: the host in the gateway's URL; it listens on loopback whatever it is.
    """

    def __init__(
        self,
        report: Report,
        token: str,
        *,
        secret: str = "",
        prefix: str = "",
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.report = report
        self.token = token
        self.secret = secret
        self.attempts: asyncio.Queue[Attempt] = asyncio.Queue()
        self.sessions: list[Session] = []
        self._unanswered: set[Attempt] = set()
        self._settled: set[str] = set()
        self._prefix = prefix
        self._tls = tls
        self._host = host
        self._used: set[str] = set()
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        port = self._runner.addresses[0][1]
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://{self._host}:{port}{self._prefix}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for attempt in self._unanswered:
            attempt.hang_up()
        for session in self.sessions:
            session.abort()
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        at, found = (
            time.monotonic(),
            Request(request.method, request.path_qs, [*request.headers.items()]),
        )
        body = await request.read()
        proof = self._judge(found, body)
        jti = proof.claims.get("jti")
        if isinstance(jti, str):
            fresh = jti not in self._used
            sentence = Sentence.ENROL_PROOF if is_enrolment(found) else Sentence.PROOF_FRESH
            self.report.add(Finding(sentence, fresh, f"jti {jti} came twice"))
            self._used.add(jti)
        answer: asyncio.Future[Callable[[web.BaseRequest], Any]]
        answer = asyncio.get_running_loop().create_future()
        attempt = Attempt(at, found, proof, body, answer)
        self._unanswered.add(attempt)
        self.attempts.put_nowait(attempt)
        respond = await answer
        self._unanswered.discard(attempt)
        response: web.StreamResponse = await respond(request)
        return response

    def _judge(self, found: Request, body: bytes) -> Proof:
        """Judge a handshake, or a request of an enrolment; returns its proof."""
        if not is_enrolment(found):
            url = f"{self.url}{protocol.PATH}"
            self.report.add(*judge_request(found, url, self.token))
            proof, findings = judge_proof(found, url, self.token, time.time())
            self.report.add(*findings)
            return proof
        self.report.add(*judge_enrolment(found, body, self.secret))
        url = urljoin(self.url, found.target)
        proof, findings = judge_proof(found, url, self.secret, time.time())
        self.report.add(*(Finding(Sentence.ENROL_PROOF, one.ok, one.seen) for one in findings))
        return proof

    async def admit(
        self, attempt: Attempt, *, heartbeat: float = 30.0, subprotocol: str = protocol.SUBPROTOCOL
    ) -> Session:
        """Admit an attempt and welcome it."""
        session = Session(self.report, heartbeat, self._settled)
        self.sessions.append(session)
        attempt.upgrade(session, subprotocol)
        async with asyncio.timeout(5):
            await session.opened.wait()
        return session
