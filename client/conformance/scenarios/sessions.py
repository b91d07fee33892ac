"""What a connected ICE does with frames, messages and silence.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any, Final

from aiohttp import WSMsgType

from client.conformance.gateway import Attempt, Session
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage
from client.protocol import MAX_MESSAGE, METHOD_NOT_FOUND

_HEARTBEAT: Final = 0.8
_PINGS: Final = 8


async def _messages(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.PONG)
    await _ping(stage, session)
    session.notify("x.future", {"deep": [{}]})
    await stage.alive(session, Sentence.UNKNOWN_NOTIFICATION, "an unknown notification")
    stage.note_passed(Sentence.UNKNOWN_NOTIFICATION)
    session.text(json.dumps({"jsonrpc": "2.0", "id": "nobody-asked", "result": {}}))
    await stage.alive(session, Sentence.UNEXPECTED_RESPONSE, "a response that it did not expect")
    await _unknown_request(stage, session, Sentence.UNKNOWN_REQUEST)
    await _fragments(stage, session)
    name = session.new_id()
    text = _padded(name, MAX_MESSAGE)
    session.text(text)
    _check_unknown(stage, await stage.response(session, name, Sentence.LARGEST), Sentence.LARGEST)


async def _ping(stage: Stage, session: Session) -> None:
    data = secrets.token_bytes(125)
    session.frame(WSMsgType.PING, data)
    answered = await session.wait(lambda: bool(session.pongs), stage.waits.timeout)
    seen = "it answered with other content" if answered else "it did not answer"
    stage.check(Sentence.PONG, session.pongs[:1] == [data], seen)


async def _unknown_request(stage: Stage, session: Session, sentence: Sentence) -> None:
    name = session.new_id()
    session.request("x.future", {}, name)
    _check_unknown(stage, await stage.response(session, name, sentence), sentence)


def _check_unknown(stage: Stage, answer: dict[str, Any], sentence: Sentence) -> None:
    number = answer.get("error", {}).get("code")
    stage.check(sentence, number == METHOD_NOT_FOUND, f"it answered {json.dumps(answer)[:200]}")


def _padded(name: str, size: int) -> str:
    """A request of an unknown method, with so many bytes."""
    head = json.dumps({"jsonrpc": "2.0", "method": "x.future", "id": name, "params": {"pad": ""}})
    return head[:-3] + "x" * (size - len(head)) + head[-3:]


async def _fragments(stage: Stage, session: Session) -> None:
    name = session.new_id()
    # The cuts are within a character.
    data = json.dumps(
        {"jsonrpc": "2.0", "method": "x.future", "id": name, "params": {"pad": "ä€😀"}},
        ensure_ascii=False,
    ).encode()
    cut = data.index("€".encode()) + 1
    pongs = len(session.pongs)
    session.frame(WSMsgType.TEXT, data[:3], fin=False)
    session.frame(WSMsgType.CONTINUATION, data[3:cut], fin=False)
    session.frame(WSMsgType.PING, b"between")
    session.frame(WSMsgType.CONTINUATION, b"", fin=False)
    session.frame(WSMsgType.CONTINUATION, data[cut:])
    answer = await stage.response(session, name, Sentence.FRAGMENTS)
    _check_unknown(stage, answer, Sentence.FRAGMENTS)
    between = session.pongs[pongs:] == [b"between"]
    stage.check(Sentence.FRAGMENTS, between, "it did not answer the ping between")


async def _heartbeat(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.PINGS_COUNT, heartbeat=_HEARTBEAT)
    last = time.monotonic()
    for _ in range(_PINGS):
        session.frame(WSMsgType.PING, b"")
        last = time.monotonic()
        await asyncio.sleep(_HEARTBEAT / 2)
    seen = f"it left after {_PINGS / 4:g} times two heartbeats of pings"
    stage.check(Sentence.PINGS_COUNT, session.ended is None, seen)
    attempt = await _left(stage, session, last, "pings")
    session = await stage.admit(attempt, heartbeat=_HEARTBEAT)
    await _left(stage, session, time.monotonic(), "the welcome")


async def _left(stage: Stage, session: Session, since: float, what: str) -> Attempt:
    """Wait until it leaves after a silence since `what`; returns its next attempt."""
    within = 2 * _HEARTBEAT + stage.waits.timeout
    attempt = await stage.attempt(Sentence.SILENCE, within, what=f"a silence since {what}")
    # The wait before the attempt is random; what counts is when it gave the connection up.
    silent = min(session.ended or attempt.at, attempt.at) - since
    # The last frame was on its way for a moment.
    early = silent < 2 * _HEARTBEAT - _HEARTBEAT / 8
    stage.check(Sentence.SILENCE, not early, f"it left {silent:.1f} s after {what}")
    return attempt


SCENARIOS: Final = (
    Scenario(
        "messages",
        frozenset(
            {
                *(Sentence.MESSAGES, Sentence.UNKNOWN_NOTIFICATION, Sentence.UNKNOWN_REQUEST),
                *(Sentence.UNEXPECTED_RESPONSE, Sentence.FRAGMENTS, Sentence.LARGEST),
                *(Sentence.HELLO, Sentence.PONG),
            }
        ),
        _messages,
    ),
    Scenario("heartbeat", frozenset({Sentence.PINGS_COUNT, Sentence.SILENCE}), _heartbeat),
)
