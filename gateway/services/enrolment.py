"""Machines ask for an ICE of their own with the secret of an enrolment key.

A machine's ICE is provisioned and registers as any other (`core.ice`); its token is made for the key pair of the
proof. Keys and enrolments are read and written in the transaction that provisions, so two machines never share
the last use of a key, and a key that is revoked makes no token any more.

Tested in tests/gateway/web/test_enrolment_endpoint.py.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from client.protocol import EnrolmentCode, RefusalCode
from gateway.core import enrolment as rules
from gateway.core.accounts import User
from gateway.core.audit_event import Actor, AuditAction, Via
from gateway.core.enrolment import (
    BadField,
    Enrolment,
    EnrolmentKey,
    EnrolmentState,
    Wanted,
)
from gateway.core.ice import Action, Ice
from gateway.core.problems import ALREADY_EXISTS, Problem, quoted, refusal
from gateway.core.secret import Secret
from gateway.services import ice_changes
from gateway.services.enrolment_keys import enrolment_event, find_ice
from gateway.services.ice_changes import IceActions, Issuer, event_of, issuer
from gateway.store import accounts, enrolments, events, ices, proofs
from gateway.store.engine import AppendedEvent, Transaction

AT_ONCE: Final = 32
"""Machines whose requests are written at once. All of a key lock its row until the commit, and requests that wait
are committed together: in a transaction of hundreds the other nodes would wait too long for that row."""
_ID_BYTES: Final = 12
_FULL_RETRY: Final = 300
"""Seconds until a machine asks again, for which there was no room to wait."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """A machine whose secret and proof have been checked as far as that needs no database.

    `proof` names its proof, which may be used only once; it is empty where one node alone serves the database.
    """

    key_id: str
    secret_hash: str
    thumbprint: str
    address: str
    proof: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The name and the new token of a machine's ICE."""

    ice_name: str
    token: Secret


@dataclass(frozen=True, slots=True)
class Waiting:
    """An enrolment that an admin has to approve; the machine asks again after `retry_after` seconds."""

    id: str
    retry_after: int


@dataclass(frozen=True, slots=True)
class NotGenuine:
    """This gateway did not issue the secret: the attempt counts against its address."""


Answer = Enrolled | Waiting | NotGenuine | Problem
_Asked = tuple[Enrolled | Waiting | NotGenuine | Problem, Sequence[AppendedEvent]]
"""The answer, and the events that the nodes must have acted on before it is given."""


