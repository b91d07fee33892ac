"""`enrolment_keys` and `enrolments`, and two machines that ask at the same moment."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta

import pytest

from client.protocol import EnrolmentCode
from gateway.core.enrolment import EnrolmentState, Wanted
from gateway.core.enrolment_request import Bearer, Enrolled, NotGenuine, Waiting
from gateway.core.ice import IceType, Status
from gateway.core.problems import Problem, refusal
from gateway.services.enrolment import AT_ONCE, EnrolmentService
from gateway.services.enrolment_keys import EnrolmentKeyService, NewKey
from gateway.store import enrolments, ices, proofs
from gateway.store.engine import Part
from gateway.store.enrolments import Enrolments
from gateway.store.key_file import KeyStore
from gateway.store.postgres.engine import open_postgres
from tests.contract.domain import NOW, ROOT, an_event

BAD_BODY = refusal(EnrolmentCode.MALFORMED_JSON)


@pytest.fixture
def services(engine, tmp_path):
    return serve(engine, tmp_path)


def serve(engine, tmp_path):
    class Confirmer:
        async def confirm(self, logged):
            """No node has a session."""

    acts = {
        "engine": engine,
        "keys": KeyStore(tmp_path / "keys.json"),
        "clock": lambda: NOW,
        "registration_ttl": 0,
        "confirmer": Confirmer(),
    }
    return EnrolmentKeyService(**acts), EnrolmentService(**acts)


async def make(admins, prefix="lab-", **options):
    new = NewKey("lab", IceType.CI_CD, prefix, NOW + timedelta(days=7), **options)
    made = await admins.create_key(ROOT, new)
    return made.key, made.secret.digest()


def bearer(key, digest, thumbprint="t", proof=""):
    return Bearer(key.id, digest, thumbprint, "::1", proof)


async def test_a_key_is_kept_as_it_was_made(engine, services):
    key, _ = await make(services[0], labels={"site": "north"}, approval=True, max_uses=7)
    assert await Enrolments(engine).key(key.id) == key
    assert await Enrolments(engine).keys_before(9, None) == [key]
    assert await Enrolments(engine).keys_before(9, key.place) == []


async def test_keys_are_counted_and_found_by_their_ids(engine, services):
    table = Enrolments(engine)
    found = [(await make(services[0]))[0] for _ in range(3)]
    newest = sorted(found, key=lambda key: key.place, reverse=True)
    assert await table.count_keys() == 3
    assert await table.keys_before(1, None, 1) == newest[1:2]
    assert await table.keys([found[0].id, "unknown"]) == {found[0].id: found[0]}
    assert await table.keys([]) == {}


async def test_enrolments_are_listed_by_their_place_and_number(engine, services):
    admins, machines = services
    key, digest = await make(admins, max_uses=9, approval=True)
    for name in ("a", "b", "c"):
        await machines.request(bearer(key, digest, name), Wanted(f"pc-{name}", ""))
    table = Enrolments(engine)
    found = await table.after(EnrolmentState.WAITING, NOW, 9)
    assert await table.after(EnrolmentState.WAITING, NOW, 1, offset=1) == found[1:2]
    assert await table.after(None, NOW, 9, found[0].place, 1) == found[2:]


def transactions(engine, monkeypatch):
    """Counts the transactions from now on."""
    counted = []
    transact = engine._writes.transact

    async def counting(units):
        counted.append(len(units))
        return await transact(units)

    monkeypatch.setattr(engine._writes, "transact", counting)
    return counted


async def test_the_last_use_is_one_machines(engine, services, monkeypatch):
    admins, machines = services
    key, digest = await make(admins, max_uses=2)
    counted = transactions(engine, monkeypatch)
    answers = await asyncio.gather(
        *(machines.request(bearer(key, digest, f"t{n}"), Wanted(f"pc-{n}", "")) for n in range(8))
    )
    assert sum(isinstance(answer, Enrolled) for answer in answers) == 2
    assert counted == [1]


async def test_many_machines_are_written_in_turns(engine, services, monkeypatch):
    """Or else those of one node would hold the key for longer than another node waits."""
    admins, machines = services
    key, digest = await make(admins, max_uses=9 * AT_ONCE)
    writing, most = 0, 0
    write = engine.write

    async def counted(unit):
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        try:
            return await write(unit)
        finally:
            writing -= 1

    monkeypatch.setattr(engine, "write", counted)
    answers = await asyncio.gather(
        *(
            machines.request(bearer(key, digest, f"t{n}"), Wanted(f"pc-{n}", ""))
            for n in range(3 * AT_ONCE)
        )
    )
    assert all(isinstance(answer, Enrolled) for answer in answers)
    assert most == AT_ONCE


async def test_one_name_is_one_machines(services):
    admins, machines = services
    key, digest = await make(admins, max_uses=9)
    answers = await asyncio.gather(
        *(machines.request(bearer(key, digest, f"t{n}"), Wanted("pc", "")) for n in range(8))
    )
    assert sum(isinstance(answer, Enrolled) for answer in answers) == 1
    assert {answer.code for answer in answers if not isinstance(answer, Enrolled)} == {"ice-exists"}


async def test_enrolments_wait_are_decided_and_forgotten(engine, services):
    admins, machines = services
    key, digest = await make(admins, approval=True, max_uses=9)
    first = await machines.request(bearer(key, digest, "t1"), Wanted("pc-1", "linux"))
    second = await machines.request(bearer(key, digest, "t2"), Wanted("pc-2", "linux"))
    assert isinstance(first, Waiting)
    reads = Enrolments(engine)
    assert await reads.waiting(NOW) == 2
    await admins.approve(ROOT, first.id)
    await admins.reject(ROOT, second.id)
    states = {each.id: each.state for each in await reads.after(None, NOW, 9, None)}
    assert states == {first.id: EnrolmentState.APPROVED, second.id: EnrolmentState.REJECTED}
    assert [each.id for each in await reads.after(EnrolmentState.REJECTED, NOW, 9, None)] == [
        second.id
    ]
    approved = await reads.one(first.id, NOW)
    assert (approved.hostname, approved.platform, approved.decidedby) == ("pc-1", "linux", "root")
    late = NOW + timedelta(days=7)
    assert await reads.one(first.id, late) is None
    await engine.write(lambda t: enrolments.forget_old(t, late))
    assert await engine.fetch("SELECT 1 FROM enrolments") == []


async def test_two_approvals_for_one_name_at_once(services):
    admins, machines = services
    key, digest = await make(admins, approval=True, max_uses=9)
    asked = [
        await machines.request(bearer(key, digest, f"t{n}"), Wanted("pc", "")) for n in range(4)
    ]
    answers = await asyncio.gather(*(admins.approve(ROOT, each.id) for each in asked))
    assert sorted(getattr(answer, "code", "approved") for answer in answers) == [
        "approved",
        *["ice-exists"] * 3,
    ]


async def test_a_proof_is_used_once_among_nodes(database_url):
    async with open_postgres(database_url, tell=lambda _: None) as engine:
        used = [await engine.write(lambda t: proofs.use(t, ["digest"])) for _ in range(2)]
    assert used == [{"digest"}, set()]


class Play:
    """Machines that ask, with a key of their own of each kind; the same seed plays the same."""

    def __init__(self, engine, services, prefix):
        self.engine = engine
        self.admins, self.machines = services
        self.prefix = prefix
        self.ids = {}
        """The enrolments by machine, as they were told."""

    async def begin(self):
        options = {"prefix": self.prefix, "max_uses": 6}
        self.keys = [
            await make(self.admins, **options),
            await make(self.admins, **options, approval=True),
            await make(self.admins, **{**options, "max_uses": 1}),
        ]
        revoked = await make(self.admins, **options)
        await self.admins.revoke_key(ROOT, revoked[0].id)
        self.keys.append(revoked)

    def asks(self, chance):
        """Some requests, as functions that ask them."""
        return [self.ask(chance) for _ in range(chance.randrange(1, 12))]

    def ask(self, chance):
        key, digest = self.keys[chance.choice((0, 0, 0, 1, 1, 1, 2, 3))]
        number = self.keys.index((key, digest))
        machine, name = f"t{chance.randrange(4)}", f"pc-{chance.randrange(4)}"
        who = bearer(key, "wrong" if chance.random() < 0.05 else digest, machine)
        kind = chance.random()
        if kind < 0.25:
            enrolment = self.ids.get((number, f"t{chance.randrange(4)}"), "0" * 24)
            return lambda: self.told(number, machine, self.machines.poll(who, enrolment))
        wanted = Wanted(name, "")
        if kind < 0.35:
            wanted = chance.choice(
                (
                    BAD_BODY,
                    Wanted("-", ""),
                    Wanted(name, "", ice_name="other"),
                    Wanted(name, "", None, "bob"),
                )
            )
        return lambda: self.told(number, machine, self.machines.request(who, wanted))

    async def told(self, number, machine, asking):
        """What a machine was told, but for what differs by chance."""
        answer = await asking
        match answer:
            case Waiting():
                self.ids.setdefault((number, machine), answer.id)
                return "waits", answer.id == self.ids[number, machine]
            case Enrolled():
                return "enrolled", answer.ice_name.removeprefix(self.prefix)
            case NotGenuine():
                return "not genuine"
        return answer.code, answer.detail.replace(self.prefix, "")

    async def meanwhile(self, chance):
        """An admin decides; ICEs register."""
        mine = {key.id for key, _ in self.keys}
        table = Enrolments(self.engine)
        waits = await table.after(EnrolmentState.WAITING, NOW, 99)
        for each in sorted(waits, key=lambda each: (each.thumbprint, each.ice_name)):
            if each.key_id in mine and chance.random() < 0.4:
                decide = chance.choice((self.admins.approve, self.admins.reject))
                await decide(ROOT, each.id)
        for name, ice in sorted((await self.ices()).items()):
            if ice.status is Status.PROVISIONED and chance.random() < 0.3:
                new = ice.register(name, now=NOW)
                await self.engine.write(Part(ices.register, (ice, new, an_event("register", new))))

    async def ices(self):
        names = [f"{self.prefix}pc-{number}" for number in range(4)]
        found = await self.engine.write(lambda t: ices.find_many(t, names))
        return {name.removeprefix(self.prefix): ice for name, ice in found.items()}

    async def state(self):
        """What the tables say."""
        table = Enrolments(self.engine)
        keys = await table.keys([key.id for key, _ in self.keys])
        number = {key.id: place for place, (key, _) in enumerate(self.keys)}
        return (
            [keys[key.id].uses for key, _ in self.keys],
            {name: (ice.generation, ice.status) for name, ice in (await self.ices()).items()},
            sorted(
                (
                    number[each.key_id],
                    each.thumbprint,
                    each.ice_name.removeprefix(self.prefix),
                    each.state,
                    each.generation or 0,
                )
                for each in await table.after(None, NOW, 999)
                if each.key_id in number
            ),
        )


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 12))]
)
async def test_requests_of_one_transaction_are_answered_as_one_after_the_other(
    engine, services, monkeypatch, seed
):
    alone, together = Play(engine, services, "one-"), Play(engine, services, "two-")
    await alone.begin()
    await together.begin()
    for turn in range(6):
        chances = [random.Random(f"{seed} {turn}") for _ in range(2)]  # noqa: S311 - a story
        expected = [await ask() for ask in alone.asks(chances[0])]
        with monkeypatch.context() as patch:
            counted = transactions(engine, patch)
            answers = await asyncio.gather(*(ask() for ask in together.asks(chances[1])))
        assert answers == expected
        assert counted == [1], "one transaction, of one unit, was expected for all requests"
        assert await together.state() == await alone.state()
        await alone.meanwhile(chances[0])
        await together.meanwhile(chances[1])


class Broken:
    """What a machine wants, and nobody can read."""

    @property
    def ice_name(self):
        raise ZeroDivisionError


async def test_a_request_that_fails_fails_alone(engine, services):
    admins, machines = services
    key, digest = await make(admins, max_uses=9)
    wants = [Wanted("pc-0", ""), Broken(), Wanted("pc-2", "")]
    answers = await asyncio.gather(
        *(machines.request(bearer(key, digest, f"t{n}"), want) for n, want in enumerate(wants)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [Enrolled, ZeroDivisionError, Enrolled]
    assert (await Enrolments(engine).key(key.id)).uses == 2


async def test_many_enrolments_take_few_statements(engine, services, monkeypatch):
    admins, machines = services
    key, digest = await make(admins, max_uses=99)
    ran = []
    transact = engine._writes.transact

    async def watched(units):
        async def watching(transaction):
            for name in ("fetch", "hold", "run"):
                monkeypatch.setattr(
                    transaction, name, noting(getattr(transaction, name)), raising=True
                )
            return await units[0](transaction)

        return await transact([watching])

    def noting(method):
        async def noted(sql, *params):
            ran.append(sql)
            return await method(sql, *params)

        return noted

    monkeypatch.setattr(engine._writes, "transact", watched)
    counts = []
    for first, number in ((0, 1), (1, 64)):
        ran.clear()
        await asyncio.gather(
            *(
                machines.request(bearer(key, digest, f"t{n}"), Wanted(f"pc-{n}", ""))
                for n in range(first, first + number)
            )
        )
        counts.append(len(ran))
    assert counts[0] == counts[1] > 0


async def test_a_proof_is_good_for_one_of_the_requests_of_a_transaction(database_url, tmp_path):
    async with open_postgres(database_url, tell=lambda _: None) as engine:
        admins, machines = serve(engine, tmp_path)
        key, digest = await make(admins, max_uses=9)
        answers = await asyncio.gather(
            *(
                machines.request(bearer(key, digest, f"t{n}", "digest"), Wanted(f"pc-{n}", ""))
                for n in range(3)
            )
        )
        later = await machines.request(bearer(key, digest, "t9", "digest"), Wanted("pc-9", ""))
    assert [type(answer) for answer in answers] == [Enrolled, Problem, Problem]
    assert {answer.code for answer in (*answers[1:], later)} == {"proof-invalid"}


async def test_a_key_that_is_revoked_meanwhile_makes_nothing(services):
    admins, machines = services
    key, digest = await make(admins, max_uses=9)
    revoked, *answers = await asyncio.gather(
        admins.revoke_key(ROOT, key.id),
        *(machines.request(bearer(key, digest, f"t{n}"), Wanted(f"pc{n}", "")) for n in range(4)),
    )
    assert revoked == replace(key, revokedon=NOW, uses=revoked.uses)
    assert sum(isinstance(answer, Enrolled) for answer in answers) == revoked.uses
