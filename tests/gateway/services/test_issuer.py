"""An issuer as the gateway asks it: what is kept, what is asked again, and what a broken one costs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.core.jwks import BadToken
from gateway.core.login_state import LoginState
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.runtime.http_client import HttpClient
from gateway.runtime.settings import BadSetting
from gateway.runtime.sso_settings import SsoSettings
from gateway.services.issuer import (
    AT_ONCE,
    DOWN,
    FRESH,
    KEPT,
    REFETCH,
    Issuer,
    IssuerRefused,
    IssuerUnavailable,
    read_client_secret,
)
from tests.support import evil_issuer
from tests.support.evil_issuer import (
    CLIENT,
    JWKS,
    METADATA,
    SECRET,
    TOKEN,
    USERINFO,
    EvilIssuer,
    key_of,
    signed,
)
from tests.support.ice import until

QUICK = 0.2
"""Seconds for an answer of an issuer that hangs."""
CALLBACK = "http://127.0.0.1:8440/admin/sso/callback"


class Case:
    """The gateway's view of an evil issuer, with a clock that stands still."""

    def __init__(self, evil, http, settings):
        self.evil = evil
        self.seconds = 0.0
        self.issuer = Issuer(settings, http, lambda: self.seconds)

    async def begin(self):
        login = LoginState("state", "nonce", "v" * 43, "", 0.0)
        url = (await self.issuer.metadata()).authorization_url(
            login, client_id=CLIENT, redirect_url=CALLBACK, scopes=["openid"]
        )
        code = self.evil.authorize(url).partition("&")[0].removeprefix("code=")
        return Secret(code), login.verifier

    async def exchange(self):
        return await self.issuer.exchange(*await self.begin())

    async def unavailable(self, asking, reason):
        with pytest.raises(IssuerUnavailable, match=reason) as raised:
            await asking
        assert SECRET not in str(raised.value)


