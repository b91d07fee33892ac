"""Refusals, other answers, and the backoff.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from client.conformance.backoff_rules import grows
from client.conformance.gateway import Attempt, Gateway
from client.conformance.report import Finding
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage, Unmet
from client.protocol import CloseCode, RefusalCode

_ROWS: Final = 3
"""Rows of waits of which one must grow."""
_ROW: Final = 4
_FINAL: Final = (
    *(RefusalCode.BAD_HANDSHAKE, RefusalCode.TOKEN_MISSING, RefusalCode.TOKEN_INVALID),
    *(RefusalCode.PROOF_INVALID, RefusalCode.DEREGISTERED, RefusalCode.TOKEN_REPLACED),
    *(RefusalCode.TOKEN_EXPIRED, RefusalCode.KEY_MISMATCH),
)
_SLOW: Final = (RefusalCode.TOKEN_INVALID, RefusalCode.PROOF_INVALID, RefusalCode.BAD_HANDSHAKE)


async def _asks_for_time(stage: Stage) -> None:
    """Twice, because a random wait that is short of the time may seem long enough once."""
    for _ in range(2):
        await (stage.restart() if stage.started else stage.start())
        # Each time asked for is the bound of the backoff then, so no wait of it is longer.
        first = await stage.attempt(Sentence.RETRY_AFTER_LEAST)
        first.refuse_as(RefusalCode.OVERLOADED, headers={"Retry-After": "0"})
        second = await stage.comes_back(Sentence.RETRY_AFTER_LEAST, first.answered, least=1.0)
        second.refuse_as(RefusalCode.DRAINING, headers={"Retry-After": "2"})
        await stage.comes_back(Sentence.RETRY_AFTER, second.answered, least=2.0)


async def _retried(stage: Stage) -> None:
    """Two codes for each process, so that waits stay short."""
    for pair in (
        (RefusalCode.STORE_UNAVAILABLE, RefusalCode.TOO_MANY_ATTEMPTS),
        (RefusalCode.OVERLOADED, RefusalCode.DRAINING),
    ):
        await (stage.restart() if stage.started else stage.start())
        attempt = await stage.attempt(Sentence.RETRIED)
        for code in pair:
            attempt.refuse_as(code)
            attempt = await stage.comes_back(Sentence.RETRIED, attempt.answered, what=code)
        stage.note_passed(Sentence.RETRIED)


async def _other_answers(stage: Stage) -> None:
    """A code of a newer gateway, one with another `retry` than usual, a proxy's page, no answer."""
    answers: tuple[tuple[Sentence, Callable[[Attempt], None]], ...] = (
        (Sentence.UNKNOWN_REFUSAL, lambda one: one.refuse("of-the-future", 403, retry=True)),
        (Sentence.RETRY_DECIDES, lambda one: one.refuse("proof-invalid", 401, retry=True)),
        (Sentence.NO_PROBLEM, lambda one: one.answer(502, "<h1>Bad Gateway</h1>")),
        (Sentence.NO_ANSWER, Attempt.hang_up),
    )
    for pair in (answers[:2], answers[2:]):
        await (stage.restart() if stage.started else stage.start())
        attempt = await stage.attempt(pair[0][0])
        for sentence, respond in pair:
            respond(attempt)
            attempt = await stage.comes_back(sentence, attempt.answered)
            stage.note_passed(sentence)


async def _redirect(stage: Stage) -> None:
    async with Gateway(stage.report, stage.gateway.token) as elsewhere:
        await stage.start()
        attempt = await stage.attempt(Sentence.REDIRECT)
        target = f"{elsewhere.url}/ice/v1"
        attempt.answer(307, "", headers={"Location": target})
        with contextlib.suppress(Unmet):
            # Where it does not, it may be elsewhere: its backoff is not judged.
            await stage.comes_back(Sentence.REDIRECT, attempt.answered, most=1.0, what="a redirect")
        stage.check(
            Sentence.REDIRECT, elsewhere.attempts.empty(), "token and proof were sent there"
        )


async def _final(
    stage: Stage, code: str, refuse: Callable[[Attempt], None], sentence: Sentence
) -> None:
    await stage.start()
    refuse(await stage.attempt(sentence))
    await stage.stays_away(sentence, code)


