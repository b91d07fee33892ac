"""The registrations of admissions, many in one statement: each is done, stale or failed by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.store.engine import StoreUnavailable
from gateway.store.ice_listing import Ices
from gateway.store.ice_registrar import IceRegistrar
from tests.contract.domain import (
    Between,
    add,
    an_event,
    an_ice,
    change,
    log,
    minutes,
    registered,
    soon,
    told,
)


@pytest.fixture
def between(engine):
    return Between(engine)


async def provisioned(engine, count):
    all_ices = [an_ice(f"lab-{number}") for number in range(count)]
    for ice in all_ices:
        await add(engine, ice)
    return all_ices


async def entries(engine, all_ices):
    table = Ices(engine)
    return [(await table.find(ice.ice_name)).ice for ice in all_ices]


class Registering:
    """Requests that wait until the one of `first`, which is being written, has been stored."""

    def __init__(self, between, *, fails=False, **options):
        self.registrar = IceRegistrar(between, **options)
        self.calls = between.calls
        self.gate = between.hold("write", fails=fails)

    def register(self, ice, new=None):
        new = new or registered(ice)
        return asyncio.create_task(
            self.registrar.register(ice, new, an_event("register", new, key=new.key_thumbprint))
        )

    async def all(self, first, *others):
        """What each request learns: of an ICE, or of an ICE and what it is to become."""
        others = [one if isinstance(one, tuple) else (one,) for one in others]
        begun = [self.register(first)]
        await soon(self.gate.reached.wait(), "the first write")
        begun += [self.register(*pair) for pair in others]
        await asyncio.wait(begun[1:], timeout=0)  # they have asked by now
        self.calls.clear()
        self.gate.open.set()
        return await soon(asyncio.gather(*begun, return_exceptions=True), "an answer to each")


async def test_those_that_wait_are_registered_by_one_write(engine, between):
    all_ices = await provisioned(engine, 20)
    before = len(await log(engine))
    logged = await Registering(between).all(*all_ices)
    assert between.calls["write"] == 1, "one write was expected for all that waited"
    assert await entries(engine, all_ices) == [registered(ice) for ice in all_ices]
    assert told(logged) == told((await log(engine))[before:]), "each was to learn its own event"


async def test_a_write_has_so_many_at_the_most(engine, between):
    first, *others = await provisioned(engine, 8)
    await Registering(between, max_batch=3).all(first, *others)
    assert between.calls["write"] == 3, "seven were expected in writes of three"


async def test_one_that_is_stale_is_refused_alone(engine, between):
    first, stale, *others = await provisioned(engine, 5)
    await change(engine, (stale, registered(stale)))
    before = len(await log(engine))
    done = await Registering(between).all(first, stale, *others)
    assert done[1] is None, "another change had come first"
    assert None not in (done[0], *done[2:])
    assert await entries(engine, others) == [registered(ice) for ice in others]
    assert len(await log(engine)) == before + 4, "a refused one was expected to log nothing"


async def test_one_that_breaks_a_rule_fails_alone(engine, between):
    first, bad, *others = await provisioned(engine, 4)
    without_key = replace(registered(bad), key_thumbprint=None)
    done = await Registering(between).all(first, (bad, without_key), *others)
    assert isinstance(done[1], Exception)
    assert await entries(engine, [bad]) == [bad]
    assert await entries(engine, others) == [registered(ice) for ice in others]


@pytest.mark.parametrize("while_written", [True, False])
async def test_of_two_of_one_ice_the_first_wins(engine, between, while_written):
    first, other, last = await provisioned(engine, 3)
    ice = first if while_written else other
    second = replace(registered(ice), key_thumbprint="another key")
    asked = [other, (ice, second), last]
    done = await Registering(between).all(first, *asked)
    assert done[2] is None, "the second was expected to read again"
    assert await entries(engine, [ice]) == [registered(ice)]
    assert None not in (done[1], done[3])
    assert between.calls["write"] == 1, "the others were to be registered together all the same"


async def test_the_next_try_of_an_ice_counts_where_the_first_has_failed(engine, between):
    ice, other = await provisioned(engine, 2)
    later = replace(registered(ice), registeredon=minutes(2))
    failed, appended, _ = await Registering(between, fails=True).all(ice, (ice, later), other)
    assert isinstance(failed, StoreUnavailable)
    assert appended.event.action == "register"
    assert await entries(engine, [ice]) == [later]


async def test_a_store_that_is_away_fails_all_and_serves_the_next(engine, between):
    all_ices = await provisioned(engine, 3)
    registrar = IceRegistrar(between)

    async def register():
        asked = [registrar.register(ice, registered(ice), an_event()) for ice in all_ices]
        return await soon(asyncio.gather(*asked, return_exceptions=True), "an answer to each")

    between.away = True
    assert [type(one) for one in await register()] == [StoreUnavailable] * 3
    assert await entries(engine, all_ices) == all_ices
    between.away = False
    assert None not in await register()
    assert await entries(engine, all_ices) == [registered(ice) for ice in all_ices]


async def test_a_registration_of_which_the_caller_has_gone_is_done_all_the_same(engine, between):
    (ice,) = await provisioned(engine, 1)
    registering = Registering(between)
    task = registering.register(ice)
    await soon(registering.gate.reached.wait(), "the write")
    task.cancel()
    registering.gate.open.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await entries(engine, [ice]) == [registered(ice)]
