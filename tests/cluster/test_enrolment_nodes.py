"""Machines enrol at two nodes of one database: what one has taken, counted or revoked holds at the other."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from tests.support.harness import Harness
from tests.support.ice import Nomad, Refused
from tests.support.machine import CI_CD, ENROLMENTS, Machine, new_key


@dataclass
class Pair:
    """Two nodes."""

    a: Harness
    b: Harness

    async def machine(self, hostname="pc-1", **more) -> Machine:
        """A machine that goes to A, with a key of its own."""
        _, secret = await new_key(self.a, CI_CD, **more)
        return self.one_more(secret, hostname)

    def one_more(self, secret: str, hostname: str) -> Machine:
        return Machine(self.a.session, self.a.url, secret, hostname, public=Nomad.PUBLIC)

    def at(self, machine: Machine, node: Harness) -> Machine:
        """The same machine, going to another node."""
        there = Machine(node.session, node.url, machine.secret, machine.hostname, key=machine.key)
        there.public = machine.public
        return there


@pytest.fixture
async def pair(place):
    async with contextlib.AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(place.join(f"node-{name}")) for name in "ab"]
        yield Pair(a, b)
        await a.close()


async def test_a_proof_is_good_at_one_node(pair):
    one = await pair.machine()
    headers = one.headers("POST", ENROLMENTS)
    assert (await one.ask(headers))[0] == 201
    status, refused = await pair.at(one, pair.b).ask(headers)
    assert (status, refused["code"], refused["retry"]) == (401, "proof-invalid", True)


async def test_two_nodes_share_the_last_use(pair):
    one = await pair.machine(max_uses=3)
    machines = [pair.one_more(one.secret, f"pc-{number}") for number in range(12)]
    answers = await asyncio.gather(
        *(
            pair.at(machine, node).ask()
            for machine, node in zip(machines, [pair.a, pair.b] * 6, strict=True)
        )
    )
    assert sorted(status for status, _ in answers) == [201] * 3 + [401] * 9
    [key] = (await pair.b.admin.get("/enrolment-keys")).json["items"]
    assert key["uses"] == len((await pair.a.admin.get("/ices")).json["items"]) == 3


async def test_a_machine_that_asks_at_both_has_one_ice(pair):
    one = await pair.machine()
    answers = await asyncio.gather(one.ask(), pair.at(one, pair.b).ask())
    assert [status for status, _ in answers] == [201, 201]
    ices = [
        Nomad(node.url, body["token"], one.key)
        for node, (_, body) in zip([pair.a, pair.b], answers, strict=True)
    ]
    connected = [ice for ice in ices if await admitted(ice)]
    assert len(connected) == 1, "the later token alone was to be good"
    for connection in connected[0].connections:
        await connection.close()
    [key] = (await pair.b.admin.get("/enrolment-keys")).json["items"]
    assert key["uses"] == 1


async def admitted(ice: Nomad) -> bool:
    try:
        await ice.connect()
    except Refused as refused:
        if refused.code != "token-replaced":
            raise
        return False
    return True


async def test_one_node_approves_and_the_other_is_polled(pair):
    one = await pair.machine(approval=True)
    _, waits = await one.ask()
    there = pair.at(one, pair.b)
    assert (await there.poll(waits["enrolment"]))[0] == 202
    assert (await pair.a.admin.post(f"/enrolments/{waits['enrolment']}/approve")).status == 200
    status, made = await there.poll(waits["enrolment"])
    assert status == 200
    ice = Nomad(pair.a.url, made["token"], one.key)
    connection = await ice.connect()
    await connection.leave()
    await connection.close()


async def test_a_key_that_is_revoked_at_one_is_refused_at_the_other_at_once(pair):
    one = await pair.machine(max_uses=9)
    there = pair.at(one, pair.b)
    assert (await there.ask())[0] == 201
    [key] = (await pair.b.admin.get("/enrolment-keys")).json["items"]
    assert (await pair.a.admin.call("DELETE", f"/enrolment-keys/{key['id']}")).status == 204
    status, refused = await there.ask()
    assert (status, refused["code"]) == (401, "enrolment-key-invalid")
    assert "revoked" in refused["detail"]
