"""kill -9 while machines enrol: twenty rounds on each engine here, 300 by `make torture`."""

from __future__ import annotations

import secrets

import pytest

from tests.torture.enrolment import ENGINES, MUTATIONS, Aim, report, torture


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
async def test_no_machine_is_stranded_and_no_use_lost_or_made_twice(engine):
    seed = secrets.randbelow(10**6)
    outcome = await torture(20, seed, engine)
    assert not outcome.faults, report(outcome, seed)
    assert outcome.ends["registered"] >= 20, f"most were to register: {outcome.ends}"
    assert outcome.lost >= 5, "answers were to be lost"


@pytest.mark.parametrize(
    ("mutation", "aim", "said"),
    [
        ("renew-nothing", Aim(1, "committed"), "which is provisioned"),
        # It is killed a moment after, which a busy machine may miss.
        pytest.param(
            *("count-in-another-transaction", Aim(1, "within", 0.15), "were made, there are"),
            marks=pytest.mark.long,
        ),
    ],
)
async def test_a_gateway_that_is_broken_on_purpose_is_found_out(mutation, aim, said):
    """Or else the torture would prove nothing."""
    assert mutation in MUTATIONS
    outcome = await torture(1, 1, mutation=mutation, aim=aim)
    assert any(said in fault for fault in outcome.faults), f"expected '{said}' in {outcome}"
