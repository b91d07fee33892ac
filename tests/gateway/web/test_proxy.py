"""Behind a real nginx with the site that we ship: TLS, WebSockets, addresses, drains, restarts.

Without nginx the tests are skipped and say so; where it has to be there (CI, or ICE_REQUIRE_NGINX=1)
they fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import os
import re

import aiohttp
import pytest

from client.agent import IceClient
from client.environment import Environment
from gateway.core.secret import Secret
from tests.support.authority import Authority
from tests.support.harness import ADMIN, API, Api, expect_refused, harness
from tests.support.ice import PATIENCE, Ice, until
from tests.support.nginx import ADDRESS, NGINX, Nginx
from tests.support.served import serving

REQUIRED = bool(os.environ.get("CI")) or os.environ.get("ICE_REQUIRE_NGINX") == "1"
PREFIX = "/ice-gateway"
SPOOFED = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6"}


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    if NGINX is None:
        missing = "there is no nginx (Debian: apt install nginx-light)"
        if REQUIRED:
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("nginx")
    started = Nginx(folder, Authority(folder))
    yield started
    started.stop()


@pytest.fixture
async def behind(nginx, tmp_path):
    """A gateway behind it."""
    host, port = nginx.gateway
    options = {
        "server__host": host,
        "server__port": port,
        "server__public_url": [nginx.url, nginx.url + PREFIX],
        "server__trusted_proxies": [ADDRESS],
    }
    async with harness(tmp_path, **options) as running:
        yield running


@pytest.fixture
async def browser(nginx):
    """An HTTP client that trusts nginx's certificate, and keeps cookies."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=nginx.trust),
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # for a host that is an address
    ) as session:
        yield session


@pytest.fixture
def client(nginx, tmp_path):
    """Makes a reference client behind nginx; it does not wait, but notes how long it would have."""

    def make(token, prefix=""):
        told, waits = [], []

        async def sleep(seconds):
            waits.append(seconds)
            await asyncio.sleep(0.02)

        made = IceClient(
            nginx.url + prefix,
            state_dir=tmp_path / "ice",
            token=token,
            ca_file=nginx.authority.file,
            observe=told.append,
            environment=Environment(sleep=sleep),
        )
        made.told, made.waits = told, waits
        return made

    return make


async def connected(agent):
    """Wait for a session; returns the welcome."""
    async with asyncio.timeout(PATIENCE):
        return await agent.connected()


def test_nginx_takes_the_example_as_it_is(nginx):
    assert nginx.check.returncode == 0, nginx.check.stderr
    assert "test is successful" in nginx.check.stderr
    assert not re.search(r"\[(warn|alert|crit|emerg)\]", nginx.check.stderr), nginx.check.stderr


@pytest.mark.parametrize("prefix", ["", PREFIX])
async def test_an_ice_lives_behind_it(nginx, behind, client, prefix):
    ice = await behind.provision()
    async with client(ice.token, prefix) as agent:
        await connected(agent)
        shown = await behind.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
        assert shown.json["connection"]["address"] == "127.0.0.1", "it is the client's, not nginx's"
        [event] = (await behind.admin.get("/events?action=register")).json["items"]
        assert event["address"] == "127.0.0.1"
        assert await behind.act("lab-1", "deregister")
        stopped = await agent.wait()
    assert (stopped.code, "deregistered" in stopped.sentence) == (4101, True), stopped

    # A stranger with the same token, who says to come from elsewhere and signs another URL.
    stranger = Ice(nginx.url, ice.token, tls=nginx.trust)
    path = f"{prefix}/ice/v1"
    refused = await stranger.refused(path=path, htu=f"{behind.url}/ice/v1")
    assert refused.code == "proof-invalid"
    assert f"{nginx.url}/ice/v1" in refused.problem["detail"]
    refused = await stranger.refused(SPOOFED, path=path, htu=f"{nginx.url}{path}")
    assert refused.code == "deregistered"
    direct = behind.ice(ice.token, stranger.key)
    refused = await direct.refused(SPOOFED, htu=f"{nginx.url}/ice/v1")
    assert refused.code == "deregistered", "whoever passes by the proxy is no proxy"
    timeline = await behind.eventually(
        "/ices/lab-1/connections",
        lambda answer: sum(item["count"] for item in answer.json["items"]) == 5,
    )
    assert {item["address"] for item in timeline.json["items"]} == {"127.0.0.1"}

    await until(lambda: nginx.logs().count(f"GET {path} ") >= 3)
    for secret in (ice.token, "DPoP", "dpop+jwt"):
        assert secret not in nginx.logs(), "nginx must log no credentials"


