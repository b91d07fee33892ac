"""What the gateway asks of other servers: bounded, and without following them anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from aiohttp import web

from gateway.runtime.http_client import HttpClient, Unreachable
from gateway.runtime.settings import BadSetting
from tests.support import evil_issuer
from tests.support.authority import Authority
from tests.support.connect_proxy import connect_proxy

QUICK = 0.2


@contextlib.asynccontextmanager
async def served(handler, tls=None):
    """The port of a server on loopback."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw(answer):
    """The port of a server that sends these bytes, whatever it is asked."""

    async def answer_it(reader, writer):
        await reader.read(10_000)
        writer.write(answer)
        writer.close()
        answered.set()

    answered = asyncio.Event()
    server = await asyncio.start_server(answer_it, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await answered.wait()
        await asyncio.sleep(0)  # the connection is closed


async def ask(url, ca_file=None, seconds=10.0):
    async with HttpClient(ca_file, timeout=seconds, max_bytes=100_000) as http:
        return await http.request("GET", url)


async def refused(url, reason, ca_file=None, seconds=10.0):
    with pytest.raises(Unreachable, match=reason) as raised:
        await ask(url, ca_file, seconds)
    assert url not in str(raised.value)


async def test_an_answer_and_its_request():
    async def echo(request):
        form = await request.post()
        return web.json_response({"headers": dict(request.headers), "form": dict(form)}, status=418)

    async with served(echo) as port, HttpClient() as http:
        answer = await http.request(
            "POST", f"http://127.0.0.1:{port}/", headers={"X-Y": "z"}, form={"a": "b&c"}
        )
    assert answer.status == 418
    assert answer.headers["content-type"].startswith("application/json")
    assert b'"a": "b&c"' in answer.body
    assert b'"X-Y": "z"' in answer.body
    assert b'"Accept-Encoding": "identity"' in answer.body
    assert b"Cookie" not in answer.body
    assert "b&c" not in repr(answer)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (evil_issuer.ten_megabytes, "more than 97 KiB"),
        (evil_issuer.gzip_bomb, "compressed"),
    ],
)
async def test_what_costs_too_much(handler, reason):
    async with served(handler) as port:
        await refused(f"http://127.0.0.1:{port}/", reason)


async def test_no_answer():
    async with served(evil_issuer.hangs) as port:
        await refused(
            f"http://127.0.0.1:{port}/", "did not answer within 0.2 seconds", seconds=QUICK
        )


async def test_an_answer_that_drips():
    async def drip(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(QUICK / 10)

    async with served(drip) as port:
        await refused(f"http://127.0.0.1:{port}/", "did not answer within", seconds=QUICK)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "broke off"),
        (b"SSH-2.0-x\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broke off|no HTTP"),
    ],
)
async def test_what_is_no_answer(answer, reason):
    async with raw(answer) as port:
        await refused(f"http://127.0.0.1:{port}/", reason)


async def test_no_redirect_is_followed_and_no_cookie_kept():
    asked = []

    async def redirect(request):
        asked.append(request.headers.get("Cookie"))
        found = web.HTTPFound("/other")
        found.set_cookie("a", "b")
        raise found

    async with served(redirect) as port, HttpClient() as http:
        for _ in range(2):
            answer = await http.request("GET", f"http://127.0.0.1:{port}/")
            assert (answer.status, answer.headers["location"]) == (302, "/other")
    assert asked == [None, None]


async def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    await refused(f"http://127.0.0.1:{port}/", "no connection")
    await refused("http://no.invalid/", "host name is not known|proxy")


async def test_certificates(tmp_path):
    authority = Authority(tmp_path)
    context = authority.server_context("127.0.0.1")

    async def fine(_):
        return web.Response(text="fine")

    async with served(fine, context) as port:
        url = f"https://127.0.0.1:{port}/"
        assert (await ask(url, authority.file)).body == b"fine"
        await refused(url, "certificate is not trusted")
        await refused(f"https://localhost:{port}/", "certificate is not trusted", authority.file)
    async with raw(b"no TLS") as port:
        await refused(f"https://127.0.0.1:{port}/", "TLS failed|broke off|within")


async def test_a_proxy_of_the_environment(tmp_path, monkeypatch):
    authority = Authority(tmp_path)

    async def fine(request):
        return web.Response(text=request.host)

    async with (
        served(fine, authority.server_context("id.example")) as port,
        connect_proxy() as proxy,
    ):
        proxy.routes["id.example:443"] = port
        proxy.credentials = "me:secret"
        monkeypatch.setenv("https_proxy", f"http://me:secret@{proxy.address}")
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert (await ask("https://id.example/", authority.file)).body == b"id.example"
        await refused(f"http://127.0.0.1:{port}/", "broke off|no HTTP")
        assert proxy.asked == ["id.example:443"], "loopback is asked directly"
        monkeypatch.setenv("no_proxy", "id.example")
        await refused("https://id.example/", "host name is not known", authority.file)
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("https_proxy", f"http://me:wrong@{proxy.address}")
        with pytest.raises(Unreachable, match="the proxy answered with 407") as raised:
            await ask("https://id.example/", authority.file)
        assert "wrong" not in str(raised.value)
    await refused("https://id.example/", "the proxy cannot be reached", authority.file)


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("no certificate", "PEM")])
async def test_certificates_that_cannot_be_read(tmp_path, content, reason):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadSetting, match=reason):
        HttpClient(file)
