"""What becomes of the ICEs of a user who is disabled: they stay, are deregistered, or get another user.

The actions are those of `core.ice`, in the transaction that disables the user (see `services.accounts`).

Tested in tests/contract/test_leavers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec

from gateway.core.accounts import User
from gateway.core.audit_event import Actor
from gateway.core.ice import Action, Ice, Status
from gateway.core.problems import Problem, invalid
from gateway.core.revocation import Drop
from gateway.core.secret import Secret
from gateway.services import ice_changes
from gateway.services.bulk_actions import MAX_BULK, MAX_ISSUED
from gateway.services.ice_changes import Change, IceActions, issuer, new_owner
from gateway.store import ices
from gateway.store.engine import AppendedEvent, Transaction


class NextUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The user whose ICEs they are from now on."""

    to: str


LeaverIces = Literal["keep", "deregister"] | NextUser
"""What becomes of the ICEs of a user who is disabled."""
_FIELD: Final = "ices.to"
_DEREGISTERED: Final = {Status.REGISTERED: Action.DEREGISTER}
_MOVED: Final = {Status.PROVISIONED: Action.REPROVISION, Status.REGISTERED: Action.REREGISTER}
"""A deregistered ICE stays with the leaver: to move it would issue a token that nobody asked for."""


_Make = Callable[[Action, Ice], Change | Problem]


@dataclass(frozen=True, slots=True)
class LeaverIce:
    """An ICE of a leaver as it is afterwards, and the action that made it so, None if it stays."""

    ice: Ice
    action: Action | None = None
    change: Change | None = None

    @property
    def token(self) -> Secret | None:
        """The new token, which is shown once."""
        return None if self.change is None else self.change.token


def became(action: Action | None, status: Status) -> str:
    """What became of ICEs of a disabled user, for a person: `action` was done, `status` is now."""
    match action, status:
        case Action.DEREGISTER, _:
            return "deregistered now"
        case Action.REPROVISION | Action.REREGISTER, _:
            return "given to another user, with a new token"
        case _, Status.REGISTERED:
            return "active until deregistered"
        case _, Status.PROVISIONED:
            return "provisioned; the unused token has expired"
        case _:
            return "deregistered before"


@dataclass(frozen=True, slots=True)
class Left:
    """The ICEs that a leaver had, the sessions that ended, and the nodes that have not confirmed."""

    ices: list[LeaverIce]
    dropped: list[Drop]
    unconfirmed: list[str]


class Leavers(IceActions):
    """Plans and carries out what becomes of a leaver's ICEs, in a transaction of its caller."""

    async def plan(
        self,
        transaction: Transaction,
        user: User,
        wanted: LeaverIces | None,
        next_user: User | None,
        now: datetime,
    ) -> list[LeaverIce] | Problem:
        """All ICEs of the user, locked, each with its action; nothing is written yet.

        `next_user` is the locked row of the user whom `wanted` names, None if there is none. Without `wanted` the
        ICEs are not read.
        """
        if wanted is None:
            return []
        owner = None
        if isinstance(wanted, NextUser):
            found = new_owner(next_user, _FIELD)
            if isinstance(found, Problem):
                return found
            if found == user.name:
                return invalid(_FIELD, "this is the user who is disabled; name another one")
            owner = found
        actions, most = _actions(wanted)
        tagged = await ices.tagged_to(transaction, user.name)
        count = sum(ice.status in actions for ice in tagged)
        if count > most:
            return invalid("ices", _too_many(user, count, most))
        if not count:
            return [LeaverIce(ice) for ice in tagged]
        make = await self._maker(transaction, owner, now)
        if isinstance(make, Problem):
            return make
        planned = []
        for ice in tagged:
            action = actions.get(ice.status)
            change = None if action is None else make(action, ice)
            if isinstance(change, Problem):
                return change
            planned.append(LeaverIce(ice if change is None else change.new, action, change))
        return planned

    async def _maker(
        self, transaction: Transaction, owner: str | None, now: datetime
    ) -> _Make | Problem:
        """What makes the change of one ICE: a renewal for its next `owner`, without one its deregistration."""
        if owner is None:
            return lambda _, ice: ice_changes.deregister(ice, now)
        issues = await issuer(transaction, self.keys, now, self._ttl)
        if isinstance(issues, Problem):
            return issues
        return lambda action, ice: issues.renew(action, ice, owner)

    async def carry_out(
        self, transaction: Transaction, actor: Actor, planned: Sequence[LeaverIce], now: datetime
    ) -> list[AppendedEvent]:
        """Store the planned changes; returns the events that the nodes must act on."""
        logged: list[AppendedEvent] = []
        for action in (Action.REPROVISION, Action.REREGISTER, Action.DEREGISTER):
            changes = [
                each.change for each in planned if each.action is action and each.change is not None
            ]
            if changes:
                logged += await ice_changes.store(transaction, actor, action, changes, now)
        return logged

    async def confirm(self, planned: list[LeaverIce], logged: Sequence[AppendedEvent]) -> Left:
        """Wait until the nodes have acted on the committed events."""
        confirmed = await self._confirmer.confirm(logged)
        return Left(planned, confirmed.dropped, confirmed.unconfirmed)


def _actions(wanted: LeaverIces) -> tuple[dict[Status, Action], int]:
    """The action for each status, and how many ICEs it may change."""
    if isinstance(wanted, NextUser):
        return _MOVED, MAX_ISSUED
    return (_DEREGISTERED if wanted == "deregister" else {}), MAX_BULK


def _too_many(user: User, count: int, most: int) -> str:
    return (
        f"at most {most:,} at once, and {user.name} has {count:,}:"
        " deregister or move some of them before"
    )