class EnrolmentService(IceActions):
    """Requests of machines. Every method raises `StoreUnavailable`."""

    def __init__(self, **acts: Any) -> None:
        """See `IceActions`."""
        super().__init__(**acts)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def request(self, bearer: Bearer, wanted: Wanted | Problem) -> Answer:
        """Give a machine an ICE, or let it wait; `wanted` is a problem if its body was none.

        The key pair that asks again, because the answer was lost, gets a new token while its ICE is
        `provisioned`, also with a key that is used up.
        """

        async def unit(transaction: Transaction) -> _Asked:
            now = self._clock()
            key = await _open(transaction, bearer, now)
            if not isinstance(key, EnrolmentKey):
                return key, ()
            if key.used_up and not await enrolments.has_asked(
                transaction, key.id, bearer.thumbprint, now
            ):
                return _used_up(), ()
            if isinstance(wanted, Problem):
                return wanted, ()
            name, user = rules.name_for(key, wanted), rules.user_for(key, wanted)
            if isinstance(name, BadField):
                return _invalid(name), ()
            if isinstance(user, BadField):
                return _invalid(user), ()
            earlier = await enrolments.find_of_machine(
                transaction, key.id, bearer.thumbprint, name, now
            )
            # What an admin has approved, or sees, is the user of the first request. A repetition changes nothing.
            first = user if earlier is None else earlier.provisionedto
            on = await _ground(transaction, key, name, first, now)
            if earlier is not None:
                answer = await self._go_on(transaction, on, earlier)
                if answer is not None:
                    return answer
            asked = Enrolment(
                secrets.token_hex(_ID_BYTES),
                key.id,
                name,
                key.ice_type,
                user,
                wanted.hostname,
                wanted.platform,
                bearer.address,
                bearer.thumbprint,
                EnrolmentState.WAITING,
                on.ice is not None,
                None if on.ice is None else on.ice.generation,
                now,
                now + rules.WAITING_FOR,
            )
            return await self._begin(transaction, on, asked)

        return await self._answer(unit)

    async def _begin(self, transaction: Transaction, on: _Ground, asked: Enrolment) -> _Asked:
        """The answer to a machine that asks for the first time, or anew."""
        if on.key.used_up:
            return _used_up(), ()
        can_replace = on.key.approval and (
            on.ice is not None and rules.can_replace(on.ice, asked.ice_type, asked.provisionedto)
        )
        if not on.key.approval and on.without_user:
            return _user_disabled(), ()
        if on.ice is not None and not can_replace:
            return _exists(), ()
        await enrolments.forget_old(transaction, on.now)
        if not on.key.approval:
            return await self._provision(transaction, on, asked)
        if await enrolments.count_waiting(transaction, on.key.id, on.now) >= rules.MAX_WAITING:
            return refusal(EnrolmentCode.QUEUE_FULL, retry_after=_FULL_RETRY), ()
        await enrolments.put(transaction, asked)
        event = enrolment_event(on.now, _machine(asked), AuditAction.REQUEST_ENROLMENT, asked)
        events.append(transaction, [event])
        return Waiting(asked.id, asked.retry_after(on.now)), ()

    async def poll(self, bearer: Bearer, enrolment_id: str) -> Answer:
        """Tell a machine what became of its enrolment; an approved one gets its ICE and its token now."""

        async def unit(transaction: Transaction) -> _Asked:
            now = self._clock()
            key = await _open(transaction, bearer, now)
            if not isinstance(key, EnrolmentKey):
                return key, ()
            found = await enrolments.find(transaction, enrolment_id, now)
            if found is None or found.key_id != key.id:
                return refusal(EnrolmentCode.NOT_FOUND), ()
            if found.thumbprint != bearer.thumbprint:
                detail = "The enrolment was made with another key pair"
                return refusal(RefusalCode.KEY_MISMATCH, detail=detail), ()
            found = replace(found, address=bearer.address)
            on = await _ground(transaction, key, found.ice_name, found.provisionedto, now)
            answer = await self._go_on(transaction, on, found)
            return answer or (_refused("The enrolment has ended: the ICE has changed since"), ())

        return await self._answer(unit)

    async def _answer(self, unit: Callable[[Transaction], Awaitable[_Asked]]) -> Answer:
        async with self._turns:
            answer, logged = await self._engine.write(unit)
        if logged:
            # A reregistration drops the session of the machine that the new one replaces.
            await self._confirmer.confirm(logged)
        return answer

    async def _go_on(
        self, transaction: Transaction, on: _Ground, enrolment: Enrolment
    ) -> _Asked | None:
        """The answer to a machine that has asked before; None if that has ended."""
        if rules.may_renew(enrolment, on.ice):
            return await self._renew(transaction, on, Action.REPROVISION, enrolment)
        match enrolment.state:
            case EnrolmentState.REJECTED:
                return _refused("The admin has rejected this machine"), ()
            case EnrolmentState.WAITING | EnrolmentState.APPROVED if on.key.used_up:
                return _used_up(), ()
            case EnrolmentState.WAITING:
                return Waiting(enrolment.id, enrolment.retry_after(on.now)), ()
            case EnrolmentState.APPROVED if rules.still_waits(enrolment, on.ice):
                return await self._provision(transaction, on, enrolment)
            case EnrolmentState.APPROVED:
                await enrolments.update(transaction, replace(enrolment, state=EnrolmentState.ENDED))
                return _refused("The ICE has changed since the machine asked"), ()
        return None

    async def _provision(
        self, transaction: Transaction, on: _Ground, enrolment: Enrolment
    ) -> _Asked:
        """Provision the ICE, or reregister it, and count the use of the key."""
        if on.ice is not None:
            done = await self._renew(transaction, on, Action.REREGISTER, enrolment)
            if isinstance(done[0], Enrolled):
                await enrolments.count_use(transaction, on.key.id)
            return done
        issues = await self._issuer(transaction, on)
        if isinstance(issues, Problem):
            return issues, ()
        owner = None if on.user is None else on.user.name
        new, token = issues.provision(
            enrolment.ice_name, enrolment.ice_type, owner, enrolment.thumbprint
        )
        event = event_of(_machine(enrolment), Action.PROVISION, on.now, None, new)
        event.detail.update(hostname=enrolment.hostname, key_thumbprint=enrolment.thumbprint)
        [logged] = await ices.insert_many(transaction, [(new, event, on.key.labels)])
        if logged is None:
            return _exists(), ()
        await _store(transaction, on.key, enrolment, new)
        await enrolments.count_use(transaction, on.key.id)
        return Enrolled(new.ice_name, token), ()

    async def _renew(
        self, transaction: Transaction, on: _Ground, action: Action, enrolment: Enrolment
    ) -> _Asked:
        """Replace the ICE's token, whose row is locked since it was read."""
        assert on.ice is not None  # noqa: S101 - the callers have looked
        issues = await self._issuer(transaction, on)
        if isinstance(issues, Problem):
            return issues, ()
        change = issues.renew(action, on.ice, None, enrolment.thumbprint)
        if isinstance(change, Problem):
            return change, ()
        assert change.token is not None  # noqa: S101 - these actions issue one
        actor = _machine(enrolment)
        logged = await ice_changes.store(transaction, actor, action, [change], on.now)
        await _store(transaction, on.key, enrolment, change.new)
        return Enrolled(change.new.ice_name, change.token), logged

    async def _issuer(self, transaction: Transaction, on: _Ground) -> Issuer | Problem:
        """What seals the token, unless the ICE's user is disabled."""
        if on.without_user:
            return _user_disabled()
        return await issuer(transaction, self.keys, on.now, self._ttl)


