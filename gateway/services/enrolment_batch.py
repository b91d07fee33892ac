"""Answers the requests of many machines in one transaction: each statement reads or writes the rows of all of them.

Each is answered as though it were alone. A request whose answer depends on what an earlier one of the batch writes
waits for the next round, which reads that: the rules in `core.enrolment_request` know nothing of batches.

Tested in tests/contract/test_enrolments.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from client.protocol import EnrolmentCode, RefusalCode
from gateway.core import enrolment as rules
from gateway.core import enrolment_request as requests
from gateway.core.accounts import fold_user
from gateway.core.audit_event import Actor, AuditAction, Via
from gateway.core.enrolment import BadField, Enrolment, EnrolmentKey, Wanted
from gateway.core.enrolment_request import (
    Answer,
    Ask,
    Decision,
    End,
    Enrolled,
    Grant,
    Ground,
    NotGenuine,
    Poll,
    Queue,
)
from gateway.core.ice import Action, Ice, fold
from gateway.core.problems import Problem, refusal
from gateway.core.secret import Secret
from gateway.services import ice_changes
from gateway.services.enrolment_keys import enrolment_event
from gateway.services.ice_changes import Issuer, event_of, issuer
from gateway.store import accounts, enrolments, events, ices, proofs
from gateway.store.engine import AppendedEvent, Transaction
from gateway.store.key_file import KeyStore

Answered = tuple[Answer, Sequence[AppendedEvent]]
"""The answer, and the events that the nodes must have acted on before it is given."""


@dataclass(slots=True)
class _Case:
    """A request with a good key. `wanted` is None for a poll; `earlier` is what the machine has asked for before."""

    place: int
    ask: Ask
    key: EnrolmentKey
    wanted: Wanted | None = None
    name: str = ""
    user: str | None = None
    earlier: Enrolment | None = None

    @property
    def thumbprint(self) -> str:
        return self.ask.bearer.thumbprint

    @property
    def first_user(self) -> str | None:
        """What an admin has approved, or sees, is the user of the first request. A repetition changes nothing."""
        return self.user if self.earlier is None else self.earlier.provisionedto

    def decide(self, ground: Ground) -> Decision:
        if self.wanted is not None:
            bearer = self.ask.bearer
            asked = requests.new_enrolment(ground, bearer, self.wanted, self.name, self.user)
            return requests.decide_request(ground, self.earlier, asked)
        assert self.earlier is not None  # noqa: S101 - a poll of no enrolment was refused
        return requests.decide_poll(ground, self.earlier)


_Decided = list[tuple[_Case, Ground, Decision]]
_Granted = tuple[_Case, Ground, Grant]


class Batch:
    """The requests of one transaction."""

    def __init__(
        self,
        transaction: Transaction,
        asks: Sequence[Ask],
        *,
        keys: KeyStore,
        now: datetime,
        ttl: float,
    ) -> None:
        self._transaction = transaction
        self._asks = asks
        self._key_store = keys
        self._now = now
        self._ttl = ttl
        self._keys: dict[str, EnrolmentKey] = {}
        """The keys as they are now, each locked."""
        self._issuer: Issuer | Problem | None = None
        self._answers: dict[int, Answered] = {}

    async def answers(self) -> list[Answered]:
        """Answer all, in the order of the requests."""
        left = await self._open()
        while left:
            left = await self._round(left)
        return [self._answers[place] for place in range(len(self._asks))]

    def _answer(self, case: _Case, answer: Answer, logged: Sequence[AppendedEvent] = ()) -> None:
        self._answers[case.place] = answer, logged

    async def _open(self) -> list[_Case]:
        """The requests whose key stands; the others are refused."""
        ids = {ask.bearer.key_id for ask in self._asks}
        self._keys = await enrolments.find_keys(self._transaction, ids)
        genuine = []
        for place, ask in enumerate(self._asks):
            key = self._keys.get(ask.bearer.key_id)
            if key is None or key.secret_hash != ask.bearer.secret_hash:
                self._answers[place] = NotGenuine(), ()
            else:
                genuine.append(_Case(place, ask, key))
        used = {case.ask.bearer.proof for case in genuine} - {""}
        fresh = await proofs.use(self._transaction, used) if used else set()
        standing = []
        for case in genuine:
            proof = case.ask.bearer.proof
            fault = requests.key_fault(case.key, self._now)
            if proof and proof not in fresh:
                fault = requests.replayed()
            fresh.discard(proof)
            if fault is None:
                standing.append(case)
            else:
                self._answer(case, fault)
        return standing

    async def _round(self, cases: list[_Case]) -> list[_Case]:
        """Answer the first of the cases, and all that do not depend on it; returns the others."""
        turn, later = _one_each(cases)
        grounds = await self._grounds([case for case in turn if await self._read(case)])
        decided: _Decided = []
        named, uses = set(), Counter[str]()
        for case, ground in grounds:
            key, name = case.key, fold(case.name)
            if name in named or 0 < key.max_uses - key.uses <= uses[key.id]:
                later.append(case)
                continue
            decision = case.decide(ground)
            if isinstance(decision, Grant):
                named.add(name)
                uses[key.id] += decision.uses
            decided.append((case, ground, decision))
        await self._carry_out(decided)
        for case in later:
            case.key = self._keys[case.key.id]
        return sorted(later, key=lambda case: case.place)

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self, case: _Case) -> bool:
        """Whether a request names an ICE and a user; it is refused otherwise. A poll names its enrolment."""
        ask, key = case.ask, case.key
        if isinstance(ask, Poll):
            return True
        if key.used_up and not await enrolments.has_asked(
            self._transaction, key.id, case.thumbprint, self._now
        ):
            self._answer(case, requests.used_up())
            return False
        if isinstance(ask.wanted, Problem):
            self._answer(case, ask.wanted)
            return False
        name, user = rules.name_for(key, ask.wanted), rules.user_for(key, ask.wanted)
        for found in (name, user):
            if isinstance(found, BadField):
                self._answer(case, requests.bad_field(found))
                return False
        assert isinstance(name, str)  # noqa: S101 - just looked at
        assert not isinstance(user, BadField)  # noqa: S101
        case.wanted, case.name, case.user = ask.wanted, name, user
        return True

    async def _grounds(self, cases: list[_Case]) -> list[tuple[_Case, Ground]]:
        """What the decisions stand on; polls of what is no enrolment of the machine are refused."""
        cases = await self._with_earlier(cases)
        names = [case.name for case in cases]
        users = {case.first_user for case in cases if case.first_user is not None}
        # The users before the ICEs, as in the other actions: two transactions must not wait for each other.
        owners = await accounts.find_users(self._transaction, list(users)) if users else {}
        found = await ices.find_many(self._transaction, names) if names else {}
        grounds = []
        for case in cases:
            user = case.first_user
            owner = None if user is None else owners.get(fold_user(user))
            ice = found.get(fold(case.name))
            grounds.append((case, Ground(case.key, user is not None, owner, ice, self._now)))
        return grounds

    async def _with_earlier(self, cases: list[_Case]) -> list[_Case]:
        machines = {
            case.place: (case.key.id, case.thumbprint, fold(case.name))
            for case in cases
            if case.wanted is not None
        }
        ids = {case.ask.enrolment_id for case in cases if isinstance(case.ask, Poll)}
        transaction, now = self._transaction, self._now
        polled = await enrolments.find_many(transaction, ids, now) if ids else {}
        asked = (
            await enrolments.find_of_machines(transaction, set(machines.values()), now)
            if machines
            else {}
        )
        found = []
        for case in cases:
            if not isinstance(case.ask, Poll):
                case.earlier = asked.get(machines[case.place])
                found.append(case)
            elif self._poll(case, polled.get(case.ask.enrolment_id)):
                found.append(case)
        return found

    def _poll(self, case: _Case, found: Enrolment | None) -> bool:
        """Whether the polled enrolment is the machine's; it is refused otherwise."""
        if found is None or found.key_id != case.key.id:
            self._answer(case, refusal(EnrolmentCode.NOT_FOUND))
            return False
        if found.thumbprint != case.thumbprint:
            detail = "The enrolment was made with another key pair"
            self._answer(case, refusal(RefusalCode.KEY_MISMATCH, detail=detail))
            return False
        case.name = found.ice_name
        case.earlier = replace(found, address=case.ask.bearer.address)
        return True

    # --- writing ---------------------------------------------------------------------------------

    async def _carry_out(self, decided: _Decided) -> None:
        queue: list[tuple[_Case, Enrolment]] = []
        grants: list[_Granted] = []
        for case, ground, decision in decided:
            match decision:
                case Queue(enrolment):
                    queue.append((case, enrolment))
                case Grant():
                    grants.append((case, ground, decision))
                case End(enrolment):
                    await enrolments.update(self._transaction, enrolment)
                    self._answer(
                        case, requests.refused("The ICE has changed since the machine asked")
                    )
                case answer:
                    self._answer(case, answer)
        stored = [*await self._enqueue(queue), *await self._grant(grants)]
        if stored:
            await enrolments.forget_old(self._transaction, self._now)
            await enrolments.put(self._transaction, stored)

    async def _enqueue(self, queue: list[tuple[_Case, Enrolment]]) -> list[Enrolment]:
        """Let machines wait for an admin; returns what to store."""
        counts: dict[str, int] = {}
        stored = []
        for case, enrolment in queue:
            key_id = case.key.id
            if key_id not in counts:
                counts[key_id] = await enrolments.count_waiting(
                    self._transaction, key_id, self._now
                )
            if counts[key_id] >= rules.MAX_WAITING:
                self._answer(case, requests.queue_full())
                continue
            counts[key_id] += 1
            action = AuditAction.REQUEST_ENROLMENT
            event = enrolment_event(self._now, _machine(enrolment), action, enrolment)
            events.append(self._transaction, [event])
            self._answer(case, requests.waiting(enrolment, self._now))
            stored.append(enrolment)
        return stored

    async def _grant(self, grants: list[_Granted]) -> list[Enrolment]:
        """Give machines their tokens, and count the uses of their keys; returns what to store."""
        if not grants:
            return []
        issues = await self._sealing()
        if isinstance(issues, Problem):
            for case, *_ in grants:
                self._answer(case, issues)
            return []
        new = [granted for granted in grants if granted[2].action is Action.PROVISION]
        done = await self._provision(issues, new)
        for granted in grants:
            if granted[2].action is not Action.PROVISION:
                done += await self._renew(issues, granted)
        uses = Counter[str]()
        for (case, _, grant), _ in done:
            uses[case.key.id] += grant.uses
        await self._count(uses)
        return [requests.enrolled(grant.enrolment, case.key, ice) for (case, _, grant), ice in done]

    async def _sealing(self) -> Issuer | Problem:
        if self._issuer is None:
            self._issuer = await issuer(self._transaction, self._key_store, self._now, self._ttl)
        return self._issuer

    async def _provision(
        self, issues: Issuer, grants: list[_Granted]
    ) -> list[tuple[_Granted, Ice]]:
        """Provision ICEs; returns those that were."""
        if not grants:
            return []
        made: list[tuple[Ice, Secret]] = []
        rows = []
        for case, ground, grant in grants:
            enrolment = grant.enrolment
            owner = None if ground.user is None else ground.user.name
            ice, token = issues.provision(
                enrolment.ice_name, enrolment.ice_type, owner, enrolment.thumbprint
            )
            event = event_of(_machine(enrolment), Action.PROVISION, self._now, None, ice)
            event.detail.update(hostname=enrolment.hostname, key_thumbprint=enrolment.thumbprint)
            made.append((ice, token))
            rows.append((ice, event, case.key.labels))
        done = []
        logged = await ices.insert_many(self._transaction, rows)
        for granted, (ice, token), inserted in zip(grants, made, logged, strict=True):
            if inserted is None:
                self._answer(granted[0], requests.exists())
                continue
            self._answer(granted[0], Enrolled(ice.ice_name, token))
            done.append((granted, ice))
        return done

    async def _renew(self, issues: Issuer, granted: _Granted) -> list[tuple[_Granted, Ice]]:
        """Replace an ICE's token, whose row is locked since it was read."""
        case, ground, grant = granted
        assert ground.ice is not None  # noqa: S101 - the rules have looked
        enrolment, action = grant.enrolment, grant.action
        change = issues.renew(action, ground.ice, None, enrolment.thumbprint)
        if isinstance(change, Problem):
            self._answer(case, change)
            return []
        assert change.token is not None  # noqa: S101 - these actions issue one
        actor = _machine(enrolment)
        logged = await ice_changes.store(self._transaction, actor, action, [change], self._now)
        self._answer(case, Enrolled(change.new.ice_name, change.token), logged)
        return [(granted, change.new)]

    async def _count(self, uses: Counter[str]) -> None:
        for key_id, number in uses.items():
            if number:
                await enrolments.count_uses(self._transaction, key_id, number)
                key = self._keys[key_id]
                self._keys[key_id] = replace(key, uses=key.uses + number)


def _one_each(cases: Iterable[_Case]) -> tuple[list[_Case], list[_Case]]:
    """The first request of each machine, and the others."""
    first: dict[tuple[str, str], _Case] = {}
    others = [
        case for case in cases if first.setdefault((case.key.id, case.thumbprint), case) is not case
    ]
    return list(first.values()), others


def _machine(enrolment: Enrolment) -> Actor:
    return Actor(f"{rules.ACTOR_PREFIX}{enrolment.key_id}", Via.ICE, enrolment.address)
