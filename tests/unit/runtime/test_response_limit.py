"""A server that never comes to its final response is left at once."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_network

import pytest

from gateway.runtime.http_client import HttpClient, Unreachable
from gateway.runtime.response_limit import MAX_RECEIVED, MAX_RESPONSES
from gateway.runtime.webhook_client import WebhookClient

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers with `begin`, then with `flood` without an end; counts what the client took of it."""

    def __init__(self, begin, flood=b""):
        self.begin, self.flood = begin, flood
        self.taken = 0
        self._tasks = []

    async def answer(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.begin)
            while self.flood:
                await writer.drain()
                writer.write(self.flood)
                self.taken += len(self.flood)
            await reader.read()

    async def asked(self):
        """What both clients make of it."""
        async with await asyncio.start_server(self.answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            posted = await WebhookClient([ip_network("127.0.0.0/8")]).post(url, {}, b"{}")
            try:
                async with HttpClient() as client:
                    got = (await client.request("GET", url)).body
            except Unreachable as error:
                got = str(error)
        await asyncio.gather(*self._tasks)
        return posted.status or posted.error, got


async def test_a_few_informational_responses_are_skipped():
    begin = CONTINUE * (MAX_RESPONSES - 1) + OK
    assert await Server(begin).asked() == (200, b"ok")


@pytest.mark.parametrize(
    "flood", [CONTINUE * 10_000, b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 5_000]
)
async def test_informational_responses_without_an_end(flood):
    server = Server(b"", flood)
    assert await server.asked() == ("it sent more than an answer",) * 2
    assert server.taken < 50 * len(flood)


async def test_chunks_that_are_nearly_all_extension():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = Server(head, b"1;" + b"x" * 3_000 + b"\r\na\r\n")
    status, got = await server.asked()
    assert status == 200, "a webhook's body is never read"
    assert got == "it broke off its answer", "the gateway did"
    assert server.taken < 20 * MAX_RECEIVED
