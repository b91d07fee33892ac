"""What a person should look at, by what is stored of an ICE. Pure. Source: docs/api.md."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.core.ice import Ice, Status
from gateway.core.version_key import version_key

REFUSED_FOR: Final = timedelta(hours=24)
"""How long a refusal needs attention."""
DUPLICATE_FOR: Final = timedelta(hours=24)
"""How long two running copies need attention after they were last found."""


class Attention(enum.StrEnum):
    """Why an ICE needs attention."""

    REFUSED = "refused"
    """A genuine token of it was refused within `REFUSED_FOR`."""
    DUPLICATE = "duplicate"
    """Two copies of it ran within `DUPLICATE_FOR`."""
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 - a reason
    OWNER_DISABLED = "owner-disabled"
    OUTDATED = "outdated"
    """Its version is below the recommended one."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What an operator expects of all ICEs.

    `recommended` is a key of `core.version_key`; ICEs of lower versions are outdated. An ICE that was not seen
    for longer than `inactive_after` is inactive. None: nothing is expected.
    """

    recommended: str | None = None
    inactive_after: timedelta | None = None

    def is_outdated(self, version: str | None) -> bool:
        """Whether a version is below the recommended one; one that cannot be read never is."""
        key = version_key(version)
        return self.recommended is not None and key is not None and key < self.recommended

    def inactive_since(self, now: datetime) -> datetime | None:
        """An ICE that was last seen before this time is inactive at `now`; None if no ICE ever is."""
        return None if self.inactive_after is None else now - self.inactive_after


NO_EXPECTATIONS: Final = Expectations()


def attention(
    ice: Ice,
    *,
    refusedon: datetime | None,
    duplicateon: datetime | None,
    owner_disabled: bool,
    outdated: bool,
    now: datetime,
) -> list[Attention]:
    """The reasons that hold at `now`, in the order of `Attention`."""
    wanted = ice.status is not Status.DEREGISTERED
    holds = {
        Attention.REFUSED: refusedon is not None and refusedon > now - REFUSED_FOR,
        Attention.DUPLICATE: duplicateon is not None and duplicateon > now - DUPLICATE_FOR,
        Attention.TOKEN_EXPIRED: ice.expired(now),
        Attention.OWNER_DISABLED: owner_disabled and wanted,
        Attention.OUTDATED: outdated and wanted,
    }
    return [reason for reason, held in holds.items() if held]
