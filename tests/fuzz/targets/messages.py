"""Messages of an ICE: acted on, answered or refused as JSON-RPC 2.0 and the protocol say; the connection closes by 1008 alone.

An input holds messages with a zero byte between. The session's observer records its calls.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from client.protocol import MAX_VALUE, CloseCode, OperationKind, RpcRefusal
from gateway.core.ice import Ice, IceType
from gateway.node.session import MAX_RUNNING, Session
from tests.fuzz.simulation import Loop
from tests.fuzz.target import Target, require

_NOW = datetime(2026, 11, 29, tzinfo=UTC)
_ICE = Ice.provision("lab-1", IceType.NORMAL, "alice", "", key_id=None, now=_NOW, expires=None)
_TOO_DEEP = object()
"""Stands for JSON that Python's own parser does not read."""
_CODES = frozenset({-32601, *(one.number for one in RpcRefusal)})
_KINDS = frozenset(OperationKind)


@dataclass
class Noted:
    """What a session told its observer, and what it sent: an observer and a transport."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    closings: list[tuple[int, str | None]] = field(default_factory=list)
    heard: float = 0.0

    def may_act(self) -> bool:
        return True

    def greeted(self, session: Session, instance: str | None) -> None:
        self.told.append(("greeted", session.hello, session.running, session.accepts, instance))

    def accepts_changed(self, session: Session) -> None:
        self.told.append(("accepts", session.accepts))

    def answered(self, _: Session, operation_id: str, refused: bytes | None) -> None:
        self.told.append(("answered", operation_id, refused))

    def progressed(self, _: Session, progress: Any) -> None:
        self.told.append(("progressed", progress))

    def logged(self, _: Session, log: Any) -> None:
        self.told.append(("logged", log))

    def finished(self, session: Session, request: Any, finish: Any) -> None:
        self.told.append(("finished", request, finish))
        session.answer(request, *(finish.refusal or (None,)))

    def ended(self, _: Session, code: int) -> None:
        self.told.append(("ended", code))

    def send(self, text: bytes) -> None:
        self.sent.append(text)

    def ping(self) -> None:
        raise AssertionError("nobody asked for a ping")

    def close(self, code: int, reason: str | None = None) -> None:
        self.closings.append((code, reason))


def receive(texts: list[str]) -> tuple[list[tuple[str, Noted]], Noted]:
    """What a session does with each message, up to one for which it closes, and with its end."""
    loop, done = Loop(), []
    with loop.running():
        session = Session(
            _ICE, session_id="s", seq=1, address="192.0.2.1", since=_NOW, observer=Noted()
        )
        for text in texts:
            noted = Noted()
            session._observer = session.transport = noted
            session.received(text)
            done.append((text, noted))
            if noted.closings:
                break
        session._observer = end = Noted()
        session.closed(1000)
        loop.settle(lambda: False)
    return done, end


def check(data: bytes, product: Any) -> None:
    """See the module."""
    try:
        texts = [part.decode() for part in data.split(b"\0")]
    except UnicodeDecodeError:
        return  # closed by 1007 before
    done, end = product(texts)
    for text, noted in done:
        _judge(text, noted)
    for what in end.told:
        getattr(_Told, what[0])(*what[1:])
    require(end.told[-1] == ("ended", 1000), f"told of the end as {end.told}")


def _judge(text: str, noted: Noted) -> None:
    message = _parsed(text)
    for code, reason in noted.closings:
        require(code == CloseCode.POLICY_VIOLATION, f"closed by {code}")
        require(reason in (None, "too-complex"), f"closed for {reason}")
    require(len(noted.closings) <= 1, f"{noted.closings}")
    if message is _TOO_DEEP:
        return
    if noted.told or noted.sent:
        if message is None and '"operation.log"' in text:
            return  # half of a pair of surrogates is mended there
        require(isinstance(message, dict), f"acted on what is no object: {text!r}")
        require(message.get("jsonrpc") == "2.0", f"acted on {text!r}")
        require(not noted.closings, "acted, and closed")
    if noted.sent:
        _check_answers(message, noted)
    for what in noted.told:
        getattr(_Told, what[0])(*what[1:])
    if _is_call(message, text):
        require(not noted.closings, f"closed for the good call {text!r}")
        require(("id" in message) == bool(noted.sent), f"{len(noted.sent)} answers to {text!r}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
    except RecursionError:
        return _TOO_DEEP


def _is_call(message: Any, text: str) -> bool:
    """Whether `text`, which says `message`, is a call of JSON-RPC without a doubt, and simple."""
    if not isinstance(message, dict) or not set(message) <= {"jsonrpc", "method", "params", "id"}:
        return False
    params, request = message.get("params", {}), message.get("id", 1)
    return (
        message.get("jsonrpc") == "2.0"
        and isinstance(message.get("method"), str)
        and isinstance(params, dict)
        and not any(isinstance(value, dict | list) for value in params.values())
        and (isinstance(request, str) or (isinstance(request, int) and abs(request) < 2**53))
        and not isinstance(request, bool)
        # Long numbers, half pairs of surrogates (also in a member that comes again) and numbers that are none are refused.
        and not any(isinstance(value, int | float) for value in params.values())
        and "\\ud" not in text.lower()
    )


def _check_answers(message: Any, noted: Noted) -> None:
    require("id" in message and "method" in message, f"answered {message}, which asks for none")
    require(len(noted.sent) == 1, f"{len(noted.sent)} answers to {message}")
    for sent in noted.sent:
        answer = json.loads(sent)
        require(answer["jsonrpc"] == "2.0", f"{answer}")
        require(answer["id"] == message["id"], f"{answer} to {message}")
        error = answer.get("error")
        require(("result" in answer) == (error is None), f"{answer}")
        if error is not None:
            require(error["code"] in _CODES, f"{answer}")
            require(0 < len(error["message"]) <= 400, f"{len(error['message'])} characters")


class _Told:
    """The property of an observer's calls."""

    @staticmethod
    def greeted(hello: Any, running: Any, accepts: Any, instance: Any) -> None:
        for fact in (hello.version, hello.platform, hello.hostname, instance):
            require(fact is None or (fact.isprintable() and len(fact) <= 255), f"{fact!r}")
        require(len(running) <= MAX_RUNNING, f"{len(running)} operations")
        require(all(len(name) <= 128 for name in running), "a long id of an operation")
        _Told.accepts(accepts)

    @staticmethod
    def accepts(accepts: Any) -> None:
        require(accepts is None or accepts <= _KINDS, f"{accepts}")

    @staticmethod
    def answered(operation_id: Any, refused: Any) -> None:
        require(isinstance(operation_id, str), f"{operation_id!r}")
        if refused is not None:
            _error(refused)

    @staticmethod
    def progressed(progress: Any) -> None:
        require(isinstance(progress.id, str), f"{progress}")

    @staticmethod
    def logged(log: Any) -> None:
        require(isinstance(log.id, str) and log.text.encode() is not None, f"{log}")

    @staticmethod
    def finished(_: Any, finish: Any) -> None:
        require(finish.outcome in ("succeeded", "failed"), f"{finish}")
        require(finish.outcome == "succeeded" or finish.error, f"{finish} has no error")
        if finish.error:
            _error(finish.error)
        if finish.result:
            require(len(finish.result) <= MAX_VALUE, f"{len(finish.result)} bytes")
            json.loads(finish.result)

    @staticmethod
    def ended(code: int) -> None:
        require(code == 1000, f"{code}")


