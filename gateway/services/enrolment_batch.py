"""Answers the requests of many machines in one transaction. Most statements read or write the rows of all of them.

Each request gets the answer that it would get alone, after those before it. A request that may depend on what an
earlier one of the batch writes begins another round, which reads that. The rules in `core.enrolment_request` know nothing of batches.

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
    Waiting,
)
from gateway.core.ice import Action, Ice, fold
from gateway.core.problems import Problem, refusal
from gateway.core.secret import Secret
from gateway.services import ice_changes
from gateway.services.enrolment_keys import enrolment_event
from gateway.services.ice_changes import Issuer, event_of, issuer
from gateway.store import accounts, enrolments, events, ices, proofs
from gateway.store.engine import AppendedEvent, Transaction
from gateway.store.enrolments import MachineName
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
    fault: Problem | None = None

    @property
    def thumbprint(self) -> str:
        return self.ask.bearer.thumbprint

    @property
    def machine_name(self) -> MachineName:
        return self.key.id, self.thumbprint, fold(self.name)

    @property
    def first_user(self) -> str | None:
        """What an admin has approved, or sees, is the user of the first request. A repetition changes nothing."""
        return self.user if self.earlier is None else self.earlier.provisionedto

    def decide(self, ground: Ground | None) -> Decision:
        if self.fault is not None:
            return self.fault
        assert ground is not None  # noqa: S101 - every request without a fault stands on one
        if self.wanted is not None:
            bearer = self.ask.bearer
            asked = requests.new_enrolment(ground, bearer, self.wanted, self.name, self.user)
            return requests.decide_request(ground, self.earlier, asked)
        assert self.earlier is not None  # noqa: S101 - a poll of no enrolment was refused
        return requests.decide_poll(ground, self.earlier)


_Decided = tuple[_Case, Ground | None, Decision]
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
        """Answer the first of the cases, and those after it as far as they do not depend on it; returns the others."""
        turn = _one_each(cases)
        for case in turn:
            await self._read(case)
        grounds = await self._grounds([case for case in turn if case.fault is None])
        decided: list[_Decided] = []
        named: set[str] = set()
        uses = Counter[str]()
        for case in turn:
            key, name = case.key, fold(case.name)
            if name in named or 0 < key.max_uses - key.uses <= uses[key.id]:
                break
            ground = grounds.get(case.place)
            decision = case.decide(ground)
            if isinstance(decision, Grant):
                named.add(name)
                uses[key.id] += decision.uses
            decided.append((case, ground, decision))
        await self._carry_out(decided)
        return [
            _Case(case.place, case.ask, self._keys[case.key.id]) for case in cases[len(decided) :]
        ]

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self, case: _Case) -> None:
        """Find out which ICE a request is about; a poll says so by its enrolment."""
        ask, key = case.ask, case.key
        if isinstance(ask, Poll):
            return
        if key.used_up and not await enrolments.has_asked(
            self._transaction, key.id, case.thumbprint, self._now
        ):
            case.fault = requests.used_up()
        elif isinstance(ask.wanted, Problem):
            case.fault = ask.wanted
        else:
            name, user = rules.name_for(key, ask.wanted), rules.user_for(key, ask.wanted)
            if isinstance(name, BadField):
                case.fault = requests.bad_field(name)
            elif isinstance(user, BadField):
                case.fault = requests.bad_field(user)
            else:
                case.wanted, case.name, case.user = ask.wanted, name, user

    async def _grounds(self, cases: list[_Case]) -> dict[int, Ground]:
        """What the decisions stand on, by the place of the request."""
        await self._find_earlier(cases)
        cases = [case for case in cases if case.fault is None]
        users = {case.first_user for case in cases if case.first_user is not None}
        # The users before the ICEs, as in the other actions: two transactions must not wait for each other.
        owners = await accounts.find_users(self._transaction, list(users)) if users else {}
        names = [case.name for case in cases]
        found = await ices.find_many(self._transaction, names) if names else {}
        grounds = {}
        for case in cases:
            user = case.first_user
            owner = None if user is None else owners.get(fold_user(user))
            ice = found.get(fold(case.name))
            grounds[case.place] = Ground(case.key, user is not None, owner, ice, self._now)
        return grounds

    async def _find_earlier(self, cases: list[_Case]) -> None:
        """Find what the machines have asked for before."""
        ids = {case.ask.enrolment_id for case in cases if isinstance(case.ask, Poll)}
        machines = {case.machine_name for case in cases if case.wanted is not None}
        transaction, now = self._transaction, self._now
        polled = await enrolments.find_many(transaction, ids, now) if ids else {}
        asked = await enrolments.find_of_machines(transaction, machines, now) if machines else {}
        for case in cases:
            if isinstance(case.ask, Poll):
                _take_polled(case, polled.get(case.ask.enrolment_id), case.ask)
            else:
                case.earlier = asked.get(case.machine_name)

    # --- writing ---------------------------------------------------------------------------------

    async def _carry_out(self, decided: list[_Decided]) -> None:
        queue: list[tuple[_Case, Enrolment]] = []
        grants: list[_Granted] = []
        for case, ground, decision in decided:
            match decision:
                case Queue(enrolment):
                    queue.append((case, enrolment))
                case Grant() if ground is not None:
                    grants.append((case, ground, decision))
                case End(enrolment):
                    await enrolments.update(self._transaction, enrolment)
                    self._answer(
                        case, requests.refused("The ICE has changed since the machine asked")
                    )
                case Waiting() | Problem():
                    self._answer(case, decision)
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


def _one_each(cases: Iterable[_Case]) -> list[_Case]:
    """The requests before the second one of a machine."""
    machines: set[tuple[str, str]] = set()
    turn = []
    for case in cases:
        machine = case.key.id, case.thumbprint
        if machine in machines:
            break
        machines.add(machine)
        turn.append(case)
    return turn


def _take_polled(case: _Case, found: Enrolment | None, poll: Poll) -> None:
    """Let a poll go on with its enrolment, if that is the machine's."""
    if found is None or found.key_id != case.key.id:
        case.fault = refusal(EnrolmentCode.NOT_FOUND)
    elif found.thumbprint != case.thumbprint:
        detail = "The enrolment was made with another key pair"
        case.fault = refusal(RefusalCode.KEY_MISMATCH, detail=detail)
    else:
        case.name = found.ice_name
        case.earlier = replace(found, address=poll.bearer.address)


def _machine(enrolment: Enrolment) -> Actor:
    return Actor(f"{rules.ACTOR_PREFIX}{enrolment.key_id}", Via.ICE, enrolment.address)
