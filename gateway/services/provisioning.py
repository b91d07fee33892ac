"""The admin's actions on ICEs; each applies a rule of `core.ice` with one compare-and-set of the store.

A refusal is a `Problem` of the catalogue. Nodes learn of a change through the event log, and each action
waits in its `Confirmer` until they have acted on it.

Tested in tests/gateway/admin/api/test_ices.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import NAME_RULE, Action, Ice, IceType, WrongStatus, fold, valid_name
from gateway.core.operation import OperationError, reason
from gateway.core.problems import Problem, invalid, problem
from gateway.core.revocation import Confirmation, Drop
from gateway.core.secret import Secret
from gateway.core.times import Clock, later
from gateway.store import events, ices, operations
from gateway.store.accounts import Accounts
from gateway.store.engine import AppendedEvent, Engine, Transaction, Unit
from gateway.store.key_file import KeyFileUnusable, KeyStore

MAX_BULK: Final = 10_000
"""Maximum ICEs in one bulk action."""
_TICK: Final = timedelta(milliseconds=1)
_CANCELS_OPERATIONS: Final = {
    Action.DEREGISTER: reason(OperationError.DEREGISTERED),
    Action.REREGISTER: reason(OperationError.REREGISTERED),
}
"""The actions that cancel the unfinished operations of an ICE, and the error that these get."""


@dataclass(frozen=True, slots=True)
class Done:
    """The ICE after an action, the sessions that it ended, and the nodes that have not confirmed."""

    ice: Ice
    dropped: list[Drop]
    unconfirmed: list[str]


@dataclass(frozen=True, slots=True)
class Issued(Done):
    """Likewise, with a new token, which is shown once."""

    token: Secret


@dataclass(frozen=True, slots=True)
class BulkOutcome:
    """The result of a bulk action for one ICE; `problem` is None if it was done."""

    ice_name: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class BulkDone:
    """The results of a bulk action, the sessions that it ended, the nodes that have not confirmed."""

    outcomes: list[BulkOutcome]
    dropped: list[Drop]
    unconfirmed: list[str]


class Confirmer(Protocol):
    """Waits until the nodes have acted on events."""

    async def confirm(self, logged: Sequence[AppendedEvent]) -> Confirmation:
        """Wait for a bounded time; returns what was dropped and which nodes have not confirmed."""


Expected = frozenset[int] | None
"""The generations that the ICE may have (If-Match); None allows any."""
_Change = Callable[[Ice], Ice | WrongStatus | Problem]
_Action = Callable[..., Awaitable[Issued | Done | Problem]]


class Provisioning:
    """Provisions, renews, deregisters and disconnects ICEs. Every method raises `StoreUnavailable`."""

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
        self._confirmer = confirmer
        self.keys = keys
        """The keys that this process knows."""
        self._clock = clock
        self._ttl = registration_ttl
        self._ices = ices.Ices(engine)
        self._accounts = Accounts(engine)
        self.actions: Mapping[str, _Action] = {
            "reprovision": self.reprovision,
            "reregister": self.reregister,
            "deregister": self.deregister,
            "disconnect": self.disconnect,
        }
        """What an admin can do to one ICE, by the name that page, API and commands give it."""

    async def provision(
        self, actor: Actor, ice_name: str, ice_type: IceType, provisionedto: str | None
    ) -> Issued | Problem:
        """Add an ICE with generation 1 and seal its token."""
        fault = validate_new(ice_name, ice_type, provisionedto)
        if fault is not None:
            return fault
        owner = None if provisionedto is None else await self._owner(provisionedto)
        if isinstance(owner, Problem):
            return owner
        now = self._clock()

        async def unit(transaction: Transaction) -> Issued | Problem:
            # Sealed in the transaction, so that no key is retired meanwhile (see `key_rotation`).
            try:
                # A missing file is made only while no ICE exists: a new key opens no existing token.
                ring = self.keys.for_sealing(may_create=not await ices.any_ice(transaction.fetch))
            except KeyFileUnusable as error:
                return problem("keys-unavailable", str(error))
            token = ring.seal(ice_name, ice_type, 1, now)
            ice = Ice.provision(
                ice_name,
                ice_type,
                owner,
                token.digest(),
                key_id=ring.seals,
                now=now,
                expires=later(now, self._ttl),
            )
            event = _event(actor, Action.PROVISION, now, None, ice)
            logged = await ices.insert(transaction, ice, event)
            return problem("ice-exists") if logged is None else Issued(ice, [], [], token)

        return await self._engine.write(unit)

    async def _owner(self, name: str) -> str | Problem:
        user = await self._accounts.user(name)
        if user is None:
            return invalid("provisionedto", "there is no user of this name; add the user first")
        if user.disabledon is not None:
            return invalid("provisionedto", "this user is disabled")
        return user.name

    async def reprovision(
        self, actor: Actor, ice: Ice, expected: Expected = None
    ) -> Issued | Problem:
        """Replace a token that was lost before the ICE registered; `ice` is what the caller saw."""
        return await self._renew(actor, Action.REPROVISION, ice, expected)

    async def reregister(
        self, actor: Actor, ice: Ice, expected: Expected = None
    ) -> Issued | Problem:
        """Issue a new token to an ICE that lost its key or moved, so that it registers again."""
        return await self._renew(actor, Action.REREGISTER, ice, expected)

    async def _renew(
        self, actor: Actor, action: Action, found: Ice, expected: Expected
    ) -> Issued | Problem:
        now = self._clock()
        tokens: list[Secret] = []

        def change(ice: Ice) -> Ice | WrongStatus | Problem:
            try:
                ring = self.keys.for_sealing(may_create=False)
            except KeyFileUnusable as error:
                return problem("keys-unavailable", str(error))
            # Clients take the later of two tokens as the newer, so it must be later even after
            # the clock was set back.
            at = max(now, ice.provisionedon + _TICK)
            tokens[:] = [ring.seal(ice.ice_name, ice.ice_type, ice.generation + 1, at)]
            expires = later(now, self._ttl)
            digest = tokens[0].digest()
            return ice.renew(action, digest, key_id=ring.seals, now=at, expires=expires)

        done = await self._change(actor, action, found, expected, change=change, now=now)
        if isinstance(done, Problem):
            return done
        return Issued(done.ice, done.dropped, done.unconfirmed, tokens[0])

    async def deregister(self, actor: Actor, ice: Ice, expected: Expected = None) -> Done | Problem:
        """Deactivate an ICE that is no longer wanted."""
        now = self._clock()
        return await self._change(
            actor,
            Action.DEREGISTER,
            ice,
            expected,
            change=lambda old: old.deregister(_discarded_token_hash(), now=now),
            now=now,
        )

    async def _change(
        self,
        actor: Actor,
        action: Action,
        found: Ice,
        expected: Expected,
        *,
        change: _Change,
        now: datetime,
    ) -> Done | Problem:
        """Apply a rule and compare and swap; of two concurrent actions one gets `stale`."""
        old, raced = found, False
        while True:
            if expected is not None and old.generation not in expected:
                return problem("stale")
            refused = old.refuses(action)
            if refused is not None:
                return problem("wrong-status", refused.sentence)
            if raced:
                # The rules allow the action, but the ICE is not as the caller saw it.
                return problem("stale")
            swapped = await self._engine.write(_swap(actor, action, now, old, change))
            if isinstance(swapped, Problem):
                return swapped
            if swapped is not None:
                return await self._done(*swapped)
            raced = True
            listed = await self._ices.find(found.ice_name)
            if listed is None:
                return problem("not-registered")
            old = listed.ice

    async def _done(self, ice: Ice, logged: AppendedEvent) -> Done:
        confirmed = await self._confirmer.confirm([logged])
        return Done(ice, confirmed.dropped, confirmed.unconfirmed)

    async def disconnect(self, actor: Actor, ice: Ice, expected: Expected = None) -> Done | Problem:
        """Close the sessions that were admitted before this; the ICE keeps its status and token."""
        now = self._clock()

        async def unit(transaction: Transaction) -> tuple[Ice, AppendedEvent] | Problem:
            [old] = (await ices.find_many(transaction, [ice.ice_name])).values()
            if expected is not None and old.generation not in expected:
                return problem("stale")
            event = _event(actor, AuditAction.DISCONNECT, now, old, old)
            [logged] = events.append(transaction, [event])
            return old, logged

        done = await self._engine.write(unit)
        return done if isinstance(done, Problem) else await self._done(*done)

    async def bulk(self, actor: Actor, action: str, names: Sequence[str]) -> BulkDone:
        """Deregister or disconnect many ICEs in one transaction; a refusal of one does not affect others."""
        now = self._clock()

        async def unit(
            transaction: Transaction,
        ) -> tuple[list[BulkOutcome], Sequence[AppendedEvent]]:
            found = await ices.find_many(transaction, names)
            verdicts: list[Problem | None] = []
            changes: list[tuple[Ice, Ice, Event]] = []
            for name in names:
                old = found.get(fold(name))
                new = _bulk_change(action, old, now)
                if isinstance(new, Problem):
                    verdicts.append(new)
                    continue
                assert old is not None  # noqa: S101 - a missing ICE is a Problem
                found[fold(name)] = new
                changes.append((old, new, _event(actor, action, now, old, new)))
                verdicts.append(None)
            if action == AuditAction.DISCONNECT:
                logged = events.append(transaction, [event for _, _, event in changes])
            else:
                logged = await ices.replace(transaction, changes)
                ended = [new.ice_name for _, new, _ in changes]
                why = _CANCELS_OPERATIONS[Action.DEREGISTER]
                await operations.cancel_all(transaction, ended, now, why)
            return list(map(BulkOutcome, names, verdicts)), logged

        outcomes, logged = await self._engine.write(unit)
        confirmed = await self._confirmer.confirm(logged)
        return BulkDone(outcomes, confirmed.dropped, confirmed.unconfirmed)


def validate_new(ice_name: str, ice_type: IceType, provisionedto: str | None) -> Problem | None:
    """What is wrong with a new ICE, without a look at the table; None if nothing is."""
    if not valid_name(ice_name):
        return invalid("ice_name", f"needs {NAME_RULE}")
    if ice_type is IceType.CI_CD and provisionedto is not None:
        return invalid("provisionedto", "a ci-cd ICE has no user")
    if ice_type is IceType.NORMAL and provisionedto is None:
        return invalid("provisionedto", "a normal ICE needs a user")
    return None


def _bulk_change(action: str, old: Ice | None, now: datetime) -> Ice | Problem:
    if old is None:
        return problem("not-registered")
    if action == AuditAction.DISCONNECT:
        return old
    new = old.deregister(_discarded_token_hash(), now=now)
    return problem("wrong-status", new.sentence) if isinstance(new, WrongStatus) else new


def _discarded_token_hash() -> str:
    """The hash of a random token that is discarded; no key is needed, so deregistering always works."""
    return Secret(secrets.token_urlsafe(32)).digest()


def _swap(
    actor: Actor, action: Action, now: datetime, old: Ice, change: _Change
) -> Unit[tuple[Ice, AppendedEvent] | Problem | None]:
    """A unit that applies an allowed change with its event; it returns None if the ICE has changed."""

    async def unit(transaction: Transaction) -> tuple[Ice, AppendedEvent] | Problem | None:
        new = change(old)
        if isinstance(new, Problem):
            return new
        assert not isinstance(new, WrongStatus)  # noqa: S101 - `refuses` was asked
        logged = await ices.swap(transaction, old, new, _event(actor, action, now, old, new))
        if logged is None:
            return None
        if action in _CANCELS_OPERATIONS:
            await operations.cancel_all(
                transaction, [new.ice_name], now, _CANCELS_OPERATIONS[action]
            )
        return new, logged

    return unit


def _event(actor: Actor, action: str, now: datetime, old: Ice | None, new: Ice) -> Event:
    detail: dict[str, object] = {
        "generation_before": None if old is None else old.generation,
        "status_before": None if old is None else old.status,
    }
    if old is None:
        detail |= {"ice_type": new.ice_type, "provisionedto": new.provisionedto}
    return Event(now, actor, action, new.ice_name, new.generation, detail)
