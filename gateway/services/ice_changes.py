"""What the single and the bulk actions on ICEs have in common: the new ICE, its event, and what follows from both.

Tested in tests/gateway/admin/api/test_ices.py and tests/gateway/admin/api/test_bulk.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from gateway.core.accounts import User
from gateway.core.audit_event import Actor, Event
from gateway.core.ice import NAME_RULE, Action, Ice, IceType, WrongStatus, valid_name
from gateway.core.operation import OperationError, reason
from gateway.core.problems import Problem, invalid, problem
from gateway.core.revocation import Confirmation
from gateway.core.secret import Secret
from gateway.core.times import Clock, later
from gateway.core.tokens import KeyRing
from gateway.store import accounts, ices, operations, schedules
from gateway.store.engine import AppendedEvent, Engine, Transaction
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.tables import needs_keys

_TICK: Final = timedelta(milliseconds=1)
_CANCELS_OPERATIONS: Final = {
    Action.DEREGISTER: reason(OperationError.DEREGISTERED),
    Action.REREGISTER: reason(OperationError.REREGISTERED),
}
"""The actions that cancel the unfinished operations of an ICE, and the error that these get."""
Expected = frozenset[int] | None
"""The generations that the ICE may have (If-Match); None allows any."""
_USER_CHANGED: Final = reason(OperationError.USER_CHANGED)


class Confirmer(Protocol):
    """Waits until the nodes have acted on events."""

    async def confirm(self, logged: Sequence[AppendedEvent]) -> Confirmation:
        """Wait for a bounded time; returns what was dropped and which nodes have not confirmed."""


class IceActions:
    """What actions on ICEs work with.

    Args:
        engine: the database.
        keys: seal tokens.
        clock: the present.
        registration_ttl: seconds until an unused token expires, 0 for never.
        confirmer: waits until the nodes have acted on an action's events.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        keys: KeyStore,
        clock: Clock,
        registration_ttl: float,
        confirmer: Confirmer,
    ) -> None:
        self._engine = engine
        self.keys = keys
        """The keys that this process knows."""
        self._clock = clock
        self._ttl = registration_ttl
        self._confirmer = confirmer


@dataclass(frozen=True, slots=True)
class Change:
    """An ICE before and after an action, and its new token if the action issues one."""

    old: Ice
    new: Ice
    token: Secret | None = None

    @property
    def former_user(self) -> str | None:
        """The user that the ICE belonged to before, if it belongs to another one now."""
        moved = self.old.provisionedto != self.new.provisionedto
        return self.old.provisionedto if moved else None


@dataclass(frozen=True, slots=True)
class Issuer:
    """Seals the tokens of one transaction, so that no key is retired meanwhile (see `key_rotation`)."""

    ring: KeyRing
    now: datetime
    registration_ttl: float

    def provision(
        self, ice_name: str, ice_type: IceType, owner: str | None, thumbprint: str | None = None
    ) -> tuple[Ice, Secret]:
        """A new ICE and its token, which is for the key of `thumbprint` alone if that is given."""
        token = self.ring.seal(ice_name, ice_type, 1, self.now, thumbprint)
        ice = Ice.provision(
            ice_name,
            ice_type,
            owner,
            token.digest(),
            key_id=self.ring.seals,
            now=self.now,
            expires=later(self.now, self.registration_ttl),
        )
        return ice, token

    def renew(
        self, action: Action, ice: Ice, owner: str | None, thumbprint: str | None = None
    ) -> Change | Problem:
        """The ICE with another token, for `owner` and for the key of `thumbprint` if they are given."""
        # Clients take the later of two tokens as the newer, so it must be later even after the clock
        # was set back.
        at = max(self.now, ice.provisionedon + _TICK)
        token = self.ring.seal(ice.ice_name, ice.ice_type, ice.generation + 1, at, thumbprint)
        new = ice.renew(
            action,
            token.digest(),
            key_id=self.ring.seals,
            now=at,
            expires=later(self.now, self.registration_ttl),
            owner=owner,
        )
        return wrong_status(new) if isinstance(new, WrongStatus) else Change(ice, new, token)


async def issuer(
    transaction: Transaction, keys: KeyStore, now: datetime, registration_ttl: float
) -> Issuer | Problem:
    """The issuer of this transaction."""
    try:
        # A missing file is made only while nothing needs it: a new key opens no existing token.
        ring = keys.for_sealing(may_create=not await needs_keys(transaction.fetch))
    except KeyFileUnusable as error:
        return problem("keys-unavailable", str(error))
    return Issuer(ring, now, registration_ttl)


def deregister(ice: Ice, now: datetime) -> Change | Problem:
    """The ICE deregistered, with the hash of a random token that is shown to nobody; that needs no key."""
    new = ice.deregister(Secret(secrets.token_urlsafe(32)).digest(), now=now)
    return wrong_status(new) if isinstance(new, WrongStatus) else Change(ice, new)


def wrong_status(refused: WrongStatus) -> Problem:
    """The refusal of an action by the table of statuses."""
    return problem("wrong-status", refused.sentence)


def validate_new(ice_name: str, ice_type: IceType, provisionedto: str | None) -> Problem | None:
    """What is wrong with a new ICE, apart from what only the table shows; None if nothing is."""
    if not valid_name(ice_name):
        return invalid("ice_name", f"needs {NAME_RULE}")
    if ice_type is IceType.CI_CD and provisionedto is not None:
        return invalid("provisionedto", "a ci-cd ICE has no user")
    if ice_type is IceType.NORMAL and provisionedto is None:
        return invalid("provisionedto", "a normal ICE needs a user")
    return None


def new_owner(user: User | None, field: str = "provisionedto") -> str | Problem:
    """The exact name of a user to tag an ICE to; `field` is where the request names them."""
    if user is None:
        return invalid(field, "there is no user of this name; add the user first")
    if user.disabledon is not None:
        return invalid(field, "this user is disabled")
    return user.name


async def store(
    transaction: Transaction, actor: Actor, action: Action, changes: Sequence[Change], now: datetime
) -> list[AppendedEvent]:
    """Compare and swap all changes, with the events and with what follows for operations, API tokens and schedules.

    Raises `ices.Stale` as `ices.replace`.
    """
    logged = await ices.replace(
        transaction,
        [
            (each.old, each.new, event_of(actor, action, now, each.old, each.new))
            for each in changes
        ],
    )
    if action in _CANCELS_OPERATIONS:
        names = [each.new.ice_name for each in changes]
        await operations.cancel_all(transaction, names, now, _CANCELS_OPERATIONS[action])
    moved = [(each.new.ice_name, each.former_user) for each in changes if each.former_user]
    if moved:
        names = [name for name, _ in moved]
        await operations.cancel_all(transaction, names, now, _USER_CHANGED)
        await operations.leave_to_former_users(transaction, moved)
        await accounts.revoke_tokens_for(transaction, moved, now)
        await schedules.leave_to_former_users(transaction, moved)
    return logged


def event_of(actor: Actor, action: str, now: datetime, old: Ice | None, new: Ice) -> Event:
    """The event of an action on an ICE."""
    detail: dict[str, object] = {
        "generation_before": None if old is None else old.generation,
        "status_before": None if old is None else old.status,
    }
    if old is None:
        detail |= {"ice_type": new.ice_type, "provisionedto": new.provisionedto}
    elif old.provisionedto != new.provisionedto:
        detail |= {
            "provisionedto": new.provisionedto,
            "provisionedto_before": old.provisionedto,
        }
    return Event(now, actor, action, new.ice_name, new.generation, detail)
