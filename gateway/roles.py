"""Who may do what (contract sections 7 and 9). Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from gateway.ice import Ice, IceType, fold


class Role(enum.StrEnum):
    """`admin` does everything, `auditor` reads everything, `member` sees the ICEs tagged to them."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class Grants:
    """What a role may do: see ICEs that are not one's own, read the audit log, take actions."""

    sees_all: bool
    reads_events: bool
    acts: bool


GRANTS: Final = {
    Role.ADMIN: Grants(sees_all=True, reads_events=True, acts=True),
    Role.AUDITOR: Grants(sees_all=True, reads_events=True, acts=False),
    Role.MEMBER: Grants(sees_all=False, reads_events=False, acts=False),
}
_NOTHING: Final = Grants(sees_all=False, reads_events=False, acts=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user of the admin API or page.

    `ice` is set for an API token that was made for one ICE: it operates that one, whoever its user
    is, and may do nothing else.
    """

    user: str
    role: Role
    ice: str | None = None

    @property
    def grants(self) -> Grants:
        """What the caller's role may do."""
        return GRANTS[self.role] if self.ice is None else _NOTHING

    def sees(self, ice: Ice) -> bool:
        """Whether an ICE exists for this caller."""
        if self.ice is not None:
            return fold(ice.ice_name) == fold(self.ice)
        return self.grants.sees_all or ice.provisionedto == self.user

    def operates(self, ice: Ice) -> bool:
        """Whether the caller may send operations to this ICE, and cancel them."""
        if self.ice is not None or self.role is Role.ADMIN:
            return self.sees(ice)
        return self.role is Role.MEMBER and ice.ice_type is IceType.NORMAL and self.sees(ice)
