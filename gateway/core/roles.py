"""Who may do what (docs/api.md and docs/protocol.md). Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from gateway.core.ice import Ice, IceType, fold


class Role(enum.StrEnum):
    """`admin` does everything, `auditor` reads everything, `member` sees the ICEs tagged to them."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    MEMBER = "member"


class Need(enum.Enum):
    """The permission that a route requires of its caller."""

    NOTHING = enum.auto()
    """The route is public."""
    CALLER = enum.auto()
    """Any caller; the response shows only what they may see."""
    USER = enum.auto()
    """Any caller except an API token that was made for one ICE or one pool."""
    SEE_ALL = enum.auto()
    READ_EVENTS = enum.auto()
    ACT = enum.auto()
    CHANGE_ACCOUNTS = enum.auto()
    """To act on users or API tokens; an API token needs `accounts` for that."""
    CHANGE_OWN_ACCOUNT = enum.auto()
    """Any user; an API token needs `accounts` for that."""
    OPERATE = enum.auto()
    """The caller may send operations to the ICE that the path names."""
    PAUSE = enum.auto()
    """The caller may pause and resume the ICE that the path names; an API token for one ICE may not."""


OF_ICE: Final = (Need.OPERATE, Need.PAUSE)
"""Needs that concern the ICE that the path names."""


@dataclass(frozen=True, slots=True)
class Grants:
    """What a role may do: see the ICEs of other users, read the audit log, take actions."""

    sees_all: bool
    reads_events: bool
    acts: bool


GRANTS: Final = {
    Role.ADMIN: Grants(sees_all=True, reads_events=True, acts=True),
    Role.AUDITOR: Grants(sees_all=True, reads_events=True, acts=False),
    Role.MEMBER: Grants(sees_all=False, reads_events=False, acts=False),
}
OPERATING: Final = (Role.ADMIN, Role.MEMBER)
"""The roles that may operate ICEs: admins all, members their own normal ones."""
_NOTHING: Final = Grants(sees_all=False, reads_events=False, acts=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user of the admin API or page.

    `ice` is set for an API token that was made for one ICE: it may only operate that ICE, whatever the role of its
    user. Likewise `pool` is the exact name of the pool that an API token was made for. `token` is the id of an API
    token, None for a login. `accounts` is False for a token that may not change users and API tokens: one that leaked
    must not outlive its revocation by another that it made.
    """

    user: str
    role: Role
    ice: str | None = None
    token: str | None = None
    accounts: bool = True
    pool: str | None = None

    @property
    def is_confined(self) -> bool:
        """Whether it is an API token that was made for one ICE or one pool."""
        return self.ice is not None or self.pool is not None

    @property
    def grants(self) -> Grants:
        """What the caller's role may do."""
        return _NOTHING if self.is_confined else GRANTS[self.role]

    def may(self, need: Need, ice: Ice | None) -> bool:
        """Whether the caller has the permission; `ice` is the ICE that the path names."""
        match need:
            case Need.NOTHING | Need.CALLER:
                return True
            case Need.USER:
                return not self.is_confined
            case Need.SEE_ALL:
                return self.grants.sees_all
            case Need.READ_EVENTS:
                return self.grants.reads_events
            case Need.ACT:
                return self.grants.acts
            case Need.CHANGE_ACCOUNTS:
                return self.grants.acts and self.accounts
            case Need.CHANGE_OWN_ACCOUNT:
                return not self.is_confined and self.accounts
            case Need.OPERATE:
                return ice is not None and self.operates(ice)
            case Need.PAUSE:
                return ice is not None and self.pauses(ice)

    def sees(self, ice: Ice) -> bool:
        """Whether the caller may see this ICE."""
        if self.pool is not None:
            return False
        if self.ice is not None:
            return fold(ice.ice_name) == fold(self.ice)
        return self.grants.sees_all or ice.provisionedto == self.user

    def operates(self, ice: Ice) -> bool:
        """Whether the caller may send operations to this ICE, and cancel them."""
        if self.ice is not None or self.role is Role.ADMIN:
            return self.sees(ice)
        return self.role is Role.MEMBER and ice.ice_type is IceType.NORMAL and self.sees(ice)

    def pauses(self, ice: Ice) -> bool:
        """Whether the caller may pause this ICE, and resume it."""
        return not self.is_confined and self.operates(ice)
