"""Host names are looked up in threads of their own."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from gateway.runtime.http_client import HttpClient, Unreachable
from gateway.runtime.resolver import SystemResolver
from gateway.runtime.webhook_client import WebhookClient


class Names:
    """Look-ups that hang until `answer` is set."""

    def __init__(self):
        self.answer = threading.Event()
        self.asked = []
        self.daemons = set()

    def look_up(self, host, port, **hints):
        self.asked.append(host)
        self.daemons.add(threading.current_thread().daemon)
        self.answer.wait(30)
        return socket.getaddrinfo("127.0.0.1", port, **hints)


@pytest.fixture
def names():
    one = Names()
    yield one
    one.answer.set()


async def test_a_look_up():
    [found] = await SystemResolver().resolve("127.0.0.1", 80)
    assert (found["host"], found["port"], found["family"]) == ("127.0.0.1", 80, socket.AF_INET)


async def test_an_address_of_a_link_keeps_its_scope():
    def look_up(*_, **__):
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 2))]

    [found] = await SystemResolver(look_up).resolve("router", 80, socket.AF_INET6)
    assert found["host"] == "fe80::1%2"


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
async def test_a_name_that_cannot_be_looked_up(error):
    def look_up(*_, **__):
        raise error

    resolver = SystemResolver(look_up)
    for _ in range(2):  # nothing of the first one stays
        with pytest.raises(OSError, match=r"unknown|no host name"):
            await resolver.resolve("x", 80)


async def test_a_name_that_hangs_holds_one_thread_and_none_of_the_loop(names):
    resolver = SystemResolver(names.look_up, at_once=2)
    waiting = [asyncio.ensure_future(resolver.resolve("a", 80)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the others still get the answer
    other = asyncio.ensure_future(resolver.resolve("b", 80))
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="too many"):
        await resolver.resolve("c", 80)
    assert await asyncio.to_thread(lambda: 7) == 7
    names.answer.set()
    done = await asyncio.gather(*waiting[1:], other)
    assert [each[0]["host"] for each in done] == ["127.0.0.1"] * 20
    assert sorted(names.asked) == ["a", "b"]
    assert names.daemons == {True}


async def test_the_clients_do_not_wait_longer_than_they_should(names, monkeypatch):
    monkeypatch.setattr(SystemResolver.__init__, "__defaults__", (names.look_up, 64))
    outcome = await WebhookClient().post("https://hook.example/", {}, b"{}", 0.05)
    assert outcome.error == "no answer within 0 s"
    async with HttpClient(timeout=0.05) as client:
        with pytest.raises(Unreachable, match="did not answer"):
            await client.request("GET", "https://issuer.example/")
    assert names.asked == ["hook.example", "issuer.example"]
