"""A name with several addresses: one that is silent keeps nobody from the others."""

import asyncio
import contextlib
import socket

import pytest

from client.environment import Waits
from tests.client.scripted_gateway import ScriptedGateway
from tests.support.authority import Authority
from tests.support.connect_proxy import connect_proxy

SILENT, LIVE = "127.0.0.2", "127.0.0.1"


@pytest.fixture
def names(monkeypatch):
    """The addresses of each name that is resolved, in their order."""
    names, real = {}, socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **more):
        if host not in names:
            return real(host, port, *rest, **more)
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in names[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


SHORT = Waits(silence=0.5)
"""An address that has accepted has half a second in place of 10."""


@contextlib.contextmanager
def silent(port, *, accepts=True, address=SILENT):
    """Something that never says a word at an address of its own; or that drops what comes to it."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind((address, port))
        listener.listen(100 if accepts else 0)
        for _ in range(0 if accepts else 4):  # no more fit, so that a SYN is dropped
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex((address, port))
        yield listener


def accepted(listener):
    """How many connections have come to a silent one."""
    listener.setblocking(False)
    number = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


@pytest.fixture
async def tls_gateway(aiohttp_server, tmp_path):
    authority = Authority(tmp_path)
    gateway = ScriptedGateway()
    context = authority.server_context("gateway.test")
    server = await aiohttp_server(gateway.app(), ssl=context)
    gateway.port, gateway.ca_file = server.port, authority.file
    return gateway


async def admitted(ice, within=SHORT.handshake):
    async with ice, asyncio.timeout(within):
        await ice.connected()


@pytest.mark.parametrize("accepts", [False, True])
async def test_the_other_address_is_tried_within_the_attempt(
    accepts, *, gateway, make_ice, names, time
):
    port = int(gateway.url.rpartition(":")[2])
    names["gateway.test"] = [SILENT, LIVE]
    with silent(port, accepts=accepts):
        await admitted(
            make_ice(gateway_url=f"http://gateway.test:{port}", insecure=True, waits=SHORT)
        )
    assert time.delays == [], "one attempt was to do"


async def test_so_it_is_where_tls_is_silent(tls_gateway, make_ice, names, time):
    names["gateway.test"] = [SILENT, LIVE]
    url = f"https://gateway.test:{tls_gateway.port}"
    with silent(tls_gateway.port):
        await admitted(make_ice(gateway_url=url, ca_file=tls_gateway.ca_file, waits=SHORT))
    assert time.delays == []


@pytest.mark.parametrize("accepts", [False, True])
async def test_so_it_is_with_a_proxys_addresses(
    accepts, *, tls_gateway, make_ice, names, time, monkeypatch
):
    async with connect_proxy() as proxy:
        proxy.routes["gateway.test:443"] = tls_gateway.port
        names["proxy.test"] = [SILENT, LIVE]
        monkeypatch.setenv("HTTPS_PROXY", f"http://proxy.test:{proxy.port}")
        with silent(proxy.port, accepts=accepts):
            options = {"gateway_url": "https://gateway.test", "ca_file": tls_gateway.ca_file}
            await admitted(make_ice(**options, waits=SHORT))
    assert time.delays == []


async def test_all_but_one_may_be_silent(gateway, make_ice, names, time):
    port = int(gateway.url.rpartition(":")[2])
    names["gateway.test"] = [SILENT, "127.0.0.3", LIVE]
    with silent(port), silent(port, address="127.0.0.3"):
        await admitted(
            make_ice(gateway_url=f"http://gateway.test:{port}", insecure=True, waits=SHORT)
        )
    assert time.delays == []


async def test_one_that_was_silent_is_left_out_until_the_others_fail(gateway, make_ice, names):
    port = int(gateway.url.rpartition(":")[2])
    names["gateway.test"] = [SILENT, LIVE]
    came = []
    with silent(port) as listener:

        def observe(event):
            if event.kind in ("admitted", "refused"):
                came.append((event.kind, accepted(listener)))
            if event.kind == "refused":
                names["gateway.test"] = [SILENT, LIVE]

        url = f"http://gateway.test:{port}"
        async with (
            make_ice(gateway_url=url, insecure=True, observe=observe, waits=SHORT),
            asyncio.timeout(SHORT.handshake),
        ):
            first = await gateway.held.get()
            await first.socket.close(code=4201)
            second = await gateway.held.get()
            names["gateway.test"] = [SILENT, "127.0.0.4"]  # where nobody listens
            await second.socket.close(code=4201)
            third = await gateway.held.get()
            await third.expect("ice.hello")
    assert came == [("admitted", 1), ("admitted", 0), ("refused", 0), ("admitted", 1)]


async def test_an_address_alone_has_all_the_time(gateway, make_ice):
    waits = Waits(silence=0.5, handshake=1.5)
    port = int(gateway.url.rpartition(":")[2])
    told = []
    with silent(port) as listener:

        def observe(event):
            if event.kind == "refused":
                told.append((str(event), accepted(listener)))
                ice.stop()

        url = f"http://{SILENT}:{port}"
        async with make_ice(gateway_url=url, observe=observe, waits=waits) as ice:
            await ice.wait()
    [(line, connections)] = told
    assert connections == 1
    assert line.startswith(f"unreachable: No answer from {SILENT}:{port}")
