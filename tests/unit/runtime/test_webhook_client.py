"""What counts as taken, and which addresses are dialled."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_network

import pytest
from aiohttp.abc import AbstractResolver

from gateway.runtime.webhook_client import WebhookClient
from tests.support.receiver import receiving

HEADERS = {"webhook-id": "m-1"}
LOOPBACK = [ip_network("127.0.0.0/8")]


class FakeResolver(AbstractResolver):
    """Answers each look-up with the next of `answers`, the last one again and again."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked += 1
        address = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": kind,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def receiver():
    async with receiving() as one:
        yield one


@pytest.mark.parametrize(("status", "taken"), [(200, True), (204, True), (299, True)])
async def test_a_2xx_counts(receiver, status, taken):
    receiver.answers = [status]
    outcome = await WebhookClient(LOOPBACK).post(receiver.url, HEADERS, b'{"type":"a"}')
    assert (outcome.status, outcome.taken, outcome.error) == (status, taken, None)
    assert receiver.taken == [("m-1", {"type": "a"})]


@pytest.mark.parametrize("status", [301, 307, 400, 404, 413, 500, 503])
async def test_anything_else_does_not_and_a_redirect_is_not_followed(receiver, status):
    receiver.answers = [status]
    outcome = await WebhookClient(LOOPBACK).post(receiver.url, HEADERS, b"{}")
    assert (outcome.status, outcome.error) == (status, f"answered {status}")
    assert receiver.came == ["m-1"]


async def test_a_receiver_that_hangs_is_left(receiver):
    receiver.hangs = True
    outcome = await WebhookClient(LOOPBACK).post(receiver.url, HEADERS, b"{}", seconds=0.05)
    assert outcome.status is None
    assert outcome.error.startswith("no answer within")


async def test_headers_without_end_are_refused():
    async def flood(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000)
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(flood, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await WebhookClient(LOOPBACK).post(f"http://127.0.0.1:{port}", HEADERS, b"{}")
    assert outcome.status is None
    assert len(outcome.error) <= 200


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.internal SECRET\r\n\r\n",
        b"HTTP/1.1 abc SECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSECRET\x1b[31m\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"SECRET" * 1000 + b"\r\n\r\n",
        b"",
    ],
)
async def test_nothing_of_a_broken_answer_or_of_the_url_is_told(answer):
    async def reply(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/SECRET"
        outcome = await WebhookClient(LOOPBACK).post(url, HEADERS, b"{}")
    assert outcome.status is None
    assert outcome.error == ("its answer is no HTTP" if answer else "it broke off its answer")


async def test_an_address_that_is_not_allowed_is_never_dialled(receiver):
    outcome = await WebhookClient().post(receiver.url, HEADERS, b"{}")
    assert "webhooks.allow" in outcome.error
    assert receiver.came == []


async def test_a_name_that_turns_private_on_the_second_look_is_not_dialled(receiver):
    """DNS rebinding: the address that is checked is the one of the socket."""
    resolver = FakeResolver("127.0.0.1", "127.8.8.8")
    client = WebhookClient([ip_network("127.0.0.1/32")], resolver)
    url = receiver.url.replace("127.0.0.1", "localhost")
    assert (await client.post(url, HEADERS, b"{}")).taken
    outcome = await client.post(url, HEADERS, b"{}")
    assert "127.8.8.8 is not a public address" in outcome.error
    assert resolver.asked == 2
    assert receiver.came == ["m-1"]


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00::1"]
)
async def test_a_public_name_of_a_private_address_is_not_dialled(address):
    client = WebhookClient(resolver=FakeResolver(address))
    outcome = await client.post("https://hooks.example.com/", HEADERS, b"{}")
    assert "is not a public address" in outcome.error


async def test_plain_http_never_leaves_the_machine():
    client = WebhookClient([ip_network("10.0.0.0/8")], FakeResolver("10.0.0.1"))
    outcome = await client.post("http://localhost:9/", HEADERS, b"{}")
    assert "plain http" in outcome.error


@pytest.mark.parametrize("url", ["https://2130706433/", "https://0x7f.1/", "https://[::1]/"])
async def test_other_spellings_of_this_machine_are_not_dialled(url):
    outcome = await WebhookClient().post(url, HEADERS, b"{}")
    assert outcome.error.startswith(("no connection: ", "its URL cannot be used"))


async def test_a_server_without_a_certificate_to_trust_gets_nothing(receiver):
    outcome = await WebhookClient(LOOPBACK).post(
        receiver.url.replace("http:", "https:"), HEADERS, b"{}"
    )
    assert outcome.status is None
    assert receiver.came == []
