"""Runs the scenarios, several at a time.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from client.conformance.backoff_rules import judge_jitter
from client.conformance.program import NotStarted
from client.conformance.report import Verdict
from client.conformance.scenarios import SCENARIOS
from client.conformance.sentences import Sentence
from client.conformance.stage import Kit, Scenario, Unmet

_ROWS: Final = frozenset({"retried", "other-answers", "close-other", "close-violation"})
"""Scenarios with enough first waits of several processes."""


def scenarios_for(chosen: frozenset[Sentence]) -> list[Scenario]:
    """The scenarios that try these sentences; for what all of them try, any will do."""
    found = [one for one in SCENARIOS if one.sentences & chosen]
    if Sentence.BACKOFF_JITTER in chosen:
        found += [one for one in SCENARIOS if one.name in _ROWS and one not in found]
    return found or [one for one in SCENARIOS if one.name == "messages"]


async def run(kit: Kit, jobs: int, tell: Callable[[str], None]) -> None:
    """Run the scenarios for the sentences that the report asks for. Raises `NotStarted`.

    Args:
        kit: what they share; its report gets the verdicts.
        jobs: how many run at the same time.
        tell: called with a line for each scenario that has ended.
    """
    slots = asyncio.Semaphore(jobs)
    chosen = scenarios_for(kit.report.chosen)
    ended = 0

    async def play(scenario: Scenario) -> None:
        nonlocal ended
        async with slots, kit.staged(scenario) as stage:
            try:
                await scenario.play(stage)
            except Unmet as unmet:
                for sentence in scenario.sentences - {unmet.sentence}:
                    why = f"{unmet.sentence} has failed before: {unmet}"
                    stage.report.skip(sentence, why)
        ended += 1
        tell(f"{ended} of {len(chosen)}: {scenario.name}")

    try:
        async with asyncio.TaskGroup() as group:
            for scenario in chosen:
                group.create_task(play(scenario))
    except* NotStarted as problems:
        raise problems.exceptions[0] from None
    jitter = judge_jitter(kit.first_waits)
    if jitter is not None:
        kit.report.add(jitter)
    else:
        kit.report.skip(Sentence.BACKOFF_JITTER, "it came back too few times")


def status_of(kit: Kit) -> int:
    """The exit status: 0 if every sentence that was asked for is kept, else 1."""
    report = kit.report
    kept = all(report.verdict(one) is Verdict.PASSED for one in report.chosen)
    return 0 if kept else 1
