"""Operations while gateway, client and line die at random: thirty here, 300 by `make torture`."""

from __future__ import annotations

import secrets

import pytest

from tests.torture.operations import faults_of, report, torture


@pytest.mark.long
async def test_every_operation_comes_to_a_true_end():
    seed = secrets.randbelow(10**6)
    done = await torture(30, seed)
    assert not done.faults, report(done, seed, 30)
    assert sum(done.states.values()) == 30, f"thirty were requested, there are {done.states}"
    assert sum(done.kills.values()) >= 5, f"more was expected to die than {done.kills}"
    assert done.states["succeeded"] >= 5, f"some were expected to be done: {done.states}"
    assert done.occurrences["ran"], f"schedules were expected to run: {done.occurrences}"


def an_operation(state, code=None, result=None, **more):
    found = {"state": state, "error": code and {"code": code}, "result": result}
    return found | {"id": "a", "ice_name": "lab-1", "pool": None, "schedule": None} | more


@pytest.mark.parametrize(
    ("operation", "truth", "said"),
    [
        (an_operation("succeeded", result={"did": "a"}), ["begin a", "end a"], None),
        (an_operation("failed", "broken"), ["begin a", "end a"], None),
        (an_operation("failed", "interrupted"), ["begin a"], None),
        (an_operation("cancelled"), ["begin a"], None),
        (an_operation("expired"), [], None),
        (an_operation("lost"), [], None),
        (an_operation("succeeded", result={"did": "a"}), ["begin a"], "is succeeded"),
        (an_operation("succeeded", result={"did": "b"}), ["begin a", "end a"], "is succeeded"),
        (an_operation("succeeded", result={"did": "a"}), [*["begin a", "end a"] * 2], "ran 2"),
        (an_operation("failed", "broken"), ["begin a"], "is failed"),
        (an_operation("failed", "deadline"), ["begin a"], "is failed"),
        (an_operation("expired"), ["begin a"], "is expired"),
        (an_operation("lost"), ["begin a", "end a"], "is lost"),
        (an_operation("running"), ["begin a"], "is running"),
        (an_operation("cancelled", ice_name="lab-2"), ["begin a"], "ran on lab-1"),
        (an_operation("cancelled", pool="one"), ["begin a"], "ran on lab-1"),
        (an_operation("cancelled", pool="all"), ["begin a"], None),
        (None, [], "is gone"),
    ],
)
def test_what_does_not_agree_is_found_out(operation, truth, said):
    """Or else the torture would prove nothing."""
    found = {} if operation is None else {"a": operation}
    faults = faults_of(found, {"a": "operation 1"}, {"lab-1": truth, "lab-2": []})
    assert bool(faults) is bool(said), faults
    assert said is None or any(said in fault for fault in faults), faults
