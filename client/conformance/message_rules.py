"""Judges the messages of an ICE. Pure; source: docs/protocol.md, sections 4 and 5.

Tested in tests/client/test_client_conformance_rules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from client import protocol
from client.conformance.report import Finding
from client.conformance.sentences import Sentence

_NOTIFICATIONS: Final = frozenset(
    {"ice.hello", "ice.accepts", "operation.progress", "operation.log"}
)
_REQUESTS: Final = frozenset({"operation.finish"})
MAX_UNANSWERED: Final = 8
"""Finishes that may wait for their answers."""


class _Error(msgspec.Struct):
    """The `error` of a failed operation."""

    code: str
    message: str


def fault_of(text: str) -> str | None:
    """Why a text is not a message that an ICE may send; None if it is one."""
    if len(text.encode(errors="replace")) > protocol.MAX_MESSAGE:
        return f"a message has {len(text.encode(errors='replace'))} bytes"
    try:
        message = protocol.decode(text)
    except protocol.NotJsonRpc as error:
        return f"not a message: {error}: {text[:60]}"
    if message.method is msgspec.UNSET:
        return None
    if message.id is msgspec.UNSET:
        return None if message.method in _NOTIFICATIONS else f"a notification {message.method}"
    if message.method not in _REQUESTS:
        return f"a request {message.method}"
    return None if isinstance(message.id, str | int | float) else f"the id {message.id!r}"


def judge_hello(params: Any) -> Finding:
    """Judge the params of `ice.hello`."""
    try:
        hello = msgspec.convert(params, protocol.Hello)
    except msgspec.ValidationError as error:
        return Finding(Sentence.HELLO, ok=False, seen=f"the hello has another shape: {error}")
    kinds = set(hello.accepts or ()) - set(protocol.OperationKind)
    return Finding(Sentence.HELLO, not kinds, f"accepts has {sorted(kinds)}")


def judge_finish(params: Any, *, outcome: str, result: object = None) -> Finding:
    """Judge the params of a finish whose outcome is known."""
    sentence = Sentence.FINISH if outcome == "succeeded" else Sentence.FINISH_FAILED
    try:
        finish = msgspec.convert(params, protocol.Finish)
    except msgspec.ValidationError as error:
        return Finding(sentence, ok=False, seen=f"the finish has another shape: {error}")
    if finish.outcome != outcome:
        seen = f"outcome is {finish.outcome}, error {_cut(finish.error)}"
        return Finding(sentence, ok=False, seen=seen)
    if outcome == "succeeded":
        return Finding(sentence, finish.result == result, f"result is {_cut(finish.result)}")
    try:
        msgspec.convert(finish.error, _Error)
    except msgspec.ValidationError:
        return Finding(sentence, ok=False, seen=f"error is {_cut(finish.error)}")
    return Finding(sentence, ok=True)


def judge_progress(reports: Sequence[Any], message: str) -> Finding:
    """Judge the params of all `operation.progress` before a finish; one of them says `message`."""
    try:
        found = [msgspec.convert(one, protocol.Progress) for one in reports]
    except msgspec.ValidationError as error:
        return Finding(Sentence.PROGRESS, ok=False, seen=f"another shape: {error}")
    wild = [
        one.fraction for one in found if one.fraction is not None and not 0 <= one.fraction <= 1
    ]
    if wild:
        return Finding(Sentence.PROGRESS, ok=False, seen=f"fraction is {wild[0]}")
    told = [one.message for one in found]
    return Finding(Sentence.PROGRESS, message in told, f"it reported {_cut(told)}")


def judge_log(pieces: Sequence[Any], text: str) -> Finding:
    """Judge the params of all `operation.log` before a finish; together they are `text`."""
    try:
        found = [msgspec.convert(one, protocol.Log).text for one in pieces]
    except msgspec.ValidationError as error:
        return Finding(Sentence.LOG, ok=False, seen=f"another shape: {error}")
    largest = max((len(one.encode(errors="surrogatepass")) for one in found), default=0)
    if largest > protocol.MAX_LOG_BYTES:
        return Finding(Sentence.LOG, ok=False, seen=f"a piece has {largest} bytes")
    joined = "".join(found)
    seen = f"{len(found)} pieces with {len(joined)} characters in place of {len(text)}"
    return Finding(Sentence.LOG, joined == text, seen)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004 - a line of a terminal
