"""What a person should look at, by what is stored of an ICE. Pure. Source: docs/api.md."""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Final

from gateway.core.ice import Ice, Status

REFUSED_FOR: Final = timedelta(hours=24)
"""How long a refusal needs attention."""


class Attention(enum.StrEnum):
    """Why an ICE needs attention."""

    REFUSED = "refused"
    """A genuine token of it was refused within `REFUSED_FOR`."""
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 - a reason
    OWNER_DISABLED = "owner-disabled"


def attention(
    ice: Ice, *, refusedon: datetime | None, owner_disabled: bool, now: datetime
) -> list[Attention]:
    """The reasons that hold at `now`, in the order of `Attention`."""
    holds = {
        Attention.REFUSED: refusedon is not None and refusedon > now - REFUSED_FOR,
        Attention.TOKEN_EXPIRED: ice.expired(now),
        Attention.OWNER_DISABLED: owner_disabled and ice.status is not Status.DEREGISTERED,
    }
    return [reason for reason, held in holds.items() if held]