@dataclass(frozen=True, slots=True)
class _Ground:
    """What an answer stands on, each row locked: the key, the wanted user and the ICE of the wanted name."""

    key: EnrolmentKey
    needs_user: bool
    user: User | None
    ice: Ice | None
    now: datetime

    @property
    def without_user(self) -> bool:
        """Whether the ICE's user is disabled or unknown."""
        return self.needs_user and (self.user is None or self.user.disabledon is not None)


async def _ground(
    transaction: Transaction, key: EnrolmentKey, name: str, user: str | None, now: datetime
) -> _Ground:
    # The user before the ICE, as in the other actions: two transactions must not wait for each other.
    owner = None if user is None else await accounts.find_user(transaction, user)
    return _Ground(key, user is not None, owner, await find_ice(transaction, name), now)


async def _open(
    transaction: Transaction, bearer: Bearer, now: datetime
) -> EnrolmentKey | NotGenuine | Problem:
    """The key of a machine's secret, locked; refused where it does not stand."""
    key = await enrolments.find_key(transaction, bearer.key_id)
    if key is None or key.secret_hash != bearer.secret_hash:
        return NotGenuine()
    if bearer.proof and not await proofs.use(transaction, bearer.proof):
        return refusal(RefusalCode.PROOF_INVALID, detail="The proof was used before", retry=True)
    if not key.stands(now):
        ended = "It is revoked" if key.revokedon is not None else "It has expired"
        return refusal(EnrolmentCode.KEY_INVALID, detail=ended)
    return key


async def _store(
    transaction: Transaction, key: EnrolmentKey, enrolment: Enrolment, ice: Ice
) -> None:
    """Note what the machine got, until its key expires."""
    done = replace(
        enrolment,
        state=EnrolmentState.ENROLLED,
        ice_name=ice.ice_name,
        generation=ice.generation,
        expireson=key.expireson,
    )
    await enrolments.put(transaction, done)


def _machine(enrolment: Enrolment) -> Actor:
    return Actor(f"{rules.ACTOR_PREFIX}{enrolment.key_id}", Via.ICE, enrolment.address)


def _invalid(fault: BadField) -> Problem:
    detail = f"{quoted(fault.field)}: {quoted(fault.reason)}"
    return refusal(EnrolmentCode.INVALID, detail=detail, field=fault.field)


def _used_up() -> Problem:
    return refusal(EnrolmentCode.KEY_INVALID, detail="It is used up")


def _exists() -> Problem:
    return refusal(EnrolmentCode.ICE_EXISTS, detail=ALREADY_EXISTS)


def _user_disabled() -> Problem:
    return _refused("The user of the ICE is disabled")


def _refused(detail: str) -> Problem:
    return refusal(EnrolmentCode.REFUSED, detail=detail)
