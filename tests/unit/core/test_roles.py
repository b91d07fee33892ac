"""Who may do what: contract sections 7 and 9."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.core.ice import Ice, IceType
from gateway.core.roles import Caller, Grants, Need, Role

NOTHING = Grants(sees_all=False, reads_events=False, acts=False)


def ice(name: str, owner: str | None) -> Ice:
    kind = IceType.CI_CD if owner is None else IceType.NORMAL
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Ice.provision(name, kind, owner, "0" * 64, key_id="k", now=now, expires=None)


ICES = [ice("own", "alice"), ice("anothers", "bob"), ice("machine", None)]
ALL = {"own", "anothers", "machine"}


@pytest.mark.parametrize(
    ("caller", "grants", "sees", "operates"),
    [
        (
            Caller("alice", Role.ADMIN),
            Grants(sees_all=True, reads_events=True, acts=True),
            ALL,
            ALL,
        ),
        (
            Caller("alice", Role.AUDITOR),
            Grants(sees_all=True, reads_events=True, acts=False),
            ALL,
            set(),
        ),
        (Caller("alice", Role.MEMBER), NOTHING, {"own"}, {"own"}),
        # A token for one ICE, with case folded: whoever its user is, it can do this and nothing else.
        (Caller("alice", Role.ADMIN, ice="Machine"), NOTHING, {"machine"}, {"machine"}),
        (Caller("alice", Role.AUDITOR, ice="own"), NOTHING, {"own"}, {"own"}),
        (Caller("alice", Role.MEMBER, ice="anothers"), NOTHING, {"anothers"}, {"anothers"}),
        (Caller("alice", Role.ADMIN, pool="gpu"), NOTHING, set(), set()),
        (Caller("alice", Role.MEMBER, pool="gpu"), NOTHING, set(), set()),
    ],
)
def test_what_a_caller_may_do_and_whose_ices_they_see_and_operate(caller, grants, sees, operates):
    assert caller.grants == grants
    assert {each.ice_name for each in ICES if caller.sees(each)} == sees
    assert {each.ice_name for each in ICES if caller.operates(each)} == operates


EVERY = {Need.NOTHING, Need.CALLER}
USER = EVERY | {Need.USER, Need.CHANGE_OWN_ACCOUNT}


@pytest.mark.parametrize(
    ("caller", "needs"),
    [
        (Caller("root", Role.ADMIN), set(Need)),
        (
            Caller("root", Role.ADMIN, token="t1", accounts=False),
            set(Need) - {Need.CHANGE_ACCOUNTS, Need.CHANGE_OWN_ACCOUNT},
        ),
        (Caller("eve", Role.AUDITOR), USER | {Need.SEE_ALL, Need.READ_EVENTS}),
        (Caller("alice", Role.MEMBER), USER | {Need.OPERATE, Need.PAUSE}),
        (Caller("bob", Role.MEMBER), USER),
        (Caller("bob", Role.MEMBER, token="t1", accounts=False), EVERY | {Need.USER}),
        (Caller("root", Role.ADMIN, ice="own"), EVERY | {Need.OPERATE}),
        (Caller("root", Role.ADMIN, ice="machine"), EVERY),
        (Caller("root", Role.ADMIN, pool="gpu"), EVERY),
    ],
)
def test_what_a_caller_may_use(caller, needs):
    assert {need for need in Need if caller.may(need, ICES[0])} == needs
    assert {need for need in Need if caller.may(need, None)} == needs - {Need.OPERATE, Need.PAUSE}