async def _admitted_before(stage: Stage, code: RefusalCode) -> None:
    await stage.start()
    session = await stage.session(Sentence.ADMITTED_BEFORE)
    session.close(CloseCode.RESTART, '{"retry_after": 0}')
    attempt = await stage.comes_back(Sentence.ADMITTED_BEFORE, time.monotonic(), most=1.0)
    attempt.refuse_as(code)
    if code in _SLOW:
        await stage.stays_away(Sentence.ADMITTED_BEFORE, code, may_end=False)
    else:
        await stage.stays_away(Sentence.FINAL_ADMITTED, code)


async def _row_of_refusals(stage: Stage) -> None:
    attempt = await stage.attempt(Sentence.BACKOFF_GROWS)
    for _ in range(_ROW):
        attempt.refuse_as(RefusalCode.DRAINING)
        attempt = await stage.comes_back(Sentence.BACKOFF_GROWS, attempt.answered)


async def _row_of_sessions(stage: Stage) -> None:
    attempt = await stage.attempt(Sentence.BACKOFF_SESSIONS)
    for _ in range(_ROW):
        session = await stage.admit(attempt)
        session.close(CloseCode.DISCONNECTED, "disconnected")
        attempt = await stage.comes_back(Sentence.BACKOFF_SESSIONS, time.monotonic())


async def _grows(stage: Stage, sentence: Sentence) -> None:
    play = _row_of_refusals if sentence is Sentence.BACKOFF_GROWS else _row_of_sessions
    for number in range(_ROWS):
        await (stage.restart() if number else stage.start())
        await play(stage)
        if grows(stage.row):
            break
    took = ", ".join(f"{wait.seconds:.1f}" for wait in stage.row)
    stage.report.add(Finding(sentence, grows(stage.row), f"waits of {took} s, in {_ROWS} rows"))


def _final_scenarios() -> list[Scenario]:
    def refuse(code: RefusalCode, attempt: Attempt) -> None:
        attempt.refuse_as(code)

    known = [
        Scenario(
            f"final-{code}",
            frozenset({Sentence.FINAL}),
            partial(_final, code=code, refuse=partial(refuse, code), sentence=Sentence.FINAL),
        )
        for code in _FINAL
    ]
    unknown = partial(
        _final,
        code="an unknown code",
        refuse=lambda one: one.refuse("of-the-future", 503, retry=False),
        sentence=Sentence.UNKNOWN_REFUSAL,
    )
    return [*known, Scenario("final-unknown", frozenset({Sentence.UNKNOWN_REFUSAL}), unknown)]


SCENARIOS: Final = (
    Scenario(
        "backoff-grows",
        frozenset({Sentence.BACKOFF_GROWS, Sentence.BACKOFF_BOUND}),
        partial(_grows, sentence=Sentence.BACKOFF_GROWS),
    ),
    Scenario(
        "backoff-sessions",
        frozenset({Sentence.BACKOFF_SESSIONS}),
        partial(_grows, sentence=Sentence.BACKOFF_SESSIONS),
    ),
    Scenario(
        "asks-for-time",
        frozenset({Sentence.RETRY_AFTER, Sentence.RETRY_AFTER_LEAST}),
        _asks_for_time,
    ),
    Scenario("retried", frozenset({Sentence.RETRIED, Sentence.BACKOFF_BOUND}), _retried),
    Scenario(
        "other-answers",
        frozenset(
            {
                *(Sentence.UNKNOWN_REFUSAL, Sentence.RETRY_DECIDES, Sentence.NO_PROBLEM),
                Sentence.NO_ANSWER,
            }
        ),
        _other_answers,
    ),
    Scenario("redirect", frozenset({Sentence.REDIRECT}), _redirect),
    *_final_scenarios(),
    *(
        Scenario(
            f"admitted-{code}",
            frozenset({Sentence.ADMITTED_BEFORE}),
            partial(_admitted_before, code=code),
        )
        for code in _SLOW
    ),
    Scenario(
        "admitted-deregistered",
        frozenset({Sentence.FINAL_ADMITTED}),
        partial(_admitted_before, code=RefusalCode.DEREGISTERED),
    ),
)
