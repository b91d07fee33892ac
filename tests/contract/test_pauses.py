"""Pauses as they are stored and found, on both engines."""

from __future__ import annotations

from datetime import timedelta

from gateway.core.pause import Pause
from gateway.store import pauses
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from tests.contract.domain import NOW, add_registered, an_event, change, minutes, reregistered

PAUSE = Pause("root", NOW, minutes(5), "lunch\n2", by_admin=True)


async def put(engine, name, pause):
    event = an_event("pause")
    await engine.write(lambda transaction: pauses.set_pauses(transaction, [(name, pause, event)]))


async def found(engine, paused, now):
    page = await IceListing(engine).page(IceFilter(paused=paused, now=now), 10)
    return [listed.ice.ice_name for listed in page]


async def test_a_pause_is_stored_and_read(engine):
    ice = await add_registered(engine)
    assert (await IceListing(engine).find("lab-1")).pause is None
    for pause in (PAUSE, Pause("alice", minutes(1)), None):
        await put(engine, "lab-1", pause)
        listed = await IceListing(engine).find("lab-1")
        assert listed.pause == pause
        read = await engine.write(lambda transaction: pauses.pauses_of(transaction, ["lab-1"]))
        assert read == {"lab-1": pause}
    await put(engine, "lab-1", PAUSE)
    await change(engine, (ice, reregistered(ice)))
    assert (await IceListing(engine).find("lab-1")).pause == PAUSE


async def test_only_what_holds_is_found_and_counted(engine):
    for name in ("lab-1", "lab-2", "lab-3"):
        await add_registered(engine, name)
    await put(engine, "lab-1", PAUSE)
    await put(engine, "lab-2", Pause("root", NOW))
    last = PAUSE.until - timedelta(microseconds=1)
    assert await found(engine, True, last) == ["lab-1", "lab-2"]
    assert await found(engine, False, last) == ["lab-3"]
    assert await found(engine, True, PAUSE.until) == ["lab-2"]
    assert await found(engine, False, PAUSE.until) == ["lab-1", "lab-3"]
    for where in (IceFilter(now=last), IceFilter(words=("lab",), now=last)):
        assert (await IceListing(engine).counts(where, last)).paused == 2
        assert (await IceListing(engine).counts(where, PAUSE.until)).paused == 1
    listed = await IceListing(engine).find("lab-1")
    assert (listed.paused(last), listed.paused(PAUSE.until)) == (PAUSE, None)
