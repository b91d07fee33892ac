"""Who may do what: contract section 7."""

from __future__ import annotations

import pytest

from gateway.roles import Caller, Grants, Role

OWN, ANOTHERS, NOBODYS = "alice", "bob", None


@pytest.mark.parametrize(
    ("role", "grants", "sees"),
    [
        (
            Role.ADMIN,
            Grants(sees_all=True, reads_events=True, acts=True),
            {OWN, ANOTHERS, NOBODYS},
        ),
        (
            Role.AUDITOR,
            Grants(sees_all=True, reads_events=True, acts=False),
            {OWN, ANOTHERS, NOBODYS},
        ),
        (Role.MEMBER, Grants(sees_all=False, reads_events=False, acts=False), {OWN}),
    ],
)
def test_what_a_role_may_do_and_whose_ices_it_sees(role, grants, sees):
    alice = Caller("alice", role)
    assert alice.grants == grants
    assert {user for user in (OWN, ANOTHERS, NOBODYS) if alice.sees(user)} == sees
