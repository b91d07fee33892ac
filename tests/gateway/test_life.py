"""The life of an ICE: provisioned, registered, admitted, deregistered, reregistered."""

from __future__ import annotations

from tests.support.ice import Key


async def test_whole_life_of_an_ice(running):
    ice = await running.provision("lab-1")
    assert await running.status("lab-1") == "provisioned"

    first = await ice.connect()
    assert await running.status("lab-1") == "registered"
    assert first.welcome["ice_name"] == "lab-1"
    assert first.welcome["operations"] == [
        "scrape",
        "debug",
        "execute",
        "remote-execute",
        "schedule",
    ]

    thief = running.ice(ice.token, Key())
    assert (await thief.refused()).code == "key-mismatch"

    ended = await running.act("lab-1", "deregister")
    assert [drop["code"] for drop in ended["dropped"]] == [4101]
    assert ended["ice"]["connection"] is None
    assert await first.expect_dropped(4101) == "deregistered"
    assert (await ice.refused()).code == "deregistered"

    renewed = await running.act("lab-1", "reregister")
    assert (await ice.refused()).code == "token-replaced"
    second = await running.ice(renewed["token"]).connect()
    assert second.welcome["generation"] == 3


async def test_same_key_and_token_again_supersedes(running):
    ice = await running.provision("lab-1")
    first = await ice.connect()
    second = await ice.connect()
    assert await first.expect_dropped(4103) == "superseded"
    await second.round_trip()
