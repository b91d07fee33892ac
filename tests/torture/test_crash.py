"""kill -9 at every statement of each action: thirty rounds here, 300 by `make torture`."""

from __future__ import annotations

import secrets

import pytest

from tests.torture.crash import aims, report, torture
from tests.torture.victim import Aim


async def test_table_log_and_what_everybody_was_told_agree_after_a_crash():
    seed = secrets.randbelow(10**6)
    done = await torture(aims(30, seed), seed)
    assert not report(done, seed), report(done, seed)
    died = [one.died_at for one in done if one.died_at != "elsewhere"]
    assert len(died) >= 20, f"most were expected to die where they should, not {died}"
    assert {"COMMIT", "committed, told to nobody"} <= set(died)


@pytest.mark.parametrize(
    ("mutation", "aim", "said"),
    [
        ("answer-before-the-commit", Aim("provision", 5), "was acknowledged, the table has None"),
        ("event-in-another-transaction", Aim("provision", 4), "its events give None"),
        ("each-of-a-bulk-alone", Aim("bulk", 8), "half of"),
    ],
)
async def test_a_gateway_that_is_broken_on_purpose_is_found_out(mutation, aim, said):
    """Or else the torture would prove nothing."""
    [done] = await torture([aim], 1, mutation=mutation)
    assert any(said in fault for fault in done.faults), f"expected '{said}' in {done}"
