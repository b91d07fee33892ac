from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.attention import REFUSED_FOR, Attention, attention
from gateway.core.ice import Ice, IceType

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
        (
            ICE,
            timedelta(days=7),
            {"refusedon": NOW + timedelta(days=6, hours=1), "owner_disabled": True},
            list(Attention),
        ),
    ],
)
def test_what_needs_attention(ice, after, facts, expected):
    given = {"refusedon": None, "owner_disabled": False} | facts
    assert attention(ice, now=NOW + after, **given) == expected
