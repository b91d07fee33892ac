from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.attention import (
    DUPLICATE_FOR,
    NO_EXPECTATIONS,
    REFUSED_FOR,
    Attention,
    Expectations,
    attention,
)
from gateway.core.ice import Ice, IceType
from gateway.core.version_key import version_key

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
ICE = Ice.provision(
    *("lab-1", IceType.NORMAL, "alice", "hash"),
    key_id="k",
    now=NOW,
    expires=NOW + timedelta(days=7),
)
REGISTERED = ICE.register("thumbprint", now=NOW)
DEREGISTERED = REGISTERED.deregister("another", now=NOW)


@pytest.mark.parametrize(
    ("ice", "after", "facts", "expected"),
    [
        (ICE, timedelta(0), {}, []),
        (ICE, timedelta(days=7), {}, [Attention.TOKEN_EXPIRED]),
        (REGISTERED, timedelta(days=7), {}, []),
        (REGISTERED, timedelta(0), {"owner_disabled": True}, [Attention.OWNER_DISABLED]),
        (DEREGISTERED, timedelta(0), {"owner_disabled": True}, []),
        (REGISTERED, REFUSED_FOR, {"refusedon": NOW}, []),
        (REGISTERED, REFUSED_FOR - timedelta(seconds=1), {"refusedon": NOW}, [Attention.REFUSED]),
        (REGISTERED, DUPLICATE_FOR, {"duplicateon": NOW}, []),
        (REGISTERED, DUPLICATE_FOR / 2, {"duplicateon": NOW}, [Attention.DUPLICATE]),
        (REGISTERED, timedelta(0), {"outdated": True}, [Attention.OUTDATED]),
        (DEREGISTERED, timedelta(0), {"outdated": True}, []),
        (
            ICE,
            timedelta(days=7),
            {
                "refusedon": NOW + timedelta(days=6, hours=1),
                "duplicateon": NOW + timedelta(days=6, hours=1),
                "owner_disabled": True,
                "outdated": True,
            },
            list(Attention),
        ),
    ],
)
def test_what_needs_attention(ice, after, facts, expected):
    nothing = {"refusedon": None, "duplicateon": None, "owner_disabled": False, "outdated": False}
    given = nothing | facts
    assert attention(ice, now=NOW + after, **given) == expected


@pytest.mark.parametrize(
    ("version", "outdated"),
    [
        ("2.3", True),
        ("2.4rc1", True),
        ("2.4", False),
        ("2.10", False),
        ("new", False),
        (None, False),
    ],
)
def test_a_version_below_the_recommended_one_is_outdated(version, outdated):
    assert Expectations(version_key("2.4")).is_outdated(version) is outdated
    assert not NO_EXPECTATIONS.is_outdated(version)


def test_who_was_last_seen_before_the_limit_is_inactive():
    assert NO_EXPECTATIONS.inactive_since(NOW) is None
    limit = Expectations(inactive_after=timedelta(days=30))
    assert limit.inactive_since(NOW) == NOW - timedelta(days=30)
