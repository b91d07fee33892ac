"""Who may do what (contract section 7). Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


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


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user of the admin API or page."""

    user: str
    role: Role

    @property
    def grants(self) -> Grants:
        """What the caller's role may do."""
        return GRANTS[self.role]

    def sees(self, provisionedto: str | None) -> bool:
        """Whether an ICE tagged to `provisionedto` exists for this caller."""
        return self.grants.sees_all or provisionedto == self.user
