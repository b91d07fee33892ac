"""Actions on many ICEs in one transaction: a refusal of one ICE does not affect the others.

Tested in tests/gateway/admin/api/test_bulk.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from gateway.core.accounts import User, fold_user
from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import Action, Ice, IceType, fold
from gateway.core.labels import TOO_MANY, LabelChanges, Labels, merged
from gateway.core.pause import Pause, forbids, pause_fault, standing, wrong_status
from gateway.core.problems import Problem, invalid, problem
from gateway.core.revocation import Drop
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
from gateway.services.labelling import description_fault, label_event
from gateway.services.pausing import PauseOrder, pause_event
from gateway.store import accounts, events, ices, pauses
from gateway.store.engine import AppendedEvent, Transaction, Unit

MAX_BULK: Final = 10_000
"""ICEs in one bulk action at most."""
MAX_ISSUED: Final = 1_000
"""ICEs in one bulk action that issues tokens."""

_NO_GENERATION: Final = 0


@dataclass(frozen=True, slots=True)
class BulkOutcome:
    """The result for one ICE: `problem` is None if it was done; a dry run gives its generation."""

    ice_name: str
    problem: Problem | None = None
    token: Secret | None = None
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class BulkDone:
    """The results of a bulk action, the sessions that it ended, the nodes that have not confirmed."""

    outcomes: list[BulkOutcome]
    dropped: list[Drop]
    unconfirmed: list[str]


@dataclass(frozen=True, slots=True)
class Target:
    """An ICE that an action names, and the generation that it must have, if any."""

    ice_name: str
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class NewIce:
    """An ICE to provision."""

    ice_name: str
    ice_type: IceType
    provisionedto: str | None = None
    labels: Labels | None = None


_Outcomes = tuple[list[BulkOutcome], Sequence[AppendedEvent]]
"""The results, and the events that the nodes must have acted on."""
_Make = Callable[[Ice], Change | Problem]


class BulkActions(IceActions):
    """Changes many ICEs at once. Every method raises `StoreUnavailable`."""

    async def act(
        self, actor: Actor, action: str, targets: Sequence[Target], *, dry_run: bool = False
    ) -> BulkDone | Problem:
        """Deregister, disconnect, reprovision or reregister ICEs."""
        issues_tokens = action in (Action.REPROVISION, Action.REREGISTER)
        if issues_tokens:
            twice = [
                name
                for name, count in Counter(fold(each.ice_name) for each in targets).items()
                if count > 1
            ]
            if twice:
                return invalid("ice_names", f"names {twice[0]} twice")
        now = self._clock()

        async def unit(transaction: Transaction) -> _Outcomes | Problem:
            found = await ices.find_many(transaction, [each.ice_name for each in targets])
            before = dict(found)
            make = await self._maker(transaction, action, list(found.values()), now)
            if isinstance(make, Problem):
                return make
            outcomes: list[BulkOutcome] = []
            changes: list[Change] = []
            for target in targets:
                change = _changed(found.get(fold(target.ice_name)), target, make)
                if isinstance(change, Problem):
                    outcomes.append(BulkOutcome(target.ice_name, change))
                    continue
                found[fold(target.ice_name)] = change.new
                changes.append(change)
                outcomes.append(BulkOutcome(target.ice_name, token=change.token))
            if dry_run:
                return _planned(outcomes, before), ()
            if action == AuditAction.DISCONNECT:
                logged = events.append(
                    transaction,
                    [event_of(actor, action, now, each.old, each.new) for each in changes],
                )
            else:
                logged = await ice_changes.store(transaction, actor, Action(action), changes, now)
            return outcomes, logged

        return await self._run(unit)

    async def _maker(
        self, transaction: Transaction, action: str, found: Sequence[Ice], now: datetime
    ) -> _Make | Problem:
        """What makes the change of one ICE."""
        match action:
            case AuditAction.DISCONNECT:
                return lambda ice: Change(ice, ice)
            case Action.DEREGISTER:
                return lambda ice: ice_changes.deregister(ice, now)
        issues = await issuer(transaction, self.keys, now, self._ttl)
        if isinstance(issues, Problem):
            return issues
        renewal = Action(action)
        owners = {ice.provisionedto for ice in found if ice.provisionedto is not None}
        users = await accounts.find_users(transaction, sorted(owners))
        disabled = {user.name for user in users.values() if user.disabledon is not None}

        def renew(ice: Ice) -> Change | Problem:
            refused = ice.refuses(renewal)
            if refused is None and ice.provisionedto in disabled:
                return problem("owner-disabled")
            return issues.renew(renewal, ice, None)

        return renew

    async def label(
        self,
        actor: Actor,
        targets: Sequence[Target],
        changes: LabelChanges,
        note: str | None,
        *,
        dry_run: bool = False,
    ) -> BulkDone | Problem:
        """Merge labels into those of each ICE, and set its note if one is given."""
        now = self._clock()

        async def unit(transaction: Transaction) -> _Outcomes:
            found = await ices.find_many(transaction, [each.ice_name for each in targets])
            described = await ices.descriptions(
                transaction, [ice.ice_name for ice in found.values()]
            )
            outcomes: list[BulkOutcome] = []
            written: dict[str, tuple[Ice, Labels, str, Event]] = {}
            for target in targets:
                ice = _expected(found.get(fold(target.ice_name)), target)
                if isinstance(ice, Problem):
                    outcomes.append(BulkOutcome(target.ice_name, ice))
                    continue
                labels, old_note = described[ice.ice_name]
                new = merged(labels, changes)
                if new is None:
                    outcomes.append(BulkOutcome(target.ice_name, invalid("labels", TOO_MANY)))
                    continue
                new_note = old_note if note is None else note
                if (new, new_note) != (labels, old_note):
                    event = label_event(actor, now, ice, changes, note)
                    written[ice.ice_name] = (ice, new, new_note, event)
                outcomes.append(BulkOutcome(target.ice_name))
            if dry_run:
                return _planned(outcomes, found), ()
            await ices.describe(transaction, list(written.values()))
            # No node needs to act: none keeps labels, and each confirms only what drops sessions.
            return outcomes, ()

        return await self._run(unit)

    async def label_one(
        self, actor: Actor, ice_name: str, changes: LabelChanges, note: str | None
    ) -> Problem | None:
        """Likewise, of one ICE; returns the refusal."""
        refused = description_fault(changes, note)
        if refused is not None:
            return refused
        done = await self.label(actor, [Target(ice_name)], changes, note)
        return done if isinstance(done, Problem) else done.outcomes[0].problem

    async def pause(
        self, actor: Actor, targets: Sequence[Target], order: PauseOrder, *, dry_run: bool = False
    ) -> BulkDone | Problem:
        """Pause ICEs anew, or end their pauses; one that is not paused is resumed without an event."""
        now = self._clock()
        fault = None if order.resume else pause_fault(order.until, order.note, now)
        if fault is not None:
            return fault

        async def unit(transaction: Transaction) -> _Outcomes:
            found = await ices.find_many(transaction, [each.ice_name for each in targets])
            before = await pauses.pauses_of(transaction, [ice.ice_name for ice in found.values()])
            outcomes: list[BulkOutcome] = []
            written: dict[str, tuple[str, Pause | None, Event]] = {}
            for target in targets:
                ice = found.get(fold(target.ice_name))
                old = None if ice is None else standing(before[ice.ice_name], now)
                refused = _pause_refusal(ice, target, old, order)
                outcomes.append(BulkOutcome(target.ice_name, refused))
                if ice is not None and refused is None and not (order.resume and old is None):
                    new = order.pause(actor, now)
                    event = pause_event(actor, now, ice, old, new)
                    written[ice.ice_name] = (ice.ice_name, new, event)
            if dry_run:
                return _planned(outcomes, found), ()
            await pauses.set_pauses(transaction, list(written.values()))
            # No node needs to act: each sends by a compare-and-set that reads the pause.
            return outcomes, ()

        return await self._run(unit)

    async def pause_one(
        self, actor: Actor, ice: Ice, order: PauseOrder, expected: Expected = None
    ) -> Problem | None:
        """Likewise, of one ICE, which must have one of the `expected` generations; returns the refusal."""
        generation = None if expected is None else ice.generation
        if expected is not None and ice.generation not in expected:
            generation = _NO_GENERATION
        done = await self.pause(actor, [Target(ice.ice_name, generation)], order)
        return done if isinstance(done, Problem) else done.outcomes[0].problem

    async def provision(
        self, actor: Actor, new: Sequence[NewIce], *, dry_run: bool = False
    ) -> BulkDone | Problem:
        """Add ICEs, each with a token."""
        now = self._clock()

        async def unit(transaction: Transaction) -> _Outcomes | Problem:
            wanted = sorted({each.provisionedto for each in new if each.provisionedto is not None})
            users = await accounts.find_users(transaction, wanted)
            issues = await issuer(transaction, self.keys, now, self._ttl)
            if isinstance(issues, Problem):
                return issues
            taken = set(await ices.find_many(transaction, [each.ice_name for each in new]))
            outcomes: list[BulkOutcome] = []
            rows: list[tuple[Ice, Event, Labels]] = []
            for each in new:
                owner = _owner(each, users)
                if isinstance(owner, Problem):
                    outcomes.append(BulkOutcome(each.ice_name, owner))
                elif fold(each.ice_name) in taken:
                    outcomes.append(BulkOutcome(each.ice_name, problem("ice-exists")))
                else:
                    taken.add(fold(each.ice_name))
                    ice, token = issues.provision(each.ice_name, each.ice_type, owner)
                    event = event_of(actor, Action.PROVISION, now, None, ice)
                    rows.append((ice, event, each.labels or {}))
                    outcomes.append(BulkOutcome(each.ice_name, token=token))
            if dry_run:
                return _planned(outcomes, {}), ()
            logged = await ices.insert_many(transaction, rows)
            # Another node may have taken a name since it was looked up.
            lost = {row[0].ice_name for row, one in zip(rows, logged, strict=True) if one is None}
            outcomes = [
                BulkOutcome(each.ice_name, problem("ice-exists"))
                if each.ice_name in lost and each.problem is None
                else each
                for each in outcomes
            ]
            return outcomes, [one for one in logged if one is not None]

        return await self._run(unit)

    async def _run(self, unit: Unit[_Outcomes | Problem] | Unit[_Outcomes]) -> BulkDone | Problem:
        done: _Outcomes | Problem = await self._engine.write(unit)
        if isinstance(done, Problem):
            return done
        outcomes, logged = done
        confirmed = await self._confirmer.confirm(logged)
        return BulkDone(outcomes, confirmed.dropped, confirmed.unconfirmed)


def _expected(ice: Ice | None, target: Target) -> Ice | Problem:
    if ice is None:
        return problem("not-registered")
    if target.generation not in (None, ice.generation):
        return problem("stale")
    return ice


def _pause_refusal(
    ice: Ice | None, target: Target, pause: Pause | None, order: PauseOrder
) -> Problem | None:
    forbidden = forbids(target.ice_name, pause, by_admin=order.by_admin)
    if forbidden is not None:
        return forbidden
    expected = _expected(ice, target)
    if isinstance(expected, Problem):
        return expected
    return wrong_status(expected.ice_name, expected.status)


def _changed(ice: Ice | None, target: Target, make: _Make) -> Change | Problem:
    expected = _expected(ice, target)
    return expected if isinstance(expected, Problem) else make(expected)


def _planned(outcomes: Sequence[BulkOutcome], before: Mapping[str, Ice]) -> list[BulkOutcome]:
    """What would be done: without tokens, and with the generations that the ICEs have now."""
    planned = []
    for each in outcomes:
        ice = before.get(fold(each.ice_name))
        generation = None if ice is None else ice.generation
        planned.append(replace(each, token=None, generation=generation))
    return planned


def _owner(new: NewIce, users: dict[str, User]) -> str | Problem | None:
    fault = validate_new(new.ice_name, new.ice_type, new.provisionedto)
    if fault is not None or new.provisionedto is None:
        return fault
    return new_owner(users.get(fold_user(new.provisionedto)))
