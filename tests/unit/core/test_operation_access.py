"""Who sees how much of an operation, and who may cancel it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from client.protocol import OperationKind
from gateway.core.ice import Ice, IceType
from gateway.core.operation import Operation
from gateway.core.operation_access import may_cancel, operates_pools, seen
from gateway.core.roles import Caller, Role
from gateway.core.times import utc_now

NOW = utc_now()
ICE = Ice.provision("lab-1", IceType.NORMAL, "alice", "h", key_id=None, now=NOW, expires=None)
OWN = replace(
    Operation.request(
        "one",
        "lab-1",
        OperationKind.EXECUTE,
        b'{"secret":1}',
        requested_by="root",
        now=NOW,
        deadline=NOW + timedelta(hours=1),
    ),
    result=b"2",
    progress=b"3",
    error=b"4",
)
POOLED = replace(OWN, pool="lab", token="t1")
WAITING = replace(POOLED, ice_name=None)
CALLERS = {
    "admin": Caller("root", Role.ADMIN),
    "auditor": Caller("ann", Role.AUDITOR),
    "owner": Caller("alice", Role.MEMBER),
    "other": Caller("bob", Role.MEMBER),
    "token of the ICE": Caller("root", Role.ADMIN, ice="lab-1", token="t2"),
    "token of the pool": Caller("root", Role.ADMIN, token="t1", pool="lab"),
    "another token of it": Caller("root", Role.ADMIN, token="t3", pool="lab"),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_what_is_seen_and_may_be_cancelled(caller):
    all_of_it = {
        "admin": (OWN, POOLED, WAITING),
        "auditor": (OWN, POOLED, WAITING),
        "owner": (OWN,),
        "token of the ICE": (OWN,),
        "token of the pool": (POOLED, WAITING),
    }.get(caller, ())
    outline = (POOLED,) if caller in ("owner", "token of the ICE") else ()
    cancels = () if caller == "auditor" else all_of_it
    for operation in (OWN, POOLED, WAITING):
        ice = None if operation is WAITING else ICE
        shown = seen(CALLERS[caller], operation, ice)
        if operation in all_of_it:
            assert shown == operation
        elif operation in outline:
            assert shown is not None
            assert (shown.kind, shown.state, shown.requested_by) == ("execute", "queued", "root")
            assert (shown.params, shown.progress, shown.result, shown.error) == (
                *(b"null", None, None, None),
            )
        else:
            assert shown is None
        assert may_cancel(CALLERS[caller], operation, ice) is (operation in cancels)


def test_what_a_former_user_requested_is_for_those_who_see_all():
    left = replace(OWN, former_user="carol")
    assert seen(CALLERS["owner"], left, ICE) is None
    assert seen(CALLERS["auditor"], left, ICE) == left


def test_admins_operate_pools():
    assert [name for name, caller in CALLERS.items() if operates_pools(caller)] == ["admin"]
