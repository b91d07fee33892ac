from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.audit_event import Via
from gateway.core.ice import Ice, IceType
from gateway.core.roles import Caller, Role
from gateway.core.schedule import Schedule
from gateway.core.schedule_access import may_schedule, sees

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
LAB = Ice.provision("lab-1", IceType.NORMAL, "alice", "h", key_id="k", now=NOW, expires=None)
BUILD = Ice.provision("build-7", IceType.CI_CD, None, "h", key_id="k", now=NOW, expires=None)
OF_LAB = Schedule(
    *("s1", "nightly", "lab-1", None, b"{}", "0 2 * * *", "UTC", "root", Via.API, NOW)
)
CALLERS = {
    "admin": Caller("root", Role.ADMIN),
    "auditor": Caller("eve", Role.AUDITOR),
    "owner": Caller("alice", Role.MEMBER),
    "stranger": Caller("bob", Role.MEMBER),
}


@pytest.mark.parametrize(
    ("who", "of_lab", "of_build", "of_pool"),
    [
        ("admin", True, True, True),
        ("auditor", False, False, False),
        ("owner", True, False, False),
        ("stranger", False, False, False),
    ],
)
def test_who_may_schedule(who, of_lab, of_build, of_pool):
    caller = CALLERS[who]
    found = (may_schedule(caller, LAB), may_schedule(caller, BUILD), may_schedule(caller, None))
    assert found == (of_lab, of_build, of_pool)


@pytest.mark.parametrize(
    ("who", "now", "before", "of_pool"),
    [
        ("admin", True, True, True),
        ("auditor", True, True, True),
        ("owner", True, False, False),
        ("stranger", False, False, False),
    ],
)
def test_who_sees_a_schedule(who, now, before, of_pool):
    """One of their ICE, one that a former user of it had, and one of a pool."""
    caller = CALLERS[who]
    former = replace(OF_LAB, former_user="bob")
    pool = replace(OF_LAB, ice_name=None, pool="builders")
    found = (sees(caller, OF_LAB, LAB), sees(caller, former, LAB), sees(caller, pool, None))
    assert found == (now, before, of_pool)
