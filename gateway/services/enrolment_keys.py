"""Admins make enrolment keys, and decide on the machines that ask with one.

Tested in tests/gateway/admin/api/test_enrolments.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from gateway.core import enrolment as rules
from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.enrolment import (
    ANY_USER,
    Enrolment,
    EnrolmentKey,
    EnrolmentState,
)
from gateway.core.ice import IceType
from gateway.core.labels import Labels
from gateway.core.problems import ALREADY_EXISTS, Problem, invalid, problem
from gateway.core.secret import Secret
from gateway.core.times import to_text
from gateway.services import ice_changes
from gateway.services.ice_changes import IceActions
from gateway.services.labelling import description_fault
from gateway.store import accounts, enrolments, events, ices
from gateway.store.engine import Transaction
from gateway.store.key_file import KeyFileUnusable
from gateway.store.tables import needs_keys

NO_KEY: Final = problem("not-found", "There is no such enrolment key.")
NO_ENROLMENT: Final = problem("not-found", "There is no such enrolment.")


@dataclass(frozen=True, slots=True)
class NewKey:
    """An enrolment key to make."""

    name: str
    ice_type: IceType
    name_prefix: str
    expires: datetime
    provisionedto: str | None = None
    max_uses: int = 1
    approval: bool = False
    labels: Labels | None = None


@dataclass(frozen=True, slots=True)
class KeyMade:
    """An enrolment key and its secret, which is shown once."""

    key: EnrolmentKey
    secret: Secret


_Decide = Callable[[Transaction, EnrolmentKey, Enrolment, datetime], Awaitable[Enrolment | Problem]]


class EnrolmentKeyService(IceActions):
    """Keys and decisions. Every method raises `StoreUnavailable`."""

    async def create_key(self, actor: Actor, new: NewKey) -> KeyMade | Problem:
        """Make a key."""
        now = self._clock()
        fault = check_key(new, now)
        if fault is not None:
            return fault

        async def unit(transaction: Transaction) -> KeyMade | Problem:
            user = new.provisionedto
            if user not in (None, ANY_USER):
                found = ice_changes.new_owner(await accounts.find_user(transaction, user))
                if isinstance(found, Problem):
                    return found
                user = found
            try:
                ring = self.keys.for_sealing(may_create=not await needs_keys(transaction.fetch))
            except KeyFileUnusable as error:
                return problem("keys-unavailable", str(error))
            key_id, secret = rules.new_secret(ring.id_keys[0])
            key = EnrolmentKey(
                key_id,
                new.name,
                secret.digest(),
                new.ice_type,
                user,
                new.name_prefix,
                new.max_uses,
                0,
                new.approval,
                actor.name,
                now,
                new.expires,
                labels=dict(sorted((new.labels or {}).items())),
            )
            await enrolments.add_key(transaction, key)
            event = Event.of(
                now,
                actor,
                AuditAction.CREATE_ENROLMENT_KEY,
                id=key.id,
                name=key.name,
                ice_type=key.ice_type,
                provisionedto=key.provisionedto,
                name_prefix=key.name_prefix,
                max_uses=key.max_uses,
                expires=to_text(key.expireson),
                approval=key.approval,
            )
            events.append(transaction, [event])
            return KeyMade(key, secret)

        return await self._engine.write(unit)

    async def revoke_key(self, actor: Actor, key_id: str) -> EnrolmentKey | Problem:
        """Revoke a key for good, and end the enrolments that wait; the ICEs that it made stay."""
        now = self._clock()

        async def unit(transaction: Transaction) -> EnrolmentKey | Problem:
            key = await enrolments.find_key(transaction, key_id)
            if key is None:
                return NO_KEY
            if key.revokedon is not None:
                return key
            await enrolments.revoke_key(transaction, key_id, now)
            event = Event.of(now, actor, AuditAction.REVOKE_ENROLMENT_KEY, id=key.id, name=key.name)
            events.append(transaction, [event])
            return replace(key, revokedon=now)

        return await self._engine.write(unit)

    async def approve(self, actor: Actor, enrolment_id: str) -> Enrolment | Problem:
        """Let the machine have its token; the machine's next poll makes it."""
        return await self._decide(actor, enrolment_id, self._approve)

    async def reject(self, actor: Actor, enrolment_id: str) -> Enrolment | Problem:
        """Refuse the machine its ICE."""

        async def rejected(
            _: Transaction, __: EnrolmentKey, enrolment: Enrolment, now: datetime
        ) -> Enrolment:
            return replace(
                enrolment,
                state=EnrolmentState.REJECTED,
                expireson=now + rules.WAITING_FOR,
            )

        return await self._decide(actor, enrolment_id, rejected)

    async def _decide(
        self,
        actor: Actor,
        enrolment_id: str,
        decide: _Decide,
    ) -> Enrolment | Problem:
        now = self._clock()

        async def unit(transaction: Transaction) -> Enrolment | Problem:
            # The key before the enrolment, as for machines: two transactions must not wait for each other.
            key = await enrolments.find_key_of(transaction, enrolment_id)
            found = await enrolments.find(transaction, enrolment_id, now)
            if key is None or found is None:
                return NO_ENROLMENT
            if found.state is not EnrolmentState.WAITING:
                return problem("already-decided", f"the enrolment is {found.state}")
            decided = await decide(transaction, key, found, now)
            if isinstance(decided, Problem):
                return decided
            decided = replace(decided, decidedby=actor.name, decidedon=now)
            await enrolments.update(transaction, decided)
            approved = decided.state is EnrolmentState.APPROVED
            action = AuditAction.APPROVE_ENROLMENT if approved else AuditAction.REJECT_ENROLMENT
            events.append(transaction, [enrolment_event(now, actor, action, decided)])
            return decided

        return await self._engine.write(unit)

    async def _approve(
        self, transaction: Transaction, key: EnrolmentKey, enrolment: Enrolment, now: datetime
    ) -> Enrolment | Problem:
        if not key.stands(now) or key.used_up:
            return problem("already-decided", "the enrolment key has expired or is used up")
        if await enrolments.approved_for(transaction, enrolment.ice_name, now):
            return problem(
                "ice-exists", f"{ALREADY_EXISTS}: another machine has the approval for it"
            )
        ice = await ices.find(transaction, enrolment.ice_name)
        if not rules.still_waits(enrolment, ice):
            if not enrolment.replaces:
                return problem("ice-exists")
            return problem(
                "already-decided",
                "the ICE has changed since the machine asked: it has to ask again",
            )
        if enrolment.provisionedto is None:
            return replace(enrolment, state=EnrolmentState.APPROVED)
        owner = ice_changes.new_owner(
            await accounts.find_user(transaction, enrolment.provisionedto)
        )
        if isinstance(owner, Problem):
            return owner
        return replace(enrolment, state=EnrolmentState.APPROVED, provisionedto=owner)


def check_key(new: NewKey, now: datetime) -> Problem | None:
    """What is wrong with a new key, apart from what only the database shows; None if nothing is."""
    fault = rules.check_key(
        name=new.name,
        ice_type=new.ice_type,
        provisionedto=new.provisionedto,
        name_prefix=new.name_prefix,
        max_uses=new.max_uses,
        lifetime=new.expires - now,
        approval=new.approval,
    )
    if fault is not None:
        return invalid(fault.field, fault.reason)
    return description_fault(new.labels or {}, None)


def enrolment_event(now: datetime, actor: Actor, action: str, enrolment: Enrolment) -> Event:
    """The event of a request or a decision."""
    detail: dict[str, Any] = {
        "enrolment": enrolment.id,
        "key": enrolment.key_id,
        "ice_name": enrolment.ice_name,
        "provisionedto": enrolment.provisionedto,
        "hostname": enrolment.hostname,
        "key_thumbprint": enrolment.thumbprint,
        "replaces": enrolment.replaces,
    }
    return Event.of(now, actor, action, **detail)
