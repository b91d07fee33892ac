"""The listener against clients that send or read too slowly or too much, on a small application of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from gateway.app import run_gateway
from gateway.runtime import sockets
from gateway.web import server
from gateway.web.connection import (
    DEFAULT_TIMEOUTS,
    MAX_FIELD,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_LINE,
    READ_STEP,
    Connection,
    Timeouts,
    mark_authenticated,
)
from gateway.web.load_shedding import LoadShedding
from gateway.web.metrics import Metrics
from gateway.web.server import Runner
from tests.support.authority import Authority
from tests.support.harness import settings_for
from tests.support.ice import PATIENCE, until

LARGE = 16 * 1024 * 1024
"""More than the kernel takes for a client that does not read."""


@contextlib.asynccontextmanager
async def listening(handler, tls=None, **options):
    app = web.Application()
    app.router.add_route("*", "/", handler)
    runner = Runner(app, shutdown_timeout=0.1, **options)
    await runner.listen("127.0.0.1", 0, tls)
    try:
        yield runner
    finally:
        await runner.cleanup()


async def nothing(_):
    return web.Response()


async def told(address, sent):
    """All that is answered until the listener ends the connection."""
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(sent)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    return answer.decode()


async def refused(address, sent):
    """The head of such an answer, and its document."""
    head, _, body = (await told(address, sent)).partition("\r\n\r\n")
    return head, json.loads(body)


@contextlib.asynccontextmanager
async def client(runner, request):
    """A socket that has sent a request and reads nothing by itself."""
    loop = asyncio.get_running_loop()
    with socket.socket() as ours:
        ours.setblocking(False)
        await loop.sock_connect(ours, runner.addresses[0])
        await loop.sock_sendall(ours, request)
        await until(lambda: runner.server.connections)
        yield ours


async def rest(ours):
    """How many bytes there were to be read."""
    loop, count = asyncio.get_running_loop(), 0
    with contextlib.suppress(ConnectionResetError):
        while data := await loop.sock_recv(ours, 1 << 20):
            count += len(data)
    return count


def request(connection="keep-alive", path="/"):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode()


# --- answers that are not read -------------------------------------------------------------------


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("waits", ["for more", "for the rest", "for a stream"])
async def test_client_that_does_not_read_is_cut_off(connection, waits):
    async def answer(asked):
        if waits == "for a stream":
            stream = web.StreamResponse()
            await stream.prepare(asked)
            while True:
                await stream.write(bytes(1 << 16))
        if waits == "for the rest":  # the answer counts as written, and its end is waited for
            asked.transport.set_write_buffer_limits(high=2 * LARGE)
        return web.Response(body=bytes(LARGE))

    async with (
        listening(answer, keepalive=0.05, timeouts=Timeouts(read=0.05)) as runner,
        client(runner, request(connection)) as ours,
    ):
        await until(lambda: not runner.server.connections)
        assert await rest(ours) < LARGE, "what was never read was to be given up"


async def test_client_that_reads_slowly_but_reads_is_served():
    async def answer(_):
        return web.Response(body=bytes(LARGE))

    async with (
        listening(answer, keepalive=5, timeouts=Timeouts(read=3600)) as runner,
        client(runner, request("close")) as ours,
    ):
        [connection] = runner.server.connections
        # A large answer makes the transport wait.
        await until(lambda: connection._read_timer is not None)
        assert await rest(ours) > LARGE


@pytest.mark.parametrize(("read", "goes_on"), [(READ_STEP, True), (READ_STEP - 1, False)])
async def test_client_that_reads_has_time_for_as_long_as_it_reads_enough(read, goes_on):
    shared = Mock(timeouts=DEFAULT_TIMEOUTS)
    connection = Connection(Mock(), shared, loop=asyncio.get_running_loop())
    transport = Mock()
    transport.get_write_buffer_size.return_value = LARGE - read
    connection._check_read(transport, LARGE)
    assert transport.abort.called is not goes_on
    assert (connection._read_timer is not None) is goes_on
    connection._stop_read_timer()


async def test_client_that_has_gone_is_waited_for_no_more():
    async with listening(nothing) as runner, client(runner, request()) as ours:
        [connection] = runner.server.connections
        ours.close()
        await until(lambda: not runner.server.connections)
        assert connection._read_timer is None, "a timer of each connection would live on"


# --- requests that do not arrive -------------------------------------------------------------------


@pytest.mark.parametrize("part", [b"", b"GE", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_request_that_never_ends_is_cut_off(part):
    timeouts = Timeouts(linger=0.05, head=0.05)
    async with (
        listening(nothing, keepalive=3600, timeouts=timeouts) as runner,
        client(runner, part) as ours,
    ):
        for _ in range(3):  # whatever trickles in does not prolong it
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(ours, part[-1:])
        await until(lambda: not runner.server.connections)
        await rest(ours)  # ends


async def test_connection_that_is_used_no_more_is_closed():
    async with listening(nothing, keepalive=0.05) as runner:
        answer = await told(runner.addresses[0], request())
        assert answer.startswith("HTTP/1.1 200 "), "an answer, then the end"


@contextlib.asynccontextmanager
async def used_once(address, path="/"):
    """A connection of which one request was answered."""
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(request(path=path))
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        yield reader, writer
    writer.close()
    await writer.wait_closed()


async def test_connection_may_wait_longer_for_its_next_request_than_for_the_first():
    async with (
        listening(nothing, keepalive=3600, timeouts=Timeouts(head=0.2)) as runner,
        used_once(runner.addresses[0]) as (reader, writer),
    ):
        assert not await told(runner.addresses[0], b""), "a younger connection, never used"
        writer.write(request("close"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_later_request_that_never_ends_is_cut_off(part):
    timeouts = Timeouts(head=0.2, linger=0.05)
    async with listening(nothing, keepalive=3600, timeouts=timeouts) as runner:
        async with used_once(runner.addresses[0]) as (reader, writer):
            for _ in range(3):  # whatever trickles in does not prolong it
                writer.write(part)
                part = part[-1:]
            await reader.read()  # ends
        await until(lambda: not runner.server.connections)


async def test_keepalive_is_a_setting(tmp_path):
    async with run_gateway(settings_for(tmp_path, server__keepalive="1s")) as gateway:
        address = "127.0.0.1", urlsplit(gateway.url).port
        async with used_once(address, "/healthz") as (reader, _):
            await reader.read()  # ends


async def test_body_that_nobody_wanted_is_not_waited_for_without_end():
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1"
    async with listening(nothing, lingering_time=0.05) as runner:
        answer = await told(runner.addresses[0], sent)
        assert answer.startswith("HTTP/1.1 200 "), "an answer, then the end"


async def test_client_that_leaves_within_its_body_is_no_fault(said):
    left = asyncio.Event()

    async def answer(asked):
        try:
            await asked.content.read()
        finally:
            left.set()

    async with listening(answer) as runner:
        sent = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1"
        async with client(runner, sent) as ours:
            await until(lambda: runner.server.requests_count)
        async with asyncio.timeout(PATIENCE):
            await left.wait()
        assert ours.fileno() == -1
        await until(lambda: not runner.server.connections)
    assert said == [], "expected no line"


async def test_whoever_is_known_is_not_cut_while_served():
    shedding, asked = LoadShedding(), []

    async def answer(request):
        asked.append(request)
        if request.path_qs == "/?known":
            mark_authenticated(request)
        await request.content.read()

    def sent(path):
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1".encode()

    async with (
        listening(answer, load_shedding=shedding) as runner,
        contextlib.AsyncExitStack() as all_,
    ):
        for number, path in enumerate(("/?known", "/", "/"), 1):
            await all_.enter_async_context(client(runner, sent(path)))
            await until(lambda number=number: len(asked) == number)
        assert shedding.shed(5) == 2
        await until(lambda: len(runner.server.connections) == 1)
        [left] = runner.server.connections
        assert left is asked[0].protocol


async def test_tls_that_never_begins_is_cut_off(tmp_path):
    tls = Authority(tmp_path).server_context("127.0.0.1")
    async with listening(nothing, tls, timeouts=Timeouts(head=0.05)) as runner:
        assert not await told(runner.addresses[0], b"")


def handles() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_metrics_are_listened_for_by_one_handle():
    before = handles()
    runner = await Metrics().expose(("127.0.0.1", 0))
    assert handles() - before <= 2, "no fleet comes here all at once"
    await runner.cleanup()


async def test_metrics_have_the_same_limits():
    runner = await Metrics().expose(("127.0.0.1", 0), Timeouts(head=0.05))
    try:
        assert not await told(runner.addresses[0], b"GET /metrics HTTP/1.1\r\nHost:")
        sent = b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        head, document = await refused(runner.addresses[0], sent)
        assert head.startswith("HTTP/1.1 404 ")
        assert "\r\nServer: ice-gateway" in head
        assert document["code"] == "not-found"
    finally:
        await runner.cleanup()


# --- requests that are too large, or odd -----------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /?" + b"q" * MAX_LINE + b" HTTP/1.1\r\n\r\n", 414, "uri-too-long"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_FIELD + b"\r\n\r\n", 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\n" + b"a" * (MAX_FIELD + 1) + b": a\r\n", 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * (MAX_FIELDS + 2), 431, "headers-too-large"),
        # Without an end: none of them is too long, or one too many.
        (
            b"GET / HTTP/1.1\r\n" + (b"A: " + b"a" * 1017 + b"\r\n") * (MAX_HEAD // 1022 + 1),
            431,
            "headers-too-large",
        ),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "bad-request"),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "bad-request",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nA : a\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", 400, "bad-request"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
async def test_what_is_refused_unread_is_a_problem_document(sent, status, code):
    async with listening(nothing) as runner:
        head, document = await refused(runner.addresses[0], sent)
    assert head.split()[1] == str(status), head
    assert "\r\nContent-Type: application/problem+json\r\n" in head
    assert "\r\nServer: ice-gateway" in head
    assert (document["status"], document["code"]) == (status, code)


@pytest.mark.parametrize("ends", ["the client", "the listener"])
async def test_answer_is_not_lost_to_who_is_still_sending(ends):
    """To close with anything unread would reset the connection."""
    timeouts = Timeouts(linger=PATIENCE if ends == "the client" else 0)
    async with listening(nothing, timeouts=timeouts) as runner:
        sent = b"GET /?" + b"q" * MAX_LINE
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")  # it was answered before it was sent
            assert head.startswith(b"HTTP/1.0 414 ")
            if ends == "the client":
                writer.write(bytes(LARGE))
                await writer.drain()
                assert json.loads(await reader.read())["code"] == "uri-too-long"
                writer.close()
            await until(lambda: not runner.server.connections)
        writer.close()


async def test_headers_up_to_the_limit_are_taken():
    line = b"A: " + b"a" * 30_000 + b"\r\n"
    async with listening(nothing) as runner:
        answer = await told(runner.addresses[0], request("close")[:-2] + 2 * line + b"\r\n")
        assert answer.startswith("HTTP/1.1 200 ")


async def test_a_body_counts_for_no_header():
    async def read(asked):
        return web.Response(text=str(len(await asked.read())))

    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * MAX_HEAD}\r\n\r\n".encode()
    async with listening(read) as runner:
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        for _ in range(2):  # requests of one connection
            writer.write(head)
            await writer.drain()
            for _ in range(2 * MAX_HEAD // 1024):
                writer.write(bytes(1024))
                await writer.drain()
            async with asyncio.timeout(PATIENCE):
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(6) == str(2 * MAX_HEAD).encode()
        writer.close()


@pytest.mark.parametrize("expected", [b"SECRET", b"\xff", b"100-continue, SECRET"])
async def test_what_is_expected_of_us_is_a_problem_document_unless_it_is_to_continue(expected):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\nExpect: "
    async with listening(nothing) as runner:
        answer, document = await refused(runner.addresses[0], head + expected + b"\r\n\r\n")
        assert answer.startswith("HTTP/1.1 417 ")
        assert "\r\nServer: ice-gateway" in answer
        assert document["code"] == "expectation-failed"
        assert "SECRET" not in str(document)
        answer = await told(runner.addresses[0], head + b"100-continue\r\n\r\n")
        assert answer.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


# --- answers that do not come ----------------------------------------------------------------------


async def test_request_that_takes_too_long_is_503_and_is_ended(said):
    ended = asyncio.Event()

    async def never(_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with listening(never, timeouts=Timeouts(request=0.05)) as runner:
        head, document = await refused(runner.addresses[0], request("close"))
    assert head.startswith("HTTP/1.1 503 ")
    assert document["code"] == "unavailable"
    assert "not known whether this was done" in document["detail"]
    assert ended.is_set()
    assert said == [{"event": "no answer", "log_level": "error", "method": "GET", "path": "/"}]


async def test_answer_that_has_begun_may_take_its_time():
    deadlines = []

    async def stream(asked):
        timeout = asked[server._TIMEOUT]
        deadlines.append(timeout.when())
        response = web.StreamResponse()
        await response.prepare(asked)
        deadlines.append(timeout.when())
        return response

    async with listening(stream) as runner:
        await told(runner.addresses[0], request("close"))
    before, after = deadlines
    assert before is not None
    assert after is None


async def test_a_listener_that_cannot_be_made_whole_is_undone(monkeypatch):
    """For want of file handles: it is tried again, and must not take some more each time."""
    duplicate, left = os.dup, iter(range(5))

    def dup(handle):
        if next(left, None) is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return duplicate(handle)

    monkeypatch.setattr(os, "dup", dup)
    runner = Runner(web.Application(), shutdown_timeout=0.1, doors=8)
    bound = sockets.open_listeners(["127.0.0.1"], 0)
    address = bound[0].getsockname()
    with pytest.raises(OSError, match="open files"):
        await runner.listen_on(bound)
    assert not runner.sites, "nothing was expected to be left that listens"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    await runner.cleanup()
