"""Operations on one connection: their beginning, their end, cancellation, and the bounds of JSON.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import json
from typing import Any, Final

from client.conformance.message_rules import judge_finish, judge_log, judge_progress
from client.conformance.report import Finding
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage, is_finish, is_method, is_response
from client.protocol import MAX_DEPTH, MAX_DIGITS, MAX_VALUE, METHOD_NOT_FOUND, RpcRefusal

_SLEEP: Final = 1.0
_AT_ONCE: Final = 0.3
"""Seconds by which an acceptance comes before the finish of an operation that takes `_SLEEP`."""
_LONG: Final = 60
_GRACE: Final = 5.0
"""Seconds for which a gateway waits after a cancel."""
_ALREADY: Final = (RpcRefusal.ALREADY_FINISHED.number, RpcRefusal.ALREADY_FINISHED.value)


async def _echo(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.FINISH)
    value = {"text": "ä€😀\n", "list": [1, 2.5, True, None], "": {}}
    finish = await stage.done(session, Sentence.FINISH, "echo", value=value)
    stage.report.add(judge_finish(finish, outcome="succeeded", result=value))
    finish = await stage.done(session, Sentence.FINISH_FAILED, "fail", code="broken", message="Why")
    stage.report.add(judge_finish(finish, outcome="failed"))
    told = finish.get("error")
    right = isinstance(told, dict) and (told.get("code"), told.get("message")) == ("broken", "Why")
    stage.check(Sentence.FINISH_FAILED, right, f"error is {told}")

    name = session.new_id()
    stage.send_run(session, name, {"conformance": "count"}, of_the_future=[{}])
    await stage.accepted(session, name, Sentence.UNKNOWN_MEMBER)
    session.answer(await stage.finish(session, name, Sentence.UNKNOWN_MEMBER))
    stage.note_passed(Sentence.UNKNOWN_MEMBER)

    name = session.new_id()
    stage.send_run(session, name, {}, kind="of-the-future")
    answer = await stage.response(session, name, Sentence.UNKNOWN_KIND)
    number = answer.get("error", {}).get("code")
    seen = f"it answered {json.dumps(answer)[:200]}"
    stage.check(Sentence.UNKNOWN_KIND, number == METHOD_NOT_FOUND, seen)

    name = stage.run(session, "sleep", seconds=_SLEEP)
    await stage.accepted(session, name, Sentence.ACCEPTED)
    session.answer(await stage.finish(session, name, Sentence.ACCEPTED))
    when = [
        next(one.at for one in session.received if match(one.message))
        for match in (is_response(name), is_finish(name))
    ]
    seen = f"it accepted {when[1] - when[0]:.2f} s before the finish of work that took {_SLEEP:g} s"
    stage.check(Sentence.ACCEPTED, when[1] - when[0] >= _AT_ONCE, seen)
    await stage.alive(session, Sentence.FINISH, "the operations")
    for finished in map(is_finish, _ids(session.all(is_method("operation.finish")))):
        count = len(session.all(finished))
        stage.check(Sentence.FINISH, count == 1, f"{count} finishes of one operation")


def _ids(finishes: list[dict[str, Any]]) -> set[str]:
    return {finish["params"]["id"] for finish in finishes}


async def _values(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.LARGEST_VALUE)
    value = "x" * (MAX_VALUE - 2)
    finish = await stage.done(session, Sentence.LARGEST_VALUE, "echo", value=value)
    same = finish.get("result") == value
    seen = f"outcome {finish.get('outcome')}, error {finish.get('error')}"
    stage.check(Sentence.LARGEST_VALUE, same, seen)
    finish = await stage.done(session, Sentence.TOO_LARGE, "big", bytes=MAX_VALUE + 1)
    size = len(json.dumps(finish.get("result")))
    seen = f"outcome {finish.get('outcome')} with a result of {size} bytes"
    stage.check(Sentence.TOO_LARGE, finish.get("outcome") == "failed", seen)

    for text in (_nested(MAX_DEPTH - 1), "7" * MAX_DIGITS, f"0.{'7' * (MAX_DIGITS - 1)}"):
        name = session.new_id()
        session.text(_run(name, text))
        await stage.accepted(session, name, Sentence.DEEPEST)
        finish = await stage.finish(session, name, Sentence.DEEPEST)
        session.answer(finish)
        outcome = finish["params"].get("outcome")
        seen = f"outcome {outcome} for {text[:60]}"
        stage.check(Sentence.DEEPEST, outcome == "succeeded", seen)
    for text in (_nested(MAX_DEPTH), _nested(5000), "7" * (MAX_DIGITS + 1), "1e999"):
        name = session.new_id()
        session.text(_run(name, text))
        answer = await stage.response(session, name, Sentence.TOO_COMPLEX)
        seen = f"it answered {json.dumps(answer)[:100]} to {text[:60]}"
        stage.check(Sentence.TOO_COMPLEX, "error" in answer, seen)
    await stage.alive(session, Sentence.TOO_COMPLEX, "JSON beyond the bounds")


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def _run(name: str, value: str) -> str:
    """An `operation.run` whose value is this JSON, a level within its `params`."""
    params = f'{{"conformance":"count","value":{value}}}'
    return (
        f'{{"jsonrpc":"2.0","method":"operation.run","id":"{name}","params":'
        f'{{"id":"{name}","kind":"execute","params":{params},"deadline":"2100-01-01T00:00:00.000000Z"}}}}'
    )


async def _reports(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.PROGRESS)
    text = "0123456789 ä€😀\n" * 9000
    finish = await stage.done(session, Sentence.PROGRESS, "report", message="half", log=text)
    name = finish["id"]
    await stage.alive(session, Sentence.LOG, "its reports")
    order = [one.message for one in session.received]
    end = next(at for at, message in enumerate(order) if is_finish(name)(message))
    for method, sentence in (
        ("operation.progress", Sentence.PROGRESS),
        ("operation.log", Sentence.LOG),
    ):
        late = [one for one in order[end:] if one.get("method") == method]
        stage.check(sentence, not late, f"{method} after the finish")
    before = [one for one in order[:end] if one.get("params", {}).get("id") == name]
    progress, log = (
        [one["params"] for one in before if one["method"] == method]
        for method in ("operation.progress", "operation.log")
    )
    stage.report.add(judge_progress(progress, "half"), judge_log(log, text))


async def _cancels(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.CANCEL)
    session.notify("operation.cancel", {"id": "none-of-mine", "reason": "requested"})
    await stage.alive(session, Sentence.CANCEL_UNKNOWN, "a cancel of an unknown operation")
    reasons: tuple[tuple[Sentence, dict[str, str]], ...] = (
        (Sentence.CANCEL, {"reason": "requested"}),
        (Sentence.CANCEL_DEADLINE, {"reason": "deadline"}),
        (Sentence.CANCEL_OTHER, {"reason": "of-the-future"}),
        (Sentence.CANCEL_OTHER, {}),
    )
    for sentence, why in reasons:
        name = stage.run(session, "sleep", seconds=_LONG)
        await stage.accepted(session, name, sentence)
        session.notify("operation.cancel", {"id": name, **why})
        message = await stage.finish(session, name, sentence, _GRACE + stage.waits.timeout / 2)
        session.answer(message, _ALREADY)
        finish = message["params"]
        judged = judge_finish(finish, outcome="failed")
        stage.report.add(Finding(sentence, judged.ok, judged.seen))
        if sentence is Sentence.CANCEL_DEADLINE and judged.ok:
            code = finish["error"]["code"]
            stage.check(sentence, code in ("deadline", "cancelled"), f"its code is {code}")
        # The finish was refused because it is finished; a second cancel comes too late.
        session.notify("operation.cancel", {"id": name, **why})
        await stage.alive(session, Sentence.CANCEL_UNKNOWN, "a cancel of a finished operation")
        again = len(session.all(is_finish(name)))
        stage.check(Sentence.CANCEL_UNKNOWN, again == 1, f"{again} finishes")


SCENARIOS: Final = (
    Scenario(
        "echo",
        frozenset(
            {
                *(Sentence.FINISH, Sentence.FINISH_FAILED, Sentence.UNKNOWN_KIND),
                *(Sentence.ACCEPTED, Sentence.UNKNOWN_MEMBER),
            }
        ),
        _echo,
    ),
    Scenario(
        "values",
        frozenset(
            {
                *(Sentence.LARGEST_VALUE, Sentence.TOO_LARGE),
                *(Sentence.DEEPEST, Sentence.TOO_COMPLEX),
            }
        ),
        _values,
    ),
    Scenario("reports", frozenset({Sentence.PROGRESS, Sentence.LOG}), _reports),
    Scenario(
        "cancels",
        frozenset(
            {
                *(Sentence.CANCEL, Sentence.CANCEL_DEADLINE, Sentence.CANCEL_OTHER),
                Sentence.CANCEL_UNKNOWN,
            }
        ),
        _cancels,
    ),
)
