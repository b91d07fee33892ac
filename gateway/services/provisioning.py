"""The admin's actions on one ICE; each applies a rule of `core.ice` with one compare-and-set of the store.

A refusal is a `Problem` of the catalogue. Nodes learn of a change through the event log, and each action
waits in its `Confirmer` until they have acted on it.

Tested in tests/gateway/admin/api/test_ices.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from gateway.core.audit_event import Actor, AuditAction
from gateway.core.ice import Action, Ice, IceType
from gateway.core.problems import Problem, invalid, problem
from gateway.core.revocation import Confirmation, Drop
from gateway.core.secret import Secret
from gateway.services import ice_changes
from gateway.services.ice_changes import (
    Change,
    Expected,
    IceActions,
    event_of,
    issuer,
    new_owner,
    validate_new,
)
from gateway.store import accounts, events, ices
from gateway.store.engine import AppendedEvent, Transaction
from gateway.store.ice_listing import IceListing, Listed


@dataclass(frozen=True, slots=True)
class Done:
    """The ICE after an action, the sessions that it ended, and the nodes that have not confirmed."""

    ice: Ice
    dropped: list[Drop]
    unconfirmed: list[str]

    def after(self, before: Listed) -> Listed:
        """The ICE as it is listed after the action, without a connection that the action dropped."""
        connection = before.connection
        if connection is not None and connection.session in {drop.session for drop in self.dropped}:
            connection = None
        # A new user is not disabled; for the others it was read with the ICE.
        disabled = before.owner_disabled and self.ice.provisionedto == before.ice.provisionedto
        # See `store.ices.replace`.
        same = self.ice.generation == before.ice.generation
        return replace(
            before,
            ice=self.ice,
            connection=connection,
            owner_disabled=disabled,
            duplicateon=before.duplicateon if same else None,
        )


@dataclass(frozen=True, slots=True)
class Issued(Done):
    """Likewise, with a new token, which is shown once."""

    token: Secret


_Action = Callable[..., Awaitable[Issued | Done | Problem]]
_Make = Callable[[Transaction, Ice], Awaitable[Change | Problem]]


class Provisioning(IceActions):
    """Provisions, renews, deregisters and disconnects ICEs. Every method raises `StoreUnavailable`."""

    @property
    def actions(self) -> Mapping[str, _Action]:
        """What an admin can do to one ICE, by the name that page, API and commands give it."""
        return {
            "reprovision": self.reprovision,
            "reregister": self.reregister,
            "deregister": self.deregister,
            "disconnect": self.disconnect,
        }

    async def provision(
        self, actor: Actor, ice_name: str, ice_type: IceType, provisionedto: str | None
    ) -> Issued | Problem:
        """Add an ICE with generation 1 and seal its token."""
        fault = validate_new(ice_name, ice_type, provisionedto)
        if fault is not None:
            return fault
        now = self._clock()

        async def unit(transaction: Transaction) -> Issued | Problem:
            owner = None
            if provisionedto is not None:
                found = new_owner(await accounts.find_user(transaction, provisionedto))
                if isinstance(found, Problem):
                    return found
                owner = found
            issues = await issuer(transaction, self.keys, now, self._ttl)
            if isinstance(issues, Problem):
                return issues
            ice, token = issues.provision(ice_name, ice_type, owner)
            event = event_of(actor, Action.PROVISION, now, None, ice)
            logged = await ices.insert(transaction, ice, event)
            return problem("ice-exists") if logged is None else Issued(ice, [], [], token)

        return await self._engine.write(unit)

    async def reprovision(
        self, actor: Actor, ice: Ice, expected: Expected = None, user: str | None = None
    ) -> Issued | Problem:
        """Replace a token that was lost before the ICE registered; `ice` is what the caller saw.

        With a `user` the ICE belongs to them from now on.
        """
        return await self._renew(actor, Action.REPROVISION, ice, expected, user)

    async def reregister(
        self, actor: Actor, ice: Ice, expected: Expected = None, user: str | None = None
    ) -> Issued | Problem:
        """Issue a new token to an ICE that lost its key or moved, so that it registers again."""
        return await self._renew(actor, Action.REREGISTER, ice, expected, user)

    async def _renew(
        self, actor: Actor, action: Action, found: Ice, expected: Expected, user: str | None
    ) -> Issued | Problem:
        if user is not None and found.ice_type is IceType.CI_CD:
            return invalid("provisionedto", "a ci-cd ICE has no user")
        now = self._clock()

        async def make(transaction: Transaction, ice: Ice) -> Change | Problem:
            owner = await self._next_owner(transaction, ice, user)
            if isinstance(owner, Problem):
                return owner
            issues = await issuer(transaction, self.keys, now, self._ttl)
            return issues if isinstance(issues, Problem) else issues.renew(action, ice, owner)

        if user is not None:
            # Before the rules of the status: a bad field is refused first.
            owner = new_owner(await accounts.Accounts(self._engine).user(user))
            if isinstance(owner, Problem):
                return owner
        changed = await self._change(actor, action, found, expected, make=make, now=now)
        if isinstance(changed, Problem):
            return changed
        change, confirmed = changed
        assert change.token is not None  # noqa: S101 - these actions issue one
        return Issued(change.new, confirmed.dropped, confirmed.unconfirmed, change.token)

    async def _next_owner(
        self, transaction: Transaction, ice: Ice, user: str | None
    ) -> str | Problem | None:
        """The user from now on, whose row is locked: nobody disables them meanwhile."""
        if user is not None:
            return new_owner(await accounts.find_user(transaction, user))
        if ice.provisionedto is not None:
            owner = await accounts.find_user(transaction, ice.provisionedto)
            if owner is not None and owner.disabledon is not None:
                return problem("owner-disabled")
        return None

    async def deregister(self, actor: Actor, ice: Ice, expected: Expected = None) -> Done | Problem:
        """Deactivate an ICE that is no longer wanted."""
        now = self._clock()

        async def make(_: Transaction, old: Ice) -> Change | Problem:
            return ice_changes.deregister(old, now)

        changed = await self._change(actor, Action.DEREGISTER, ice, expected, make=make, now=now)
        if isinstance(changed, Problem):
            return changed
        change, confirmed = changed
        return Done(change.new, confirmed.dropped, confirmed.unconfirmed)

    async def _change(
        self,
        actor: Actor,
        action: Action,
        found: Ice,
        expected: Expected,
        *,
        make: _Make,
        now: datetime,
    ) -> tuple[Change, Confirmation] | Problem:
        """Apply a rule and compare and swap; of two concurrent actions one gets `stale`."""

        async def swap(
            transaction: Transaction, old: Ice
        ) -> tuple[Change, list[AppendedEvent]] | Problem | None:
            change = await make(transaction, old)
            if isinstance(change, Problem):
                return change
            try:
                return change, await ice_changes.store(transaction, actor, action, [change], now)
            except ices.Stale:
                # Nothing is written yet, so the other units of the group still commit.
                return None

        refused = _refused(found, action, expected)
        if refused is not None:
            return refused
        done = await self._engine.write(lambda transaction: swap(transaction, found))
        if isinstance(done, Problem):
            return done
        if done is not None:
            change, logged = done
            return change, await self._confirmer.confirm(logged)
        listed = await IceListing(self._engine).find(found.ice_name)
        if listed is None:
            return problem("not-registered")
        # If the rules allow the action now, the ICE is still not as the caller saw it.
        return _refused(listed.ice, action, expected) or problem("stale")

    async def disconnect(self, actor: Actor, ice: Ice, expected: Expected = None) -> Done | Problem:
        """Close the sessions that were admitted before this; the ICE keeps its status and token."""
        now = self._clock()

        async def unit(transaction: Transaction) -> tuple[Ice, list[AppendedEvent]] | Problem:
            [old] = (await ices.find_many(transaction, [ice.ice_name])).values()
            if expected is not None and old.generation not in expected:
                return problem("stale")
            event = event_of(actor, AuditAction.DISCONNECT, now, old, old)
            return old, events.append(transaction, [event])

        done = await self._engine.write(unit)
        if isinstance(done, Problem):
            return done
        old, logged = done
        confirmed = await self._confirmer.confirm(logged)
        return Done(old, confirmed.dropped, confirmed.unconfirmed)


def _refused(ice: Ice, action: Action, expected: Expected) -> Problem | None:
    if expected is not None and ice.generation not in expected:
        return problem("stale")
    refused = ice.refuses(action)
    return None if refused is None else ice_changes.wrong_status(refused)
