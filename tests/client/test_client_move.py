"""An ICE that moves to another gateway: contract section 8, on the token file and the stored token."""

import pytest

from client.backoff import Stopped
from client.credentials import Token
from client.identity import Identity, StateFolder, same_gateway
from tests.client.scripted_gateway import NOW, ScriptedGateway, make_token, refuse

OLD, NEWER = make_token(NOW - 100), make_token(NOW)


@pytest.fixture
async def other(aiohttp_server):
    """The gateway that the ICE moves to."""
    gateway = ScriptedGateway()
    server = await aiohttp_server(gateway.app())
    gateway.url = f"http://127.0.0.1:{server.port}"
    return gateway


@pytest.fixture
async def at_home(make_ice):
    """The ICE has been admitted at its first gateway, with the token NEWER."""
    async with make_ice(token=NEWER) as ice:
        await ice.connected()


def brought(gateway):
    return [
        handshake.headers["Authorization"].removeprefix("DPoP ") for handshake in gateway.handshakes
    ]


async def test_an_older_token_for_another_gateway_is_used_there(at_home, make_ice, other, folder):
    async with make_ice(gateway_url=other.url, token=OLD) as ice:
        await ice.connected()
    assert brought(other) == [OLD]
    assert StateFolder(folder).token() == Token(OLD), "it was admitted, and is the stored one now"
    async with make_ice(gateway_url=other.url, token=None) as ice:
        await ice.connected()
    assert brought(other) == [OLD, OLD]
    assert not (folder / "token.moving").exists()


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("code", ["token-invalid", "token-replaced", "token-expired"])
async def test_the_stored_token_is_tried_where_the_given_one_is_refused(
    code, make_ice, other, folder, events
):
    other.script.append(refuse(code))
    async with make_ice(gateway_url=other.url, token=OLD) as ice:
        await ice.connected()
    assert brought(other) == [OLD, NEWER]
    assert StateFolder(folder).token() == Token(NEWER)
    assert not (folder / "token.moving").exists()
    [warning] = [str(event) for event in events if event.kind == "warning"]
    assert warning.endswith("(trying the stored token)")


async def test_where_both_are_refused_it_stops_and_says_why_the_given_one_was(
    at_home, make_ice, other, folder
):
    for _ in range(2):  # the stored token is kept until one was admitted, and so is the other
        other.script.extend([refuse("token-expired"), refuse("token-invalid")])
    for token in (OLD, None):
        async with make_ice(gateway_url=other.url, token=token) as ice:
            assert await ice.wait() == Stopped("token-expired", "detail of token-expired")
    assert brought(other) == [OLD, NEWER] * 2
    assert StateFolder(folder).token() == Token(NEWER)


async def test_a_move_that_was_interrupted_goes_on(at_home, make_ice, other, folder, time):
    other.script.append(refuse("overloaded"))
    async with make_ice(gateway_url=other.url, token=OLD) as ice:
        await time.after_sleeps(1)
        ice.stop()
    other.script.append(refuse("token-invalid"))
    async with make_ice(gateway_url=other.url, token=None) as ice:
        await ice.connected()
    assert brought(other)[-2:] == [OLD, NEWER]


async def test_without_a_token_for_it_a_move_does_not_retry_for_ever(at_home, make_ice, other):
    other.script.append(refuse("token-invalid"))
    async with make_ice(gateway_url=other.url, token=None) as ice:
        assert (await ice.wait()).code == "token-invalid"


async def test_back_at_home_the_stored_token_serves(at_home, make_ice, other, gateway, folder):
    other.script.extend([refuse("token-invalid"), refuse("token-invalid")])
    async with make_ice(gateway_url=other.url, token=OLD) as ice:
        await ice.wait()
    async with make_ice(token=None) as ice:
        await ice.connected()
    assert brought(gateway)[-1] == NEWER
    assert not (folder / "token.moving").exists()


async def test_an_older_token_for_the_same_gateway_is_not_used(at_home, make_ice, gateway, events):
    async with make_ice(gateway_url=gateway.url + "/", token=OLD) as ice:
        await ice.connected()
    assert brought(gateway)[-1] == NEWER
    assert "not newer" in str(next(event for event in events if event.kind == "warning"))


@pytest.mark.parametrize(
    ("one", "other_url", "same"),
    [
        ("https://gw.example", "https://GW.example:443/", True),
        ("http://gw.example/ice", "http://gw.example:80/ice/", True),
        ("https://gw.example:8440", "http://gw.example:8440", True),
        ("https://gw.example", "https://gw.example:8440", False),
        ("https://gw.example/a", "https://gw.example/b", False),
        ("https://gw.example", "https://gw2.example", False),
    ],
)
def test_a_gateway_is_the_same_however_it_is_written(one, other_url, same):
    assert same_gateway(one, other_url) is same


def test_a_first_run_at_a_wrong_address_does_not_hold_the_ice(folder):
    for gateway, token in (("https://typo.example", NEWER), ("https://gw.example", OLD)):
        identity = Identity(folder, Token(token), gateway)
        identity.update_state(gateway=gateway)
        identity.close()
    assert identity.token == Token(OLD)
    assert identity.try_next_token()
    assert identity.token == Token(NEWER)
