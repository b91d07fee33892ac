"""The model against which a bad network is checked: what it has to find, and what it must let pass."""

from __future__ import annotations

import pytest

from tests.torture.callers import UNKNOWN, Taken
from tests.torture.sightings import Cut, Sightings, Visit

LEASE = 2.0


def taken(*unconfirmed, action="deregister"):
    """An ICE that was taken out: requested at 10, answered at 11."""
    return Taken("lab", action, 1, 10.0, 11.0, list(unconfirmed), None, LEASE)


def visit(began, node="gw-1", **seen):
    return Visit("lab", node, seen.pop("generation", 1), began, began + 0.5, **seen)


def found(*visits, actions=(), cuts=(), asked=(), alive=("gw-1",), at=11.2):
    return Sightings(
        LEASE, list(visits), list(actions), list(asked), list(cuts), set(alive), at
    ).violations()


@pytest.mark.parametrize(
    ("seen", "unconfirmed", "fault"),
    [
        (visit(11.1), (), "admitted the old token"),
        (visit(12.9), ("gw-1",), None),
        (visit(13.1), ("gw-1",), "admitted the old token"),
        (visit(13.1), (UNKNOWN,), "admitted the old token"),
        (visit(12.9), (UNKNOWN,), None),
        (visit(11.1), ("gw-2",), "admitted the old token"),
        (visit(11.1, generation=2), (), None),
        (visit(1.0, acted=10.9), (), None),
        (visit(1.0, acted=11.1), (), "acted on the old session"),
        (visit(1.0, acted=12.9), ("gw-1",), None),
        (visit(1.0, acted=13.1), ("gw-1",), "acted on the old session"),
    ],
)
def test_what_was_taken_out_goes_on_no_longer_than_its_node_may(seen, unconfirmed, fault):
    violations = found(seen, actions=[taken(*unconfirmed)])
    if fault is None:
        assert violations == []
    else:
        assert fault in violations[0], f"expected {fault!r}, got {violations}"


@pytest.mark.parametrize(
    ("older", "later", "both"),
    [(3.6, 9.0, True), (3.4, 9.0, False), (9.0, 3.4, False)],
)
def test_two_sessions_are_used_together_for_a_lease_at_most(older, later, both):
    """The later one was welcomed at 1.5."""
    seen = visit(0.0, acted=older), visit(1.0, "gw-2", acted=later)
    assert any("two sessions" in one for one in found(*seen)) is both


def test_sessions_that_were_begun_at_once_have_no_order():
    assert found(visit(0.0, acted=9.0), visit(0.4, "gw-2", acted=9.0)) == []


def test_only_what_was_later_supersedes():
    older = visit(0.0, closed=4103, ended=5.0)
    assert found(older, visit(1.0)) == []
    assert found(older, Visit("lab", "gw-2", 1, 1.0)) == [], "its welcome was lost"
    newest = visit(1.0, closed=4103, ended=5.0)
    assert "nothing can have superseded" in found(visit(0.0), newest)[0]
    assert "nothing can have superseded" in found(newest, visit(6.0))[0]


@pytest.mark.parametrize(
    "seen",
    [
        visit(1.0, closed=4101, ended=5.0),
        Visit("lab", "gw-1", 1, 1.0, refused="deregistered", ended=5.0),
    ],
)
def test_what_an_ice_is_told_has_a_cause(seen):
    assert found(seen, asked=[("lab", "deregister", 4.0)]) == []
    assert "no admin" in found(seen, asked=[("lab", "deregister", 6.0)])[0]
    assert "no admin" in found(seen, asked=[("lab", "reregister", 4.0)])[0]


def test_a_node_that_cannot_have_confirmed_is_named():
    cut = Cut("gw-1", 9.0, 12.0)
    assert "is not named" in found(actions=[taken("gw-2")], cuts=[cut])[0]
    assert found(actions=[taken("gw-1")], cuts=[cut]) == []
    assert found(actions=[taken(UNKNOWN)], cuts=[cut]) == []
    assert found(actions=[taken()], cuts=[cut], alive=()) == [], "it counted as gone"
    for partly in (Cut("gw-1", 10.5, 12.0), Cut("gw-1", 9.0, 10.5)):
        assert found(actions=[taken()], cuts=[partly]) == [], "it had time to confirm"
