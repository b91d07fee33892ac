"""An ICE that gets its token by enrolment.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from client.conformance.enrolment_rules import is_enrolment
from client.conformance.gateway import Attempt
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage, make_token
from client.protocol import ENROLMENTS, EnrolmentCode, RefusalCode

_RETRY_AFTER: Final = 1.5
_FINAL: Final = (
    *(EnrolmentCode.KEY_INVALID, EnrolmentCode.INVALID, EnrolmentCode.ICE_EXISTS),
    *(EnrolmentCode.REFUSED, RefusalCode.PROOF_INVALID),
)


async def _enrols(stage: Stage) -> None:
    await stage.start()
    first = await _asked(stage, Sentence.ENROL_REQUEST)
    first.refuse_as(RefusalCode.USE_DPOP_NONCE, headers={"DPoP-Nonce": "nonce-1"})
    second = await stage.comes_back(Sentence.ENROL_PROOF, first.answered)
    found = second.proof.nonce
    seen = f"the proof has the nonce {found!r}, not nonce-1"
    stage.check(Sentence.ENROL_PROOF, found == "nonce-1", seen)
    second.hang_up()
    third = await stage.comes_back(Sentence.ENROL_KEY, second.answered)
    await stage.restart()
    fourth = await _asked(stage, Sentence.ENROL_KEY)
    attempt = await _granted(stage, fourth, status=201)
    keys = {one.proof.thumbprint for one in (first, second, third, fourth, attempt)}
    stage.check(Sentence.ENROL_KEY, len(keys) == 1, f"{len(keys)} keys were used")
    await stage.admit(attempt)
    await stage.restart()
    again = await stage.attempt(Sentence.ENROL_TOKEN)
    stage.check(Sentence.ENROL_TOKEN, not is_enrolment(again.request), "it enrolled again")


async def _asked(stage: Stage, sentence: Sentence) -> Attempt:
    """The next attempt, which is a request of an enrolment."""
    attempt = await stage.attempt(sentence)
    if not is_enrolment(attempt.request):
        stage.fail(sentence, f"it asked for {attempt.request.target}")
    return attempt


async def _granted(stage: Stage, asked: Attempt, *, status: int) -> Attempt:
    """Give it a token, with which it should connect; returns that attempt."""
    stage.gateway.token = make_token(time.time())
    asked.grant(stage.gateway.token, status=status)
    attempt = await stage.attempt(Sentence.ENROL_TOKEN, what="a token")
    used = attempt.request.all("Authorization") == [f"DPoP {stage.gateway.token}"]
    stage.check(Sentence.ENROL_TOKEN, used, f"it asked for {attempt.request.target} without it")
    return attempt


async def _waits(stage: Stage) -> None:
    await stage.start()
    asked = await _asked(stage, Sentence.ENROL_WAIT)
    asked.let_wait("e-1", _RETRY_AFTER)
    poll = await stage.comes_back(
        Sentence.ENROL_WAIT, asked.answered, least=_RETRY_AFTER, most=_RETRY_AFTER
    )
    _check_poll(stage, poll, Sentence.ENROL_WAIT)
    poll.let_wait("e-1", 60.0)
    await stage.stays_away(Sentence.ENROL_WAIT, "202", may_end=False)
    await stage.restart()
    poll = await stage.attempt(Sentence.ENROL_WAIT_KEPT)
    _check_poll(stage, poll, Sentence.ENROL_WAIT_KEPT)
    poll.refuse_as(EnrolmentCode.NOT_FOUND)
    anew = await stage.comes_back(Sentence.ENROL_ANEW, poll.answered)
    seen = f"it sent {anew.request.method}"
    stage.check(Sentence.ENROL_ANEW, anew.request.method == "POST", seen)
    await _granted(stage, anew, status=200)


def _check_poll(stage: Stage, poll: Attempt, sentence: Sentence) -> None:
    asked = f"{poll.request.method} {poll.request.target}"
    if asked != f"GET {ENROLMENTS}/e-1":
        stage.fail(sentence, f"it sent {asked}")
    stage.note_passed(sentence)


async def _retried(stage: Stage) -> None:
    await stage.start()
    asked = await _asked(stage, Sentence.ENROL_RETRIED)
    asked.answer(502, "<h1>Bad Gateway</h1>")
    asked = await stage.comes_back(Sentence.ENROL_RETRIED, asked.answered)
    asked.refuse_as(EnrolmentCode.QUEUE_FULL, headers={"Retry-After": "2"})
    await stage.comes_back(Sentence.ENROL_RETRIED, asked.answered, least=2.0)


async def _final(stage: Stage, code: EnrolmentCode | RefusalCode) -> None:
    await stage.start()
    asked = await _asked(stage, Sentence.ENROL_FINAL)
    if code is EnrolmentCode.REFUSED:  # an admin's decision
        asked.let_wait("e-1", 1.0)
        asked = await stage.comes_back(Sentence.ENROL_WAIT, asked.answered, least=1.0, most=1.0)
    asked.refuse_as(code)
    await stage.stays_away(Sentence.ENROL_FINAL, code)


SCENARIOS: Final = (
    Scenario(
        "enrols",
        frozenset(
            {
                *(Sentence.ENROL_REQUEST, Sentence.ENROL_SECRET, Sentence.ENROL_PROOF),
                *(Sentence.ENROL_KEY, Sentence.ENROL_TOKEN, Sentence.ENROL_SECRET_KEPT),
            }
        ),
        _enrols,
        enrols=True,
    ),
    Scenario(
        "enrolment-waits",
        frozenset({Sentence.ENROL_WAIT, Sentence.ENROL_WAIT_KEPT, Sentence.ENROL_ANEW}),
        _waits,
        enrols=True,
    ),
    Scenario("enrolment-retried", frozenset({Sentence.ENROL_RETRIED}), _retried, enrols=True),
    *(
        Scenario(
            f"enrolment-{code}",
            frozenset({Sentence.ENROL_FINAL}),
            partial(_final, code=code),
            enrols=True,
        )
        for code in _FINAL
    ),
)