@pytest.fixture
async def make(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        async def made(seconds=10.0, **changed):
            secret = tmp_path / "client-secret"
            secret.write_text(SECRET)
            evil = await stack.enter_async_context(EvilIssuer().running())
            settings = {
                "issuer": evil.url,
                "client_id": CLIENT,
                "client_secret_file": secret,
                "ca_file": None,
                "scopes": (),
                "username_claim": "preferred_username",
                "groups_claim": "groups",
                "roles": {"lab": Role.MEMBER},
                "redirect_url": CALLBACK,
                "required": False,
                "lifetime": 1.0,
                "tokens_after": 0.0,
            }
            http = await stack.enter_async_context(HttpClient(timeout=seconds))
            return Case(evil, http, SsoSettings(**settings | changed))

        yield made


@pytest.fixture
async def case(make):
    return await make()


async def test_what_it_publishes_is_kept_for_a_while(case):
    tokens = await case.exchange()
    for _ in range(3):
        await case.issuer.verify(tokens.id_token, by_anyone=False)
    assert (case.evil.count(METADATA), case.evil.count(JWKS)) == (1, 1)
    case.seconds += KEPT
    await case.issuer.verify(tokens.id_token, by_anyone=False)
    assert (case.evil.count(METADATA), case.evil.count(JWKS)) == (2, 2)


async def test_a_login_begins_at_an_issuer_that_answered_just_now(case):
    await case.exchange()
    case.seconds += FRESH
    await case.issuer.metadata()
    assert case.evil.count(METADATA) == 1
    await asyncio.gather(*(case.issuer.metadata(FRESH) for _ in range(50)))
    assert case.evil.count(METADATA) == 2


async def test_of_many_at_once_one_asks(case):
    await asyncio.gather(*(case.issuer.metadata() for _ in range(50)))
    assert case.evil.count(METADATA) == 1


async def test_forged_keys_cost_a_request_every_few_seconds(case):
    forged = Secret(signed({}, key_of("ES256", "evil")))
    for _ in range(5):
        with pytest.raises(BadToken):
            await case.issuer.verify(forged, by_anyone=True)
    assert case.evil.count(JWKS) == 1
    case.seconds += REFETCH
    for _ in range(5):
        with pytest.raises(BadToken):
            await case.issuer.verify(forged, by_anyone=True)
    assert case.evil.count(JWKS) == 2


async def test_a_new_key_is_found_at_once_in_the_issuers_own_answer(case):
    await case.issuer.verify((await case.exchange()).id_token, by_anyone=False)
    case.evil.rotate("two", "EdDSA")
    tokens = await case.exchange()
    claims = await case.issuer.verify(tokens.id_token, by_anyone=False)
    assert claims["sub"] == "a-1"
    with pytest.raises(BadToken):  # the old key is gone
        await case.issuer.verify(Secret(signed({}, key_of("ES256", "one"))), by_anyone=True)


@pytest.mark.parametrize("answer", [evil_issuer.hangs, evil_issuer.html, evil_issuer.fails])
async def test_an_issuer_that_is_down_is_left_alone(make, answer):
    case = await make(QUICK if answer is evil_issuer.hangs else 10.0)
    case.evil.answers[METADATA] = answer
    for _ in range(3):
        await case.unavailable(case.issuer.metadata(), "it|its")
    assert case.evil.count(METADATA) == 1
    case.seconds += DOWN
    del case.evil.answers[METADATA]
    assert (await case.issuer.metadata()).issuer == case.evil.url


async def test_metadata_of_no_good_issuer(case):
    for metadata in (
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": None},
        {"token_endpoint": "http://id.example/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"userinfo_endpoint": "https://user:pass@id.example/"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": 7},
        {"id_token_signing_alg_values_supported": ["HS256", "none"]},
        {"code_challenge_methods_supported": ["plain"]},
    ):
        case.evil.metadata = metadata
        await case.unavailable(case.issuer.metadata(), "its |it ")
        case.seconds += DOWN


BROKEN = {
    evil_issuer.hangs: "did not answer",
    evil_issuer.ten_megabytes: "more than 256 KiB",
    evil_issuer.html: "JSON|keys cannot be used|metadata is not",
    evil_issuer.fails: "500",
    evil_issuer.gzip_bomb: "compressed",
    evil_issuer.redirects: "302",
    evil_issuer.deep_json: "JSON|keys cannot be used|metadata is not",
}


@pytest.mark.parametrize("answer", BROKEN, ids=lambda each: each.__name__)
async def test_broken_endpoints(make, answer):
    """One by one; between them the issuer is not remembered as broken any more."""
    case = await make(QUICK if answer is evil_issuer.hangs else 10.0)
    code, verifier = await case.begin()
    case.evil.answers = dict.fromkeys((TOKEN, USERINFO, JWKS, METADATA), answer)
    for asking in (
        lambda: case.issuer.exchange(code, verifier),
        lambda: case.issuer.userinfo(Secret("a")),
        lambda: case.issuer.verify(Secret("a.b.c"), by_anyone=True),
        case.issuer.metadata,
    ):
        case.seconds += KEPT if asking == case.issuer.metadata else DOWN
        await case.unavailable(asking(), BROKEN[answer])


async def test_a_hanging_issuer_holds_few_logins(make):
    case = await make(60.0)
    code, verifier = await case.begin()
    case.evil.answers[TOKEN] = evil_issuer.hangs
    held = [asyncio.create_task(case.issuer.exchange(code, verifier)) for _ in range(AT_ONCE)]
    await until(lambda: case.evil.count(TOKEN) == AT_ONCE)
    for _ in range(AT_ONCE):
        with pytest.raises(IssuerUnavailable, match="logins are waiting for it already"):
            await case.issuer.exchange(code, verifier)
    assert case.evil.count(TOKEN) == AT_ONCE
    for one in held:
        one.cancel()
    await asyncio.wait(held)


async def test_a_refused_code(case):
    with pytest.raises(IssuerRefused, match="invalid_grant"):
        await case.issuer.exchange(Secret("x"), "v" * 43)


async def test_a_client_without_a_secret(make):
    case = await make(client_secret_file=None)
    with pytest.raises(IssuerRefused, match="invalid_client"):
        await case.exchange()
    assert case.evil.seen == (CLIENT, None)


async def test_a_secret_with_special_characters_arrives(case):
    await case.exchange()
    assert case.evil.seen == (CLIENT, SECRET)


async def test_userinfo_is_bounded(case):
    await case.exchange()
    case.evil.userinfo["a-1"] = {"groups": ["x"] * 10_000}
    [access] = case.evil.access
    await case.unavailable(case.issuer.userinfo(Secret(access)), "more than 32 KiB")


async def test_an_issuer_without_userinfo(case):
    case.evil.metadata["userinfo_endpoint"] = None
    assert await case.issuer.userinfo(Secret("a")) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "no secret"),
        (b"a\nb", "no secret"),
        (b"\xff", "no text"),
        (b"a" * 5000, "no secret"),
    ],
)
def test_files_without_a_secret(tmp_path, content, reason):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadSetting, match=reason):
        read_client_secret(file)


def test_the_end_of_the_line_is_no_part_of_a_secret(tmp_path):
    file = tmp_path / "secret"
    file.write_text("a b\r\n")
    assert read_client_secret(file) == Secret("a b")
    assert read_client_secret(None) is None
