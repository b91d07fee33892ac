"""kill -9 at every statement of each action: thirty rounds here, 300 by `make torture`."""

from __future__ import annotations

import secrets

import pytest

from tests.torture.crash import report, torture
from tests.torture.victim import COMMITTED, Aim


@pytest.mark.long
async def test_table_log_and_what_everybody_was_told_agree_after_a_crash():
    seed = secrets.randbelow(10**6)
    done = await torture(30, seed)
    assert not report(done, seed), report(done, seed)
    died = [one.died_at for one in done if one.died_at != "elsewhere"]
    assert len(died) >= 20, f"most were expected to die where they should, not {died}"
    assert {"INSERT INTO ice_events", "COMMIT", COMMITTED} <= set(died)


@pytest.mark.parametrize(
    ("mutation", "aim", "said"),
    [
        (
            "answer-before-the-commit",
            Aim("provision", "COMMIT"),
            "was acknowledged, the table has None",
        ),
        pytest.param(
            "event-in-another-transaction",
            Aim("provision", "SELECT FROM ice_events"),
            "its events give None",
            marks=pytest.mark.long,
        ),
        pytest.param(
            *("each-of-a-bulk-alone", Aim("bulk", "UPDATE ice_tokens", 2), "half of"),
            marks=pytest.mark.long,
        ),
    ],
)
async def test_a_gateway_that_is_broken_on_purpose_is_found_out(mutation, aim, said):
    """Or else the torture would prove nothing."""
    [done] = await torture(1, 1, aim=aim, mutation=mutation)
    assert any(said in fault for fault in done.faults), f"expected '{said}' in {done}"