def _error(document: bytes) -> None:
    error = json.loads(document)
    require(set(error) <= {"code", "message", "data"}, f"{error}")
    require(0 < len(error["code"]) <= 128, f"{error}")
    require(isinstance(error["message"], str), f"{error}")


def _call(method: str, params: str, request: str = "") -> bytes:
    named = f',"id":{request}' if request else ""
    return f'{{"jsonrpc":"2.0","method":"{method}","params":{params}{named}}}'.encode()


TARGET = Target(
    receive,
    check,
    (
        _call(
            "ice.hello", '{"version":"1","running":["a"],"accepts":["debug"],"instance":"\\u0007i"}'
        ),
        _call("ice.accepts", '{"accepts":["execute","x"]}') + b"\0" + _call("ice.accepts", "{}"),
        _call("operation.progress", '{"id":"o","fraction":0.5,"message":"m","data":[1]}'),
        _call("operation.log", '{"id":"o","text":"half a pair \\ud83d"}'),
        _call("operation.finish", '{"id":"o","outcome":"succeeded","result":{"a":[1e3]}}', "7"),
        _call(
            "operation.finish",
            '{"id":"o","outcome":"failed","error":{"code":"c","message":"m"}}',
            '"a"',
        ),
        _call("operation.finish", '{"id":"o","outcome":"failed","error":"text"}', "1.5"),
        _call("operation.finish", '{"id":"o","outcome":"other"}', "null"),
        _call("operation.finish", '{"id":"o","outcome":"failed","error":1e999}', "2"),
        _call(
            "operation.finish",
            '{"id":"o","outcome":"failed","error":' + "[" * 110 + "]" * 110 + "}",
            "2",
        ),
        _call(
            "operation.finish",
            '{"id":"o","outcome":"failed","error":' + "[" * 1100 + "]" * 1100 + "}",
            "2",
        ),
        _call("no.such", "[]", "3"),
        b'{"jsonrpc":"2.0","id":"o","result":{"accepted":true}}',
        b'{"jsonrpc":"2.0","id":"o","result":{"accepted":false}}',
        b'{"jsonrpc":"2.0","id":"o","error":{"code":1,"message":"no","data":{"a":1}}}',
        b'{"jsonrpc":"2.0","id":1,"result":1}',
        b'[{"jsonrpc":"2.0"}]',
        b'{"jsonrpc":"1.0","method":"x"}',
        b'{"jsonrpc":"2.0","method":"x","params":' + b"[" * 1500,
    ),
    (
        *(b'"jsonrpc":"2.0"', b'"method":', b'"params":', b'"id":', b'"result":', b'"error":'),
        *(
            b"operation.finish",
            b"operation.log",
            b"ice.hello",
            b"\\ud83d\\ude00",
            b"\\udc00",
            b"1e308",
        ),
        *(b"[[[[[[[[[[[[[[[[[[[[", b"]]]]]]]]]]]]]]]]]]]]", b"null", b"true"),
    ),
    max_bytes=8192,
)
