"""The life of an ICE: provisioned, registered, admitted, deregistered, reregistered."""

from __future__ import annotations

from tests.support.harness import harness
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


async def test_a_gateway_on_a_machine_whose_name_is_not_utf_8(tmp_path, monkeypatch):
    """The system gives octets; Python stands lone surrogates in for those that are no UTF-8."""
    monkeypatch.setattr("socket.gethostname", lambda: "b\udcfcro-7")
    async with harness(tmp_path, node__name="") as running:
        await (await running.provision("lab-1")).connect()
        shown = await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
        assert shown.json["connection"]["node"] == "b\\udcfcro-7"
        await running.command("ices", "deregister", "lab-1")
        *_, event = (await running.admin.get("/events?ice_name=lab-1")).json["items"]
        assert event["address"] == "b\\udcfcro-7"