@pytest.mark.parametrize("prefix", ["", PREFIX])
async def test_the_page_and_its_events_behind_it(nginx, behind, browser, prefix):
    await behind.gateway.services.accounts.set_password(ADMIN, "root", Secret("correct horse"))
    page = f"{nginx.url}{prefix}/admin"
    async with browser.get(page) as answer:
        assert str(answer.url) == f"{page}/login", "every redirect must stay behind the proxy"
        assert answer.headers["Strict-Transport-Security"]
    async with browser.post(
        f"{page}/login",
        data={"name": "root", "password": "correct horse"},
        headers={"Origin": nginx.url, **SPOOFED},
    ) as answer:
        assert (answer.status, str(answer.url)) == (200, f"{page}/")
        [entered] = answer.history
        cookie = entered.headers["Set-Cookie"]
    for attribute in ("Secure", "HttpOnly", "SameSite=Strict"):
        assert attribute in cookie
    [event] = (await behind.admin.get("/events?action=log-in")).json["items"]
    assert event["address"] == "127.0.0.1"

    # An event that came only with the next 4 KiB would never come here.
    async with (
        asyncio.timeout(PATIENCE),
        browser.get(f"{nginx.url}{prefix}{API}/events/stream") as news,
    ):
        assert news.content_type == "text/event-stream"
        ice = await behind.provision()
        seen = []
        async for line in news.content:
            if line.startswith(b"data:"):
                seen.append(json.loads(line[5:]))
                break
        assert seen[0]["action"] == "provision"
        assert ice.token not in str(seen)


async def test_bodies_that_are_too_long_and_http_without_s(nginx, behind, browser):
    api = Api(browser, nginx.url, behind.admin.token)
    expect_refused(await api.post("/ices", data=io.BytesIO(bytes(1_500_000))), 413, "too-large")
    answer = await api.post("/ices", data=io.BytesIO(bytes(3_000_000)))
    assert (answer.status, answer.headers["Content-Type"]) == (413, "text/html"), "nginx ends it"
    async with browser.get(f"{nginx.plain}/admin/", allow_redirects=False) as answer:
        assert answer.status == 301
        assert answer.headers["Location"] == "https://gateway.example/admin/"


async def test_while_it_drains_handshakes_are_told_so(nginx, behind):
    ice = await behind.provision()
    through = Ice(nginx.url, ice.token, tls=nginx.trust)
    connection = await through.connect()
    draining = asyncio.create_task(behind.gateway.node.drain(1))
    assert json.loads(await connection.expect_dropped(1012))["retry_after"] >= 1
    refused = await through.refused()
    assert (refused.status, refused.code) == (503, "draining")
    assert int(refused.headers["Retry-After"]) > 0
    await connection.close()
    await draining


async def test_an_ice_outlives_a_restart_of_the_gateway(nginx, client, tmp_path):
    host, port = nginx.gateway
    options = ("--host", host, "--port", str(port), "--public-url", nginx.url)
    env = {
        "ICE_GATEWAY_SERVER__TRUSTED_PROXIES": ADDRESS,
        "ICE_GATEWAY_METRICS__LISTEN": "",
    }
    with contextlib.ExitStack() as stack:
        start = functools.partial(serving, tmp_path, *options, **env)
        first = stack.enter_context(start())
        token = (await first.provision("build-1")).token
        async with client(token) as agent:
            session = (await connected(agent)).session
            assert await asyncio.to_thread(first.stop) == 0

            def codes():
                return [event.code for event in agent.told]

            await until(lambda: "http-502" in codes())
            stack.enter_context(start())
            assert (await connected(agent)).session != session
        told = [code for code in codes() if code is not None]
    assert told[0] == 1012, "SIGTERM must reach it as a restart"
    assert set(told) <= {1012, "draining", "http-502"}, "and what comes then is to be retried"
    assert agent.waits[0] >= 1, "the gateway has told it when to come back"
