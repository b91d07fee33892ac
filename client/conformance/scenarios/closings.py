"""How a connection ends, and what an ICE does then.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import Final

from client.conformance.gateway import Session
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage, make_token
from client.protocol import CloseCode

_UNKNOWN: Final = 4150
_RETRY_AFTER: Final = 1.7
_RECONNECTS: Final = (
    (Sentence.CLOSE_RECONNECTS, (4201, 4202, 4203, 4201)),
    (Sentence.CLOSE_VIOLATION, (1002, 1003, 1007, 1008, 1009, 1002)),
    (Sentence.CLOSE_OTHER, (1000, 1001, 1011, 4999, 3000, None)),
)
"""Codes in pairs: each process gets two of them, so that waits stay short."""


async def _stops(stage: Stage, code: CloseCode) -> None:
    await stage.start()
    session = await stage.session(Sentence.CLOSE_STOPS)
    session.close(code, code.reason)
    await stage.stays_away(Sentence.CLOSE_STOPS, str(int(code)))
    if code is CloseCode.TOKEN_REPLACED:
        stage.write_token(make_token(time.time() + 60))
        await stage.restart()
        attempt = await stage.attempt(Sentence.NEW_TOKEN)
        used = attempt.request.all("Authorization") == [f"DPoP {stage.gateway.token}"]
        stage.check(Sentence.NEW_TOKEN, used, "it used the old one")


async def _waits(stage: Stage, code: int, sentence: Sentence) -> None:
    await stage.start()
    session = await stage.session(sentence)
    session.close(code, "superseded")
    await stage.stays_away(sentence, str(code), may_end=False)


async def _reconnects(stage: Stage, sentence: Sentence, codes: tuple[int | None, ...]) -> None:
    for pair in list(pairwise(codes))[::2]:
        await (stage.restart() if stage.started else stage.start())
        attempt = await stage.attempt(sentence)
        for code in pair:
            session = await stage.admit(attempt)
            session.close(code, "" if code is None else "why")
            closed = time.monotonic()
            attempt = await stage.comes_back(sentence, closed, what=str(code))
            stage.note_passed(sentence)
            await _check_answered(stage, session)


async def _check_answered(stage: Stage, session: Session) -> None:
    """A close frame is answered before, or soon after, the connection is given up."""
    await session.wait(lambda: session.close_code is not None, stage.waits.quiet)
    answered = session.close_code is not None
    stage.check(Sentence.CLOSE_ANSWERED, answered, "no close frame came back")


async def _lost(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.CLOSE_LOST)
    session.abort()
    await stage.comes_back(Sentence.CLOSE_LOST, time.monotonic())


async def _restart(stage: Stage) -> None:
    for reason, least, sentence in (
        (f'{{"retry_after": {_RETRY_AFTER}}}', _RETRY_AFTER, Sentence.RESTART),
        ('{"retry_after": 0.01}', 1.0, Sentence.RESTART_LEAST),
        ("soon", 1.0, Sentence.RESTART_LEAST),
    ):
        # In a new process no wait of the backoff is as long.
        await (stage.restart() if stage.started else stage.start())
        session = await stage.session(sentence)
        session.close(CloseCode.RESTART, reason)
        await stage.comes_back(sentence, time.monotonic(), least=least, most=least)


SCENARIOS: Final = (
    Scenario(
        "closed-4101",
        frozenset({Sentence.CLOSE_STOPS}),
        partial(_stops, code=CloseCode.DEREGISTERED),
    ),
    Scenario(
        "closed-4102",
        frozenset({Sentence.CLOSE_STOPS, Sentence.NEW_TOKEN}),
        partial(_stops, code=CloseCode.TOKEN_REPLACED),
    ),
    Scenario(
        "closed-4103",
        frozenset({Sentence.CLOSE_SUPERSEDED}),
        partial(_waits, code=4103, sentence=Sentence.CLOSE_SUPERSEDED),
    ),
    Scenario(
        "closed-unknown",
        frozenset({Sentence.CLOSE_UNKNOWN}),
        partial(_waits, code=_UNKNOWN, sentence=Sentence.CLOSE_UNKNOWN),
    ),
    *(
        Scenario(
            sentence,
            frozenset({sentence, Sentence.CLOSE_ANSWERED}),
            partial(_reconnects, sentence=sentence, codes=codes),
        )
        for sentence, codes in _RECONNECTS
    ),
    Scenario("lost", frozenset({Sentence.CLOSE_LOST}), _lost),
    Scenario("restart", frozenset({Sentence.RESTART, Sentence.RESTART_LEAST}), _restart),
)
