"""A machine's request for an ICE: its answers, and how they follow from what the tables say. Pure.

Source: docs/protocol.md.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from client.protocol import EnrolmentCode, RefusalCode
from gateway.core import enrolment as rules
from gateway.core.accounts import User
from gateway.core.enrolment import BadField, Enrolment, EnrolmentKey, EnrolmentState, Wanted
from gateway.core.ice import Action, Ice
from gateway.core.problems import ALREADY_EXISTS, Problem, quoted, refusal
from gateway.core.secret import Secret

_ID_BYTES: Final = 12
_FULL_RETRY: Final = 300
"""Seconds until a machine asks again if there was no room for it to wait."""


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
class Request:
    """A machine asks for an ICE; `wanted` is a problem if the body is not valid."""

    bearer: Bearer
    wanted: Wanted | Problem


@dataclass(frozen=True, slots=True)
class Poll:
    """A machine asks what became of its enrolment."""

    bearer: Bearer
    enrolment_id: str


Ask = Request | Poll


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


@dataclass(frozen=True, slots=True)
class Ground:
    """What a decision depends on, each row locked: the key, the wanted user and the ICE of the wanted name."""

    key: EnrolmentKey
    needs_user: bool
    user: User | None
    ice: Ice | None
    now: datetime

    @property
    def without_user(self) -> bool:
        """Whether the ICE's user is disabled or unknown."""
        return self.needs_user and (self.user is None or self.user.disabledon is not None)


@dataclass(frozen=True, slots=True)
class Grant:
    """The machine gets a token by this action. All but `REPROVISION`, for a lost answer, use the key."""

    enrolment: Enrolment
    action: Action

    @property
    def uses(self) -> int:
        """The uses of the key that it takes."""
        return int(self.action is not Action.REPROVISION)


@dataclass(frozen=True, slots=True)
class Queue:
    """The machine begins to wait for an admin, if there is room."""

    enrolment: Enrolment


@dataclass(frozen=True, slots=True)
class End:
    """The enrolment ends: the ICE has changed since."""

    enrolment: Enrolment


Decision = Grant | Queue | End | Waiting | Problem


def decide_request(ground: Ground, earlier: Enrolment | None, asked: Enrolment) -> Decision:
    """What becomes of a request; `earlier` is what this key pair has asked for before under the name."""
    decision = None if earlier is None else _go_on(ground, earlier)
    return decision or _begin(ground, asked)


def decide_poll(ground: Ground, found: Enrolment) -> Decision:
    """What became of an enrolment."""
    return _go_on(ground, found) or refused("The enrolment has ended: the ICE has changed since")


def new_enrolment(
    ground: Ground, bearer: Bearer, wanted: Wanted, name: str, user: str | None
) -> Enrolment:
    """The enrolment of a machine that asks for the first time, or anew."""
    return Enrolment(
        secrets.token_hex(_ID_BYTES),
        ground.key.id,
        name,
        ground.key.ice_type,
        user,
        wanted.hostname,
        wanted.platform,
        bearer.address,
        bearer.thumbprint,
        EnrolmentState.WAITING,
        ground.ice is not None,
        None if ground.ice is None else ground.ice.generation,
        ground.now,
        ground.now + rules.WAITING_FOR,
    )


def enrolled(enrolment: Enrolment, key: EnrolmentKey, ice: Ice) -> Enrolment:
    """The enrolment that has made this ICE or its token; it is remembered until its key expires."""
    return replace(
        enrolment,
        state=EnrolmentState.ENROLLED,
        ice_name=ice.ice_name,
        generation=ice.generation,
        expireson=key.expireson,
    )


def _begin(ground: Ground, asked: Enrolment) -> Decision:
    """The decision on a machine that asks for the first time, or anew."""
    key, ice = ground.key, ground.ice
    if key.used_up:
        return used_up()
    can_replace = key.approval and (
        ice is not None and rules.can_replace(ice, asked.ice_type, asked.provisionedto)
    )
    if not key.approval and ground.without_user:
        return user_disabled()
    if ice is not None and not can_replace:
        return exists()
    return Queue(asked) if key.approval else Grant(asked, Action.PROVISION)


def _go_on(ground: Ground, enrolment: Enrolment) -> Decision | None:
    """The decision on a machine that has asked before; None if that has ended."""
    if rules.may_renew(enrolment, ground.ice):
        return _grant(ground, enrolment, Action.REPROVISION)
    match enrolment.state:
        case EnrolmentState.REJECTED:
            return refused("The admin has rejected this machine")
        case EnrolmentState.WAITING | EnrolmentState.APPROVED if ground.key.used_up:
            return used_up()
        case EnrolmentState.WAITING:
            return waiting(enrolment, ground.now)
        case EnrolmentState.APPROVED if rules.still_waits(enrolment, ground.ice):
            action = Action.PROVISION if ground.ice is None else Action.REREGISTER
            return _grant(ground, enrolment, action)
        case EnrolmentState.APPROVED:
            return End(replace(enrolment, state=EnrolmentState.ENDED))
    return None


def _grant(ground: Ground, enrolment: Enrolment, action: Action) -> Grant | Problem:
    return user_disabled() if ground.without_user else Grant(enrolment, action)


def waiting(enrolment: Enrolment, now: datetime) -> Waiting:
    """The answer to a machine that waits for an admin."""
    return Waiting(enrolment.id, enrolment.retry_after(now))


def key_fault(key: EnrolmentKey, now: datetime) -> Problem | None:
    """The refusal of a key that was revoked or has expired."""
    if key.stands(now):
        return None
    ended = "It is revoked" if key.revokedon is not None else "It has expired"
    return refusal(EnrolmentCode.KEY_INVALID, detail=ended)


def bad_field(fault: BadField) -> Problem:
    """The refusal of a request with a field that is not valid."""
    detail = f"{quoted(fault.field)}: {quoted(fault.reason)}"
    return refusal(EnrolmentCode.INVALID, detail=detail, field=fault.field)


def replayed() -> Problem:
    """The refusal of a proof that was used before."""
    return refusal(RefusalCode.PROOF_INVALID, detail="The proof was used before", retry=True)


def used_up() -> Problem:
    """The refusal of a key whose ICEs have all been provisioned."""
    return refusal(EnrolmentCode.KEY_INVALID, detail="It is used up")


def queue_full() -> Problem:
    """The refusal where too many machines wait for an admin."""
    return refusal(EnrolmentCode.QUEUE_FULL, retry_after=_FULL_RETRY)


def exists() -> Problem:
    """The refusal of a name that another machine has."""
    return refusal(EnrolmentCode.ICE_EXISTS, detail=ALREADY_EXISTS)


def user_disabled() -> Problem:
    """The refusal of an ICE whose user is disabled."""
    return refused("The user of the ICE is disabled")


def refused(detail: str) -> Problem:
    """The refusal of an enrolment."""
    return refusal(EnrolmentCode.REFUSED, detail=detail)
