"""The hub: which sessions and handshakes an event ends, and which it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from gateway.core.audit_event import GENESIS, Actor, Event, LogEntry, Via
from gateway.core.ice import Status
from gateway.node.hub import ClosedSession, Hub

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@dataclass(eq=False)
class Session:
    """A session as the hub sees it; it takes itself out when it is closed, like the real one."""

    hub: Hub
    id: str = "s1"
    ice_name: str = "lab-1"
    generation: int = 1
    seq: int = 10
    closed: list[int] = field(default_factory=list)

    def close(self, code, reason=None):
        self.closed.append(code)
        self.hub.remove(self)


@pytest.fixture
def hub():
    return Hub()


def admit(hub, session_id="s1", **facts):
    session = Session(hub, session_id, **facts)
    hub.promote(hub.expect(session.ice_name, session.generation), session)
    return session


def entry(action, generation, *, seq=20, name="lab-1"):
    return LogEntry(
        seq, Event(NOW, Actor("root", Via.API, "test"), action, name, generation), GENESIS
    )


# --- sessions ----------------------------------------------------------------------------------


def test_a_session_is_held_under_exactly_its_name(hub):
    session = admit(hub)
    assert hub.get("lab-1") is session
    assert "lab-1" in hub
    assert "LAB-1" not in hub
    assert len(hub) == 1
    assert list(hub) == [session]


def test_a_newer_session_supersedes_the_older_and_stays(hub):
    older, newer = admit(hub, "s1"), admit(hub, "s2")
    assert older.closed == [4103]
    assert newer.closed == []
    assert hub.get("lab-1") is newer, "the older one has taken out its successor"


def test_a_session_is_removed_only_by_itself(hub):
    older, newer = admit(hub, "s1"), admit(hub, "s2")
    hub.remove(older)
    assert hub.get("lab-1") is newer
    hub.remove(newer)
    hub.remove(newer)
    assert "lab-1" not in hub


def test_sessions_may_end_while_they_are_counted_through(hub):
    for number in range(3):
        admit(hub, ice_name=f"lab-{number}")
    for session in hub:
        session.close(1012)
    assert len(hub) == 0


# --- what an event drops -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "code"), [("deregister", 4101), ("reregister", 4102), ("reprovision", 4102)]
)
def test_an_event_drops_the_sessions_of_lower_generations(hub, action, code):
    session, other = admit(hub), admit(hub, "s2", ice_name="lab-2")
    assert hub.apply(entry(action, 2)) == [ClosedSession("lab-1", "s1", code)]
    assert session.closed == [code]
    assert other.closed == []
    assert "lab-1" not in hub


@pytest.mark.parametrize(
    "late",
    [
        entry("deregister", 2),
        entry("reregister", 3),
        entry("register", 4),
        entry("provision", 1),
        entry("deregister", 4, name="LAB-1"),
        entry("set-role", 4),
        entry("set-role", None, name=None),
        entry("deregister", None),
    ],
    ids=lambda late: f"{late.event.action} {late.event.ice_name} {late.event.generation}",
)
def test_a_slow_tail_never_closes_an_ice_that_is_freshly_reregistered(hub, late):
    session, pending = admit(hub, generation=3), hub.expect("lab-1", 3)
    assert hub.apply(late) == []
    assert session.closed == []
    assert not hub.is_outdated(pending)


@pytest.mark.parametrize(
    ("admitted_at", "dropped"), [(19, [ClosedSession("lab-1", "s1", 4201)]), (20, []), (21, [])]
)
def test_disconnect_closes_only_sessions_admitted_before_it(hub, admitted_at, dropped):
    session, pending = admit(hub, seq=admitted_at), hub.expect("lab-1", 1)
    assert hub.apply(entry("disconnect", 1, seq=20)) == dropped
    assert bool(session.closed) is bool(dropped)
    assert not hub.is_outdated(pending), "a handshake that is still coming is let in"


# --- handshakes --------------------------------------------------------------------------------


def test_handshakes_of_one_name_are_a_set(hub):
    first, second = hub.expect("lab-1", 1), hub.expect("lab-1", 1)
    hub.forget(first)
    hub.forget(first)
    hub.apply(entry("deregister", 2))
    assert hub.is_outdated(second), "forgetting one has lost the other"
    hub.forget(second)
    assert hub._pending == {}, "nothing is kept of handshakes that are over"


def test_only_handshakes_of_lower_generations_are_overtaken(hub):
    old, new, other = hub.expect("lab-1", 1), hub.expect("lab-1", 2), hub.expect("lab-2", 1)
    assert hub.apply(entry("deregister", 2)) == []
    assert [hub.is_outdated(pending) for pending in (old, new, other)] == [True, False, False]


def test_a_handshake_alone_supersedes_nobody(hub):
    session = admit(hub)
    pending = hub.expect("lab-1", 1)
    assert session.closed == []
    assert not hub.is_outdated(pending), "an equal generation may take over"
    hub.promote(pending, Session(hub, "s2"))
    assert session.closed == [4103]
    assert hub._pending == {}


def test_a_handshake_is_overtaken_by_a_session_of_a_higher_generation(hub):
    pending = hub.expect("lab-1", 1)
    admit(hub, generation=2)
    assert hub.is_outdated(pending)


# --- after the log could not be followed -------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "code"),
    [
        ({"lab-1": (3, Status.REGISTERED)}, None),
        ({"lab-1": (4, Status.REGISTERED)}, 4102),
        ({"lab-1": (2, Status.REGISTERED)}, 4102),
        ({"lab-1": (4, Status.PROVISIONED)}, 4102),
        ({"lab-1": (3, Status.PROVISIONED)}, 4102),
        ({"lab-1": (4, Status.DEREGISTERED)}, 4101),
        ({"LAB-1": (3, Status.REGISTERED)}, 4102),
        ({}, 4102),
    ],
)
def test_what_the_table_does_not_bear_out_is_dropped(hub, standing, code):
    session, pending = admit(hub, generation=3), hub.expect("lab-2", 1)
    hub.reconcile([session], standing)
    assert session.closed == ([] if code is None else [code])
    assert hub.is_outdated(pending), (
        "what was read while events may have been missed counts no more"
    )
