"""`enrolment_keys` and `enrolments`, and two machines that ask at the same moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.core.enrolment import EnrolmentState, Wanted
from gateway.core.enrolment_request import Bearer, Enrolled, Waiting
from gateway.core.ice import IceType
from gateway.services.enrolment import AT_ONCE, EnrolmentService
from gateway.services.enrolment_keys import EnrolmentKeyService, NewKey
from gateway.store import enrolments, proofs
from gateway.store.enrolments import Enrolments
from gateway.store.key_file import KeyStore
from gateway.store.postgres.engine import open_postgres
from tests.contract.domain import NOW, ROOT


@pytest.fixture
def services(engine, tmp_path):
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


async def make(admins, **options):
    new = NewKey("lab", IceType.CI_CD, "lab-", NOW + timedelta(days=7), **options)
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


async def test_the_last_use_is_one_machines(services):
    admins, machines = services
    key, digest = await make(admins, max_uses=2)
    answers = await asyncio.gather(
        *(machines.request(bearer(key, digest, f"t{n}"), Wanted(f"pc-{n}", "")) for n in range(8))
    )
    assert sum(isinstance(answer, Enrolled) for answer in answers) == 2


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


async def test_a_key_that_is_revoked_meanwhile_makes_nothing(services):
    admins, machines = services
    key, digest = await make(admins, max_uses=9)
    revoked, *answers = await asyncio.gather(
        admins.revoke_key(ROOT, key.id),
        *(machines.request(bearer(key, digest, f"t{n}"), Wanted(f"pc{n}", "")) for n in range(4)),
    )
    assert revoked == replace(key, revokedon=NOW, uses=revoked.uses)
    assert sum(isinstance(answer, Enrolled) for answer in answers) == revoked.uses
