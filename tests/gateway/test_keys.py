"""The life of the token keys, by command beside a gateway that runs."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import pytest

from gateway import keyfile
from gateway.cli.common import desk
from gateway.ice import IceType
from gateway.keys import KeyRefused, Keys
from gateway.secret import Secret
from gateway.times import utc_now
from gateway.tokens import Key, KeyRing
from tests.support.ice import until


@pytest.fixture
def command(running):
    """Runs `ice-gateway keys …`."""
    return functools.partial(running.command, "keys")


def ring(running):
    return keyfile.read(running.gateway.settings.key_file)


async def test_a_key_is_added_promoted_and_retired_beside_a_running_gateway(running, command):
    ice = await running.provision("lab-1")
    await ice.connect()
    [old] = [key.kid for key in ring(running).keys]
    new = (await command("rotate")).stdout.strip()
    assert ring(running).seals == old, "a new key only opens at first"
    await command("promote")
    second = await running.provision("lab-2")
    assert [listed.kid for listed in await states(running)] == [old, new]
    assert {listed.kid: listed.ices for listed in await states(running)} == {
        old: ["lab-1"],
        new: ["lab-2"],
    }
    await second.connect()
    stays = await command("retire", old, status=1)
    assert stays.stdout == "lab-1\n", "the ICEs in the way are listed"
    assert f"the key {old} is needed by 1 ICE," in stays.stderr
    again = (await running.act("lab-1", "reregister"))["token"]
    await command("retire", old)
    assert [key.kid for key in ring(running).keys] == [new]
    held = running.gateway.endpoint._admission._keys
    await until(lambda: [key.kid for key in held._ring.keys] == [new])
    assert (await ice.refused()).code == "token-invalid"
    ice.token = again
    await ice.connect()
    events = await running.admin.get("/events?limit=200")
    assert [
        (event["action"], event["detail"])
        for event in events.json["items"]
        if "key" in event["action"]
    ] == [
        ("rotate-keys", {"key": new}),
        ("promote-key", {"key": new}),
        ("retire-key", {"key": old}),
    ]


async def states(running):
    async with desk(running.gateway.settings) as opened:
        return await keys(opened).list()


def keys(opened):
    return Keys(engine=opened.engine, path=opened.settings.key_file, clock=utc_now)


@pytest.mark.parametrize("action", ["deregister", "reregister"])
async def test_a_key_is_needed_until_the_ice_has_another_token(running, command, action):
    ice = await running.provision("ci-1", "ci-cd")
    await ice.connect()
    [old] = [key.kid for key in ring(running).keys]
    await command("rotate")
    await command("promote")
    await command("retire", old, status=1)
    await running.act("ci-1", action)
    await command("retire", old)


async def test_an_entry_from_before_keys_were_kept_may_need_each_key_of_that_time(running, command):
    await running.provision("ci-1", "ci-cd")
    await running.gateway.engine.write(
        lambda transaction: transaction.run("UPDATE ice_tokens SET key_id = NULL")
    )
    path = running.gateway.settings.key_file
    [old] = ring(running).keys
    keyfile.replace(path, KeyRing([Key(old.kid, old.reveal())], old.kid))
    extra = (await command("rotate")).stdout.strip()
    await command("retire", extra)
    await command("rotate")
    await command("promote")
    assert (await command("retire", old.kid, status=1)).stdout == "ci-1\n"


async def test_what_cannot_be_done_is_said(running, command):
    none = await command("list", status=1)
    assert "there is no key file" in none.stderr
    await running.provision("ci-1", "ci-cd")
    seals = ring(running).seals
    for args, sentence in (
        (("promote",), f"the key {seals} seals already"),
        (("promote", "none"), "there is no key none"),
        (("retire", "none"), "there is no key none"),
        (("retire", seals), f"the key {seals} seals: promote another first"),
    ):
        said = await command(*args, status=1)
        assert sentence in said.stderr, f"keys {args} said {said.output}"
        assert len(said.stderr.splitlines()) == 1
    assert seals in (await command("list")).stdout
    assert '"seals": true' in (await command("list", "--json")).stdout


async def test_no_key_is_retired_under_a_token_that_is_being_made(running):
    """Each token that anybody was given opens, however sealing and retiring interleave."""
    tokens = []
    stop = asyncio.Event()

    async def provision(opened, name):
        number = 0
        while not stop.is_set():
            number += 1
            issued = await opened.provisioning.provision(
                opened.actor, f"{name}-{number}", IceType.CI_CD, None
            )
            tokens.append(issued.token)
            if number % 2:
                await opened.provisioning.reprovision(opened.actor, f"{name}-{number}")
                tokens.pop()

    async with contextlib.AsyncExitStack() as stack:
        desks = [await stack.enter_async_context(desk(running.gateway.settings)) for _ in range(3)]
        await running.provision("ci-1", "ci-cd")
        work = [asyncio.create_task(provision(each, f"d{n}")) for n, each in enumerate(desks[:2])]
        master = keys(desks[2])
        retired = 0
        for _ in range(12):
            before = ring(running).seals
            await master.promote(desks[2].actor, await master.rotate(desks[2].actor))
            retired += not isinstance(await master.retire(desks[2].actor, before), KeyRefused)
        stop.set()
        await asyncio.gather(*work)
        held = ring(running)
        needed = {kid for state in await master.list() if (kid := state.kid) and state.ices}
    lost = [token for token in tokens if not hasattr(held.open(Secret(token.reveal())), "digest")]
    assert not lost, f"{len(lost)} of {len(tokens)} tokens do not open"
    assert needed <= {key.kid for key in held.keys}
    assert retired < 12, "the race must have been one: no retirement met an entry"
