"""What becomes of a machine's request, by the key, the user, the ICE and what the machine has asked for before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core import enrolment_request as requests
from gateway.core.accounts import User
from gateway.core.enrolment import Enrolment, EnrolmentKey, EnrolmentState, Wanted
from gateway.core.enrolment_request import Bearer, End, Grant, Ground, Queue, Waiting
from gateway.core.ice import Action, Ice, IceType
from gateway.core.problems import Problem
from gateway.core.roles import Role

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
KEY = EnrolmentKey(
    *("k", "lab", "hash", IceType.NORMAL, "alice", "lab-", 2, 0),
    approval=False,
    createdby="root",
    createdon=NOW,
    expireson=NOW + timedelta(days=7),
)
APPROVAL = replace(KEY, approval=True)
ALICE = User("alice", Role.MEMBER, None, NOW)
ICE = Ice.provision("lab-x", IceType.NORMAL, "alice", "h", key_id=None, now=NOW, expires=None)
REGISTERED = ICE.register("other", now=NOW)


def ground(key: EnrolmentKey = KEY, ice: Ice | None = None, user: User | None = ALICE) -> Ground:
    return Ground(key, needs_user=True, user=user, ice=ice, now=NOW)


def asked(on: Ground, state: EnrolmentState = EnrolmentState.WAITING, **changes) -> Enrolment:
    """The enrolment of a machine that asked when things stood like this."""
    bearer = Bearer(on.key.id, "hash", "t", "::1", "")
    made = requests.new_enrolment(on, bearer, Wanted("x", "linux"), "lab-x", "alice")
    return replace(made, state=state, **changes)


def outcome(decision) -> object:
    """A decision in short."""
    match decision:
        case Grant(_, action):
            return action
        case Problem():
            return decision.code
    return type(decision)


def first(on: Ground) -> object:
    return outcome(requests.decide_request(on, None, asked(on)))


USED_UP = {"uses": 2}
DISABLED = replace(ALICE, disabledon=NOW)


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (ground(), Action.PROVISION),
        (ground(APPROVAL), Queue),
        (ground(replace(KEY, **USED_UP)), "enrolment-key-invalid"),
        (ground(replace(APPROVAL, **USED_UP)), "enrolment-key-invalid"),
        (ground(user=None), "enrolment-refused"),
        (ground(user=DISABLED), "enrolment-refused"),
        (ground(user=DISABLED, ice=REGISTERED), "enrolment-refused"),
        (ground(APPROVAL, user=None), Queue),
        (ground(ice=REGISTERED), "ice-exists"),
        (ground(APPROVAL, ice=REGISTERED), Queue),
        (ground(APPROVAL, ice=ICE), "ice-exists"),
        (ground(APPROVAL, ice=replace(REGISTERED, provisionedto="bob")), "ice-exists"),
    ],
)
def test_a_first_request(on, expected):
    assert first(on) == expected


ENROLLED = asked(ground(), EnrolmentState.ENROLLED, generation=1)
REPLACES = asked(ground(APPROVAL, ice=REGISTERED), EnrolmentState.APPROVED)
APPROVED = asked(ground(APPROVAL), EnrolmentState.APPROVED)
REJECTED = asked(ground(APPROVAL), EnrolmentState.REJECTED)
WAITS = asked(ground(APPROVAL))


@pytest.mark.parametrize(
    ("on", "earlier", "request_gets", "poll_gets"),
    [
        (ground(ice=ICE), ENROLLED, Action.REPROVISION, Action.REPROVISION),
        (
            ground(replace(KEY, **USED_UP), ice=ICE),
            ENROLLED,
            *[Action.REPROVISION] * 2,
        ),
        (ground(ice=ICE, user=DISABLED), ENROLLED, "enrolment-refused", "enrolment-refused"),
        (ground(ice=REGISTERED), ENROLLED, "ice-exists", "enrolment-refused"),
        (ground(APPROVAL), WAITS, Waiting, Waiting),
        (ground(replace(APPROVAL, **USED_UP)), WAITS, *["enrolment-key-invalid"] * 2),
        (ground(APPROVAL), REJECTED, "enrolment-refused", "enrolment-refused"),
        (ground(APPROVAL), APPROVED, Action.PROVISION, Action.PROVISION),
        (ground(APPROVAL, user=DISABLED), APPROVED, *["enrolment-refused"] * 2),
        (ground(APPROVAL, ice=REGISTERED), APPROVED, End, End),
        (ground(APPROVAL, ice=REGISTERED), REPLACES, Action.REREGISTER, Action.REREGISTER),
        (ground(APPROVAL, ice=replace(REGISTERED, generation=2)), REPLACES, End, End),
        (
            ground(),
            replace(WAITS, state=EnrolmentState.ENDED),
            Action.PROVISION,
            "enrolment-refused",
        ),
    ],
)
def test_a_machine_that_has_asked_before(on, earlier, request_gets, poll_gets):
    assert outcome(requests.decide_request(on, earlier, asked(on))) == request_gets
    assert outcome(requests.decide_poll(on, earlier)) == poll_gets


def test_only_a_lost_answer_uses_no_key():
    uses = {action: Grant(WAITS, action).uses for action in Action}
    assert uses.pop(Action.REPROVISION) == 0
    assert set(uses.values()) == {1}


def test_a_new_enrolment_remembers_the_generation_that_it_replaces():
    assert (REPLACES.replaces, REPLACES.generation) == (True, 1)
    assert (APPROVED.replaces, APPROVED.generation) == (False, None)
    done = requests.enrolled(REPLACES, APPROVAL, replace(REGISTERED, generation=2))
    assert (done.state, done.generation, done.expireson) == (
        EnrolmentState.ENROLLED,
        2,
        APPROVAL.expireson,
    )


def test_a_key_is_refused_from_its_end_on():
    assert requests.key_fault(KEY, NOW) is None
    assert "expired" in requests.key_fault(KEY, KEY.expireson).detail
    assert "revoked" in requests.key_fault(replace(KEY, revokedon=NOW), NOW).detail
