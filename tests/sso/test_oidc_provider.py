"""Single sign-on with a certified issuer: oidc-provider, in a process of Node.js."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio

from gateway.core.roles import Role
from gateway.services.diagnostics import Level
from gateway.services.doctor_sso import examine
from tests.sso.oidc_provider import SECRET, free_port, log_in, log_out_at, needed, oidc_provider
from tests.support.harness import harness
from tests.support.pages import Browser, said

together = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The port of a gateway, and the issuers that know it."""
    needed()
    port = free_port()
    with oidc_provider(f"http://127.0.0.1:{port}") as urls:
        yield port, urls


@pytest_asyncio.fixture(loop_scope="module")
async def start(case, tmp_path):
    """Starts a gateway, and makes browsers of it."""
    port, urls = case
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    async with contextlib.AsyncExitStack() as stack:

        async def made(kind="userinfo", client="ice-ES256", with_secret=True):
            running = await stack.enter_async_context(
                harness(
                    tmp_path,
                    server__port=port,
                    sso__issuer=urls[kind],
                    sso__client_id=client,
                    sso__client_secret_file=str(secret) if with_secret else "",
                    sso__roles={"ice-admins": "admin", "lab": "member"},
                )
            )

            async def browse():
                jar = aiohttp.CookieJar(unsafe=True)
                session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
                return Browser(session, running.url)

            return running, browse

        yield made


async def ask(issuer, path):
    async with aiohttp.ClientSession() as session, session.get(f"{issuer}/test/{path}") as answer:
        assert answer.status == 200


CLIENTS = ["ice-ES256", "ice-RS256", "ice-PS256", "ice-EdDSA", "ice-post", "ice-public"]
KINDS = ["userinfo", "id_token"]


@pytest.mark.parametrize(
    ("client", "kind"),
    [
        pytest.param(client, kind, marks=[pytest.mark.long] if (number + other) % 2 else [])
        for number, client in enumerate(CLIENTS)
        for other, kind in enumerate(KINDS)
    ],
)
@together
async def test_a_login(start, kind, client):
    running, browse = await start(kind, client, with_secret=client != "ice-public")
    browser = await browse()
    answer = await log_in(browser, "alice", to="users")
    assert answer.status == 200, answer
    assert 'content="0; url=./users"' in answer.text
    assert (await browser.get("users")).status == 200
    user = await running.gateway.services.accounts.user("alice.smith")
    assert (user.role, user.subject) == (Role.ADMIN, "alice")
    again = await log_in(await browse(), "bob")
    assert again.status == 200, again
    assert (await running.gateway.services.accounts.user("bob.smith")).role is Role.MEMBER
    refused = await log_in(await browse(), "carol")
    assert refused.status == 403
    assert "None of your groups" in said(refused)


@together
async def test_rotated_keys_groups_and_a_logout_at_the_issuer(start, case):
    issuer = case[1]["id_token"]
    running, browse = await start("id_token")
    browser = await browse()
    assert (await log_in(browser, "alice")).status == 200
    await ask(issuer, "rotate")
    other = await browse()
    assert (await log_in(other, "alice")).status == 200, "with a new key"
    assert (await log_out_at(other, issuer, "ice-ES256")).status == 303
    path = "/events?action=end-logins"
    ended = await running.eventually(path, lambda answer: answer.json["items"])
    assert ended.json["items"][0]["detail"] == {"user": "alice.smith", "logins_ended": 1}
    assert (await other.get("guide")).status == 302
    assert (await browser.get("guide")).status == 200, "the other session goes on"
    try:
        await ask(issuer, "groups?who=alice&groups=other")
        assert (await log_in(await browse(), "alice")).status == 403
        assert (await browser.get("guide")).status == 302
    finally:
        await ask(issuer, "groups?who=alice&groups=ice-admins,lab")


@together
async def test_what_doctor_says_of_it(start):
    running, _ = await start()
    settings = running.gateway.settings
    found = await examine(settings, running.clock, seconds=10.0)
    assert [each.text for each in found if each.level is not Level.OK] == []
    other = replace(settings, sso_redirect_url="http://127.0.0.1:1/admin/sso/callback")
    [bad] = [
        each.text
        for each in await examine(other, running.clock, seconds=10.0)
        if each.level is not Level.OK
    ]
    assert bad.startswith("the issuer did not confirm")
