"""Three real nodes while everything around them fails: a few rounds here, 100 by `make torture`.

Whether the torture finds out what is broken on purpose is tested by `make torture` as well.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import replace

import pytest

from tests.torture.nodes import Outcome, Plan, cluster, play, report, torture

SHORT = Plan(lease=2.0, long=3.0)
"""Short leases, and nobody stands still for long."""


@pytest.mark.long
async def test_nothing_that_was_taken_back_goes_on():
    seed = secrets.randbelow(10**6)
    outcome = await torture(2, seed, SHORT)
    assert not outcome.violations, report(outcome, seed)
    assert outcome.attempts >= 8, f"each node was to answer in each round: {report(outcome, seed)}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("mutation", "kind"),
    [("without-leases", "cut"), ("confirming-what-it-has-not-done", "nothing")],
)
async def test_what_goes_on_is_found_out(mutation, kind, monkeypatch):
    """Or else the torture would prove nothing."""
    outcome = Outcome()
    chance = random.Random(1)
    monkeypatch.setattr(chance, "random", lambda: 0.0)  # who fails holds the session
    monkeypatch.setattr(chance, "uniform", lambda _, high: 2 * high)
    async with cluster(replace(SHORT, faults=(kind,), mutation=mutation)) as made:
        for number in range(4):
            # On a busy machine a round may look too late, when the node knows again.
            if not outcome.violations:
                await play(made, number, chance, outcome)
    assert outcome.violations, f"a node {mutation} was to be found out"
