import asyncio

import pytest

from client.agent import IceClient
from client.environment import Environment, Waits
from tests.client.scripted_gateway import FakeTime, ScriptedGateway, make_token
from tests.support.forks import forks

USUAL = Waits()


@pytest.fixture
def token():
    return make_token()


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
async def gateway(aiohttp_server):
    gateway = ScriptedGateway()
    server = await aiohttp_server(gateway.app())
    gateway.url = f"http://127.0.0.1:{server.port}"
    return gateway


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def events():
    return []


@pytest.fixture
def make_ice(gateway, folder, token, time, events):
    """Make a client of the scripted gateway; nothing is waited for."""

    def make(waits=USUAL, **options):
        around = Environment(
            now=time.now,
            monotonic=time.monotonic,
            sleep=time.sleep,
            uniform=time.uniform,
            waits=waits,
        )
        options = {
            "state_dir": folder,
            "token": token,
            "observe": events.append,
            "environment": around,
        } | options
        return IceClient(options.pop("gateway_url", gateway.url), **options)

    return make


@pytest.fixture
def run(gateway, make_ice):
    """Play a script: the outcome if the client stops by itself, None if it comes back and is admitted."""

    async def play(*turns, **options):
        gateway.script.extend(turns)
        async with make_ice(**options) as ice:
            stopped = asyncio.ensure_future(ice.wait())
            back = asyncio.ensure_future(gateway.after_script())
            await asyncio.wait({stopped, back}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
            back.cancel()
            if stopped.done():
                return stopped.result()
            assert back.done(), f"the ICE neither stopped nor came back after {gateway.handshakes}"
            stopped.cancel()
            return None

    return play


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """Starts processes of `ice-client`."""
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started
