"""Operations over several connections and several lives of the ICE.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from client.conformance.gateway import Session
from client.conformance.message_rules import MAX_UNANSWERED
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage, is_finish, is_method
from client.protocol import RpcRefusal

_MANY: Final = MAX_UNANSWERED + 1
_LONG: Final = 60
_PAUSE: Final = 0.5
"""Seconds for what an ICE sends by itself after its hello."""
_ALREADY: Final = (RpcRefusal.ALREADY_FINISHED.number, RpcRefusal.ALREADY_FINISHED.value)


async def _finishes(stage: Stage) -> None:
    """A finish whose answers are lost, then given; and one that is refused."""
    await stage.start()
    session = await stage.session(Sentence.FINISH_REPEATED)
    name = stage.run(session, "echo", value="kept")
    await stage.accepted(session, name, Sentence.FINISH_REPEATED)
    first = (await stage.finish(session, name, Sentence.FINISH_REPEATED))["params"]
    session = await stage.reconnect(session, Sentence.FINISH_REPEATED)
    again = (await stage.finish(session, name, Sentence.FINISH_REPEATED))["params"]
    stage.check(Sentence.FINISH_REPEATED, again == first, f"another one: {again}")

    await stage.restart()
    session = await stage.session(Sentence.FINISH_DURABLE)
    message = await stage.finish(session, name, Sentence.FINISH_DURABLE)
    same = message["params"] == first
    stage.check(Sentence.FINISH_DURABLE, same, f"another one: {message['params']}")
    session.answer(message)
    refused = stage.run(session, "echo", value="refused")
    await stage.accepted(session, refused, Sentence.FINISH_REFUSED)
    session.answer(await stage.finish(session, refused, Sentence.FINISH_REFUSED), _ALREADY)
    await stage.alive(session, Sentence.FINISH_REFUSED, "a refused finish")

    session = await stage.reconnect(session, Sentence.FINISH_ANSWERED)
    await asyncio.sleep(_PAUSE)
    await stage.alive(session, Sentence.FINISH_ANSWERED, "a reconnection")
    repeated = [bool(session.all(is_finish(one))) for one in (name, refused)]
    stage.check(Sentence.FINISH_ANSWERED, not repeated[0], "it came again")
    stage.check(Sentence.FINISH_REFUSED, not repeated[1], "it came again")


async def _known_ids(stage: Stage) -> None:
    """`count` tells how often it was run in this process."""
    await stage.start()
    session = await stage.session(Sentence.ID_ONCE)
    name = session.new_id()
    finish = await _count(stage, session, name, Sentence.ID_ONCE)
    stage.check(Sentence.ID_ONCE, finish == 1, f"the first count is {finish!r}")
    await _send_again(stage, session, name, Sentence.ID_ONCE)
    finish = await _count(stage, session, session.new_id(), Sentence.ID_ONCE)
    stage.check(Sentence.ID_ONCE, finish == 2, f"two operations were run {finish!r} times")  # noqa: PLR2004

    await stage.restart()
    session = await stage.session(Sentence.ID_ONCE_RESTARTED)
    await _send_again(stage, session, name, Sentence.ID_ONCE_RESTARTED)
    finish = await _count(stage, session, session.new_id(), Sentence.ID_ONCE_RESTARTED)
    seen = f"after a restart, one new operation was run {finish!r} times"
    stage.check(Sentence.ID_ONCE_RESTARTED, finish == 1, seen)


async def _count(stage: Stage, session: Session, name: str, sentence: Sentence) -> object:
    stage.send_run(session, name, {"conformance": "count"})
    await stage.accepted(session, name, sentence)
    finish = await stage.finish(session, name, sentence)
    session.answer(finish)
    result: Any = finish["params"].get("result")
    return result.get("count") if isinstance(result, dict) else result


async def _send_again(stage: Stage, session: Session, name: str, sentence: Sentence) -> None:
    """Send an operation that has been finished."""
    answers = len([one for one in session.received if one.message.get("id") == name])
    finishes = len(session.all(is_finish(name)))
    stage.send_run(session, name, {"conformance": "count"})

    def answered() -> bool:
        calls = is_method("operation.finish")
        found = [one for one in session.all(lambda one: one.get("id") == name) if not calls(one)]
        return len(found) > answers - min(finishes, answers)

    if not await session.wait(answered, stage.waits.timeout):
        stage.fail(sentence, "it did not answer an id that it knows")
    latest = [one for one in session.all(lambda one: one.get("id") == name) if "method" not in one]
    accepts = latest[-1].get("result") == {"accepted": True}
    stage.check(sentence, accepts, f"it answered {latest[-1]}")


async def _running(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.FINISH_LATER)
    short = stage.run(session, "sleep", seconds=0.5)
    await stage.accepted(session, short, Sentence.FINISH_LATER)
    session = await stage.reconnect(session, Sentence.FINISH_LATER)
    finish = await stage.finish(session, short, Sentence.FINISH_LATER)
    session.answer(finish)
    outcome = finish["params"].get("outcome")
    stage.check(Sentence.FINISH_LATER, outcome == "succeeded", f"outcome {outcome}")

    name = stage.run(session, "sleep", seconds=_LONG)
    await stage.accepted(session, name, Sentence.RUNNING)
    session = await stage.reconnect(session, Sentence.RUNNING)
    stage.check(Sentence.RUNNING, name in _listed(session), f"running is {_listed(session)}")

    await stage.restart()
    session = await stage.session(Sentence.INTERRUPTED)
    if name in _listed(session):
        stage.note_passed(Sentence.INTERRUPTED)  # it says that it goes on
        return
    message = await stage.finish(session, name, Sentence.INTERRUPTED)
    outcome = message["params"].get("outcome")
    stage.check(Sentence.INTERRUPTED, outcome == "failed", f"outcome {outcome}")


def _listed(session: Session) -> list[str]:
    [hello, *_] = session.all(is_method("ice.hello"))
    found: list[str] = hello["params"].get("running", [])
    return found


async def _many(stage: Stage) -> None:
    """More unanswered finishes than a gateway takes at once."""
    await stage.start()
    session = await stage.session(Sentence.EIGHT_FINISHES)
    names = [stage.run(session, "echo", value=number) for number in range(_MANY)]
    for name in names:
        await stage.accepted(session, name, Sentence.EIGHT_FINISHES)
    calls = is_method("operation.finish")
    # An ICE may send the next one only after the answer to the one before.
    await session.wait(lambda: len(session.all(calls)) == _MANY, stage.waits.timeout / 4)
    await stage.restart()
    session = await stage.session(Sentence.EIGHT_FINISHES)
    if await session.find(calls, stage.waits.timeout) is None:
        stage.fail(Sentence.EIGHT_FINISHES, "no finish came")
    await asyncio.sleep(_PAUSE)
    sent = len(session.all(calls))
    seen = f"it sent {sent} without an answer"
    stage.check(Sentence.EIGHT_FINISHES, sent <= MAX_UNANSWERED, seen)
    answered = 0

    def another() -> bool:
        return len(session.all(calls)) > answered

    while answered < _MANY:
        if not await session.wait(another, stage.waits.timeout):
            stage.fail(Sentence.EIGHT_FINISHES, f"only {answered} of {_MANY} came")
        session.answer(session.all(calls)[answered])
        answered += 1
    stage.note_passed(Sentence.EIGHT_FINISHES)


SCENARIOS: Final = (
    Scenario(
        "finishes",
        frozenset(
            {
                *(Sentence.FINISH_REPEATED, Sentence.FINISH_DURABLE),
                *(Sentence.FINISH_ANSWERED, Sentence.FINISH_REFUSED),
            }
        ),
        _finishes,
    ),
    Scenario("known-ids", frozenset({Sentence.ID_ONCE, Sentence.ID_ONCE_RESTARTED}), _known_ids),
    Scenario(
        "running",
        frozenset({Sentence.FINISH_LATER, Sentence.RUNNING, Sentence.INTERRUPTED}),
        _running,
    ),
    Scenario("many", frozenset({Sentence.EIGHT_FINISHES}), _many),
)
