"""Single sign-on over HTTP, against an issuer that is evil on demand."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import time
from urllib.parse import parse_qs, quote, urljoin, urlsplit

import aiohttp
import pytest
from joserfc.jwk import OctKey

from gateway.admin.pages.sso import STATE_COOKIE
from gateway.app import Tuning
from gateway.core.accounts import Origin
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.runtime.http_client import HttpClient
from gateway.runtime.sso_settings import CALLBACK
from gateway.services.issuer import FRESH, Issuer
from gateway.services.sso import Answer, Begun, LoggedIn, SsoService
from gateway.store.key_file import KeyStore
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
    signed_text,
    unsigned,
    with_public_key_as_secret,
)
from tests.support.harness import ADMIN, harness
from tests.support.pages import has_password, said

PATIENT = Tuning(issuer_timeout=10.0)
QUICK = Tuning(issuer_timeout=0.3)
"""For an issuer that hangs."""


@pytest.fixture
async def issuer():
    async with EvilIssuer().running() as started:
        yield started


@pytest.fixture
async def make(tmp_path, issuer):
    """Makes a gateway whose users log in at the issuer."""
    secret = tmp_path / "client-secret"
    secret.write_text(f"{SECRET}\n")
    async with contextlib.AsyncExitStack() as stack:

        async def start(tuning=PATIENT, **options):
            given = {
                "sso__issuer": issuer.url,
                "sso__client_id": CLIENT,
                "sso__client_secret_file": str(secret),
                "sso__roles": {"ice-admins": "admin", "lab": "member"},
                "sso__redirect_url": f"http://127.0.0.1:8440{CALLBACK}",
            }
            return await stack.enter_async_context(
                harness(tmp_path, tuning=tuning, **given | options)
            )

        yield start


@pytest.fixture
async def running(make):
    return await make()


@pytest.fixture
async def browser(running, browse):
    return await browse(running)


async def begin(browser, to=""):
    """Press the button; returns where the browser is sent."""
    answer = await browser.get(f"sso/login?to={quote(to)}" if to else "sso/login")
    assert answer.status == 302, f"no login begins: {answer}"
    return answer.headers["Location"]


async def log_in(browser, issuer, subject="a-1", to="", **changed):
    """Log in at the issuer and come back; returns the callback's answer."""
    url = await begin(browser, to)
    return await browser.get(f"sso/callback?{issuer.authorize(url, subject, **changed)}")


async def logged_in(browser):
    return (await browser.get("guide")).status == 200


async def events(running, action):
    path = f"/events?action={action}"
    return (await running.eventually(path, lambda answer: answer.json["items"])).json["items"]


def expect_refused(answer, status, sentence):
    assert answer.status == status, f"expected {status}, got {answer}"
    assert sentence in said(answer)
    assert 'name="password"' in answer.text, "a local user can log in"
    cookies = answer.headers.getall("Set-Cookie", [])
    assert not any(each.startswith("ice_login=") for each in cookies)


def counted(running, why):
    name = "ice_gateway_refused_credentials_total"
    return running.gateway.node._meters.registry.get_sample_value(name, {"why": why})


# --- the login -----------------------------------------------------------------------------------


async def test_a_user_of_the_issuer_logs_in(running, browser, issuer):
    page = await browser.get("login?to=ices/lab-1")
    assert 'href="http://127.0.0.1:8440/admin/sso/login?to=ices%2Flab-1"' in page.text
    assert 'name="password"' in page.text
    url = await begin(browser, "ices/lab-1?tab=x")
    asked = {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}
    assert url.startswith(f"{issuer.url}/authorize?")
    assert asked["scope"] == "openid profile email groups"
    assert asked["redirect_uri"] == f"http://127.0.0.1:8440{CALLBACK}"
    answer = await browser.get(f"sso/callback?{issuer.authorize(url)}")
    assert answer.status == 200, answer
    assert 'content="0; url=./ices/lab-1?tab=x"' in answer.text
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    login, state = sorted(answer.headers.getall("Set-Cookie"))
    assert "samesite=strict" in login.lower()
    assert "max-age=0" in state.lower()
    assert await logged_in(browser)
    user = await running.gateway.services.accounts.user("ada")
    assert (user.role, user.origin, user.issuer, user.subject) == (
        *(Role.ADMIN, Origin.SSO, issuer.url),
        "a-1",
    )
    [added] = [each for each in await events(running, "add-user") if each["actor"] == "ada"]
    assert added["detail"]["subject"] == "a-1"
    assert (await events(running, "log-in"))[-1]["actor"] == "ada"


async def test_the_state_cookie_is_for_the_redirect_of_the_issuer(running, browser):
    answer = await browser.get("sso/login")
    [cookie] = answer.headers.getall("Set-Cookie")
    assert cookie.startswith(f"{STATE_COOKIE}=")
    for part in ("HttpOnly", "SameSite=Lax", "Max-Age=600", "Path=/"):
        assert part.lower() in cookie.lower()
    assert answer.headers["Cache-Control"] == "no-store"


async def test_over_https_the_state_cookie_is_of_this_host_alone(make, browse):
    running = await make(
        server__public_url=["https://ice.example"],
        sso__redirect_url=f"https://ice.example{CALLBACK}",
    )
    answer = await (await browse(running)).get("sso/login")
    [cookie] = answer.headers.getall("Set-Cookie")
    assert cookie.startswith(f"__Host-{STATE_COOKIE}=")
    assert "secure" in cookie.lower()


async def test_without_an_issuer_there_is_no_single_sign_on(tmp_path, browse):
    async with harness(tmp_path) as running:
        browser = await browse(running)
        assert "single sign-on" not in (await browser.get("login")).text
        assert (await browser.get("sso/login")).status == 404
        assert (await browser.get("sso/callback")).status == 404
        assert (await browser.send("POST", "sso/backchannel-logout", {})).status == 404


OTHERS = ("https://evil.example/", "//evil.example/", "/x", "..//evil.example", "javascript:a\\")


async def test_no_login_goes_to_another_site(running, browse, issuer):
    for to in OTHERS:
        answer = await log_in(await browse(running), issuer, to=to)
        base = re.search(r'<base href="([^"]+)"', answer.text)[1]
        target = html.unescape(re.search(r'content="0; url=([^"]+)"', answer.text)[1])
        url = urljoin(urljoin("https://ice.example/gw/admin/sso/callback", base), target)
        assert url.startswith("https://ice.example/gw/admin/"), to


async def test_who_is_logged_in_does_not_log_in_again(browser, issuer):
    await log_in(browser, issuer)
    answer = await browser.get("sso/login?to=users")
    assert (answer.status, answer.headers["Location"]) == (302, "../users")


async def test_groups_and_name_may_come_from_userinfo(running, browser, issuer):
    issuer.people["a-1"] = {}
    issuer.userinfo["a-1"] = {"preferred_username": "ada", "groups": ["lab", "x"]}
    assert (await log_in(browser, issuer)).status == 200
    assert (await running.gateway.services.accounts.user("ada")).role is Role.MEMBER


async def test_the_role_follows_the_groups(running, browse, issuer):
    for groups, role in ((["lab"], "member"), (["lab", "ice-admins"], "admin"), ("lab", "member")):
        issuer.people["a-1"]["groups"] = groups
        assert (await log_in(await browse(running), issuer)).status == 200
        assert (await running.gateway.services.accounts.user("ada")).role == role
    changes = [each["detail"]["role"] for each in await events(running, "set-role")]
    assert changes == ["admin", "member"], "nothing is logged while it stays"


async def test_other_algorithms(running, browse, issuer):
    for alg in ("RS256", "PS256", "EdDSA"):
        issuer.rotate("other", alg)
        assert (await log_in(await browse(running), issuer)).status == 200, alg


async def test_a_client_authenticates_as_its_issuer_wants(browser, issuer):
    issuer.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    assert (await log_in(browser, issuer)).status == 200


async def test_two_first_logins_at_once_are_of_one_user(running, browse, issuer):
    browsers = [await browse(running) for _ in range(2)]
    answers = await asyncio.gather(*(log_in(each, issuer) for each in browsers))
    assert [each.status for each in answers] == [200, 200]
    assert len(await events(running, "log-in")) == 2


# --- who may not ---------------------------------------------------------------------------------


async def test_without_a_mapped_group_nobody_gets_in(running, browser, issuer):
    tried = (None, [], ["other"], ["LAB"], [["lab"]], {"lab": 1}, 7, ["x"] * 3000)
    for groups in tried:
        issuer.people["a-1"]["groups"] = groups
        expect_refused(await log_in(browser, issuer), 403, "None of your groups may use this")
    failed = (await events(running, "login-failed"))[0]
    assert failed["actor"] == "sso/a-1"
    known = {"user": "sso/a-1", "why": "sso-groups", "subject": "a-1", "name": "ada"}
    assert failed["detail"] == {**known, "count": failed["detail"]["count"]}
    assert counted(running, "sso-groups") == len(tried)
    assert await running.gateway.services.accounts.user("ada") is None


async def test_a_group_that_is_taken_away_ends_all_logins(running, browser, browse, issuer):
    await log_in(browser, issuer)
    issuer.people["a-1"]["groups"] = []
    expect_refused(await log_in(await browse(running), issuer), 403, "None of your groups")
    assert not await logged_in(browser)
    [ended] = await events(running, "end-logins")
    assert ended["detail"] == {"user": "ada", "logins_ended": 1}
    assert (await events(running, "login-failed"))[0]["detail"]["user"] == "ada"


async def test_a_name_in_use_is_refused_until_an_admin_links_it(running, browser, issuer):
    issuer.people["a-1"]["preferred_username"] = "Alice"
    expect_refused(await log_in(browser, issuer), 403, "The name Alice is in use here.")
    [failed] = await events(running, "login-failed")
    assert (failed["detail"]["subject"], failed["detail"]["name"]) == ("a-1", "Alice")
    assert (await running.gateway.services.accounts.user("alice")).origin is Origin.LOCAL


NAMES_OF_NOBODY = (
    *(None, "", "a/b", "..", "a" * 129, "a\nb", 7, ["ada"]),
    *("root ", " root", "root\ufe0f", "r\u034foot", "\u3164", "\u2800", "root\U000e0101"),
)


async def test_a_name_that_no_user_can_have_is_refused(browser, issuer):
    for name in NAMES_OF_NOBODY:
        issuer.people["a-1"]["preferred_username"] = name
        expect_refused(await log_in(browser, issuer), 403, "gave no preferred_username")


async def test_a_name_for_a_terminal_or_against_the_direction_of_a_page(running, browser, issuer):
    issuer.people["a-1"]["preferred_username"] = "\x1b[31m\u202e\n\0" + "a" * 200
    await log_in(browser, issuer)
    [failed] = await events(running, "login-failed")
    assert failed["detail"]["name"] == r"\x1b[31m\u202e\n\x00" + "a" * 120


async def test_a_disabled_user_is_refused(running, browser, browse, issuer):
    await log_in(browser, issuer)
    await running.gateway.services.accounts.disable(ADMIN, "ada")
    expect_refused(await log_in(await browse(running), issuer), 403, "Your user is disabled here.")
    assert (await events(running, "login-failed"))[0]["detail"]["why"] == "sso-disabled"


async def test_many_failed_logins_of_an_address_are_throttled(running, browser, issuer):
    issuer.people["a-1"]["groups"] = []
    for _ in range(50):
        assert (await log_in(browser, issuer)).status == 403
    asked = issuer.count(TOKEN)
    answer = await log_in(browser, issuer)
    expect_refused(answer, 429, "Too many failed attempts.")
    assert int(answer.headers["Retry-After"]) > 800
    assert issuer.count(TOKEN) == asked
    # Of one person: one event, and the rest counted until its turn.
    assert len(await events(running, "login-failed")) == 1


# --- state, code and issuer -----------------------------------------------------------------------

BEGIN_AGAIN = "This login was not begun in this browser"
NOT_ACCEPTED = "The answer of single sign-on was not accepted."


async def test_a_callback_is_good_in_the_browser_that_began(running, browser, browse, issuer):
    back = issuer.authorize(await begin(browser))
    other = await browse(running)
    expect_refused(await other.get(f"sso/callback?{back}"), 403, BEGIN_AGAIN)
    await begin(other)  # with a cookie of its own
    expect_refused(await other.get(f"sso/callback?{back}"), 403, BEGIN_AGAIN)
    assert issuer.count(TOKEN) == 0
    assert counted(running, "sso-state") == 2
    assert (await browser.get(f"sso/callback?{back}")).status == 200


async def test_a_callback_is_good_once(running, browser, issuer):
    url = await begin(browser)
    cookie = next(each for each in browser.session.cookie_jar if each.key == STATE_COOKIE).value
    back = issuer.authorize(url)
    assert (await browser.get(f"sso/callback?{back}")).status == 200
    expect_refused(await browser.get(f"sso/callback?{back}"), 403, BEGIN_AGAIN)
    stolen = {"Cookie": f"{STATE_COOKIE}={cookie}"}
    for query in (back, issuer.authorize(url)):
        answer = await browser.get(f"sso/callback?{query}", headers=stolen)
        expect_refused(answer, 403, BEGIN_AGAIN)
    assert issuer.count(TOKEN) == 1


async def test_of_logins_in_two_tabs_the_last_one_succeeds(browser, issuer):
    first, second = await begin(browser, "ices"), await begin(browser, "nodes")
    expect_refused(await browser.get(f"sso/callback?{issuer.authorize(first)}"), 403, BEGIN_AGAIN)
    answer = await browser.get(f"sso/callback?{issuer.authorize(second)}")
    assert (answer.status, await logged_in(browser)) == (200, True)


async def test_a_cookie_that_no_gateway_sealed(browser, issuer):
    back = issuer.authorize(await begin(browser))
    browser.session.cookie_jar.clear()
    for cookie in ("", "x", "A" * 100, "é", "A" * 5000):
        headers = {"Cookie": f"{STATE_COOKIE}={cookie}"}
        answer = await browser.get(f"sso/callback?{back}", headers=headers)
        expect_refused(answer, 403, BEGIN_AGAIN)


async def test_the_code_of_another_login_is_refused_by_pkce(browser, issuer):
    stolen = parse_qs(issuer.authorize(await begin(browser)))["code"][0]
    answer = await log_in(browser, issuer, code=stolen)
    expect_refused(answer, 403, "Single sign-on refused the login (invalid_grant).")


async def test_a_callback_without_a_code(browser, issuer):
    for code in (None, "", "é", "a" * 5000):
        expect_refused(await log_in(browser, issuer, code=code), 403, NOT_ACCEPTED)
    assert issuer.count(TOKEN) == 0


async def test_a_callback_with_two_states(browser, issuer):
    back = issuer.authorize(await begin(browser))
    expect_refused(await browser.get(f"sso/callback?{back}&state=x"), 403, BEGIN_AGAIN)


ERRORS = {
    "access_denied": "refused the login (access_denied)",
    "<script>alert(1)</script>": "refused the login. Log in again",
    "x" * 3000: "refused the login. Log in again",
}


async def test_an_error_of_the_issuer_is_told(browser, issuer):
    for error, shown in ERRORS.items():
        more = {"error": error, "error_description": "<b>Bad</b>"}
        answer = await log_in(browser, issuer, code=None, **more)
        expect_refused(answer, 403, shown)
        assert "Bad" not in answer.text
        assert "<script>alert" not in answer.text


@pytest.mark.parametrize("iss", ["https://evil.example", None])
async def test_an_answer_of_another_issuer_sends_its_code_nowhere(browser, issuer, iss):
    expect_refused(await log_in(browser, issuer, iss=iss), 403, NOT_ACCEPTED)
    assert issuer.count(TOKEN) == 0


async def test_an_issuer_that_does_not_name_itself(browser, issuer):
    issuer.metadata["authorization_response_iss_parameter_supported"] = None
    assert (await log_in(browser, issuer, iss=None)).status == 200


def service(running, issuer):
    """The single sign-on of another node."""
    gateway = running.gateway
    return SsoService(
        issuer,
        engine=gateway.engine,
        keys=KeyStore(gateway.settings.key_file),
        clock=running.clock,
        logins=gateway.services.logins,
    )


async def test_another_node_finishes_a_login(running, issuer):
    """Also the first login of all, for which the node that begins it makes the key file."""
    gateway = running.gateway
    began = await gateway.admin.sso.begin("", "::1")
    back = parse_qs(issuer.authorize(began.url))
    answer = Answer(Secret(back["code"][0]), back["state"][0], issuer.url, None)
    async with HttpClient() as http:
        other = service(running, Issuer(gateway.admin.sso.settings, http))
        assert isinstance(await other.finish(answer, began.cookie, "::1"), LoggedIn)
        again = await gateway.admin.sso.finish(answer, began.cookie, "::1")
        assert again.why == "sso-state", "what one node has finished no other does"


# --- ID tokens -------------------------------------------------------------------------------------


def now(seconds=0.0):
    return time.time() + seconds


# What is of the future when a test begins that comes long after this module was read.
LATE = now(86_400)

CLAIMS = {
    "another issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "another client": {"aud": "other"},
    "no audience": {"aud": None},
    "several clients without azp": {"aud": [CLIENT, "other"]},
    "several clients, for another": {"aud": [CLIENT, "other"], "azp": "other"},
    "azp of another": {"azp": "other"},
    "expired": {"exp": now(-61)},
    "no expiry": {"exp": None},
    "expiry as text": {"exp": "9999999999"},
    "expiry true": {"exp": True},
    "issued long ago": {"iat": now(-3700)},
    "issued in the future": {"iat": LATE},
    "not issued": {"iat": None},
    "not yet good": {"nbf": LATE},
    "wrong nonce": {"nonce": "x"},
    "no nonce": {"nonce": None},
    "no subject": {"sub": None},
    "subject as number": {"sub": 1},
    "subject too long": {"sub": "s" * 256},
    "subject of two lines": {"sub": "a\nb"},
    "empty subject": {"sub": ""},
    "session as list": {"sid": ["x"]},
}
ONE, HEAD = key_of("ES256", "one"), {"alg": "ES256", "kid": "one"}
SIGNATURES = {
    "alg none": unsigned,
    "alg None": lambda claims: unsigned(claims, "None"),
    "no header": lambda _: "..",
    "no token": lambda _: "x",
    "an empty token": lambda _: "",
    "HS256 with the client secret": lambda claims: signed(
        claims, OctKey.import_key(SECRET), alg="HS256", kid="one"
    ),
    "HS256 with the public key": lambda claims: with_public_key_as_secret(
        claims, key_of("ES256", "one")
    ),
    "another key of the same kid": lambda claims: signed(
        claims, key_of("ES256", "evil"), kid="one"
    ),
    "another algorithm than the key's": lambda claims: signed(
        claims, key_of("RS256", "evil"), kid="one"
    ),
    "an unknown kid": lambda claims: signed(claims, key_of("ES256", "evil")),
    "its own key in the header": lambda claims: signed(
        claims,
        key_of("ES256", "evil"),
        kid=None,
        jwk=key_of("ES256", "evil").as_dict(private=False),
    ),
    "an address of its key in the header": lambda claims: signed(
        claims, key_of("ES256", "evil"), kid="one", jku="https://evil.example/jwks"
    ),
    "a critical header": lambda claims: signed(
        claims, key_of("ES256", "one"), crit=["b64"], b64=True
    ),
    "a changed payload": lambda claims: _swapped(claims),  # noqa: PLW0108 - it stands below
    "claims as a list": lambda _: signed_text("[1]", ONE, HEAD),
    "claims as deep JSON": lambda _: signed_text("[" * 5000 + "]" * 5000, ONE, HEAD),
}


def _swapped(claims):
    good, evil = (signed(each, ONE).split(".") for each in (claims, claims | {"sub": "root"}))
    return ".".join((good[0], evil[1], good[2]))


async def test_id_tokens_that_are_refused(running, browser, issuer):
    """In one test: to start a gateway for each would take as long as all of them."""
    for what, changed in CLAIMS.items():
        issuer.changed = changed
        answer = await log_in(browser, issuer)
        assert (answer.status, NOT_ACCEPTED in said(answer)) == (403, True), f"{what}: {answer}"
    issuer.changed = {}
    for what, sign in SIGNATURES.items():
        issuer.sign = sign
        answer = await log_in(browser, issuer)
        assert (answer.status, NOT_ACCEPTED in said(answer)) == (403, True), f"{what}: {answer}"
    assert not await logged_in(browser)
    assert await running.gateway.services.accounts.user("ada") is None
    assert counted(running, "sso-token") == len(CLAIMS) + len(SIGNATURES)


async def test_id_tokens_that_are_good_although_they_differ(running, browse, issuer):
    for changed in (
        {"aud": [CLIENT]},
        {"aud": [CLIENT, "other"], "azp": CLIENT},
        {"iat": now(50)},
        {"exp": now(-30)},
        {"sid": None},
    ):
        issuer.changed = changed
        answer = await log_in(await browse(running), issuer)
        assert answer.status == 200, f"{changed}: {answer}"


async def test_keys_that_are_rotated_in_the_middle(browse, running, issuer):
    assert (await log_in(await browse(running), issuer)).status == 200
    browser = await browse(running)
    url = await begin(browser)
    issuer.rotate("two", "RS256")
    answer = await browser.get(f"sso/callback?{issuer.authorize(url)}")
    assert answer.status == 200
    issuer.key = key_of("ES256", "one")
    expect_refused(await log_in(await browse(running), issuer), 403, NOT_ACCEPTED)


# --- an issuer that does not work ------------------------------------------------------------------


@pytest.mark.parametrize("answer", [evil_issuer.hangs, evil_issuer.redirects])
async def test_metadata_that_cannot_be_read(make, browse, issuer, answer):
    running = await make(QUICK if answer is evil_issuer.hangs else PATIENT)
    browser = await browse(running)
    issuer.answers[METADATA] = answer
    await has_password(running, "root")
    refused = await browser.get("sso/login?to=users")
    expect_refused(refused, 503, "the issuer cannot be reached")
    assert 'value="users"' in refused.text, "the deep link is kept"
    asked = issuer.count(METADATA)
    expect_refused(await browser.get("sso/login"), 503, "the issuer cannot be reached")
    assert issuer.count(METADATA) == asked, "for some seconds it is not asked again"
    assert (await browser.log_in()).status == 303, "local users get in"


async def test_no_browser_is_sent_to_an_issuer_that_broke_after_a_login(running, issuer):
    seconds = 0.0
    async with HttpClient() as http:
        settings = running.gateway.admin.sso.settings
        sign_on = service(running, Issuer(settings, http, lambda: seconds))
        assert isinstance(await sign_on.begin("", "::1"), Begun)
        issuer.answers[METADATA] = evil_issuer.fails
        assert isinstance(await sign_on.begin("", "::1"), Begun)
        seconds += FRESH
        assert (await sign_on.begin("", "::1")).status == 503


@pytest.mark.parametrize("path", [TOKEN, JWKS, USERINFO])
async def test_an_issuer_that_breaks_in_the_middle(make, browse, issuer, path):
    running = await make(QUICK)
    browser = await browse(running)
    issuer.people["a-1"] = {}
    issuer.userinfo["a-1"] = {"preferred_username": "ada", "groups": ["lab"]}
    for answer in (evil_issuer.html, evil_issuer.fails, evil_issuer.hangs):
        issuer.answers[path] = answer
        expect_refused(await log_in(browser, issuer), 503, "the issuer cannot be reached")
        if path == JWKS:
            break  # what it publishes is not asked for again for some seconds
    assert counted(running, "sso-issuer")
    assert not await logged_in(browser)


async def test_userinfo_of_somebody_else(running, browser, issuer):
    issuer.people["a-1"] = {}
    issuer.userinfo["a-1"] = {"sub": "b-2", "preferred_username": "bob", "groups": ["ice-admins"]}
    expect_refused(await log_in(browser, issuer), 403, NOT_ACCEPTED)
    assert await running.gateway.services.accounts.user("bob") is None


async def test_a_wrong_client_secret(make, browse, issuer, tmp_path):
    running = await make()
    browser = await browse(running)
    (tmp_path / "client-secret").write_text("another")
    answer = await log_in(browser, issuer)
    expect_refused(answer, 403, "Single sign-on refused the login (invalid_client).")
    (tmp_path / "client-secret").write_text(SECRET)
    assert (await log_in(browser, issuer)).status == 200, "it is read for each login"
    (tmp_path / "client-secret").unlink()
    expect_refused(await log_in(await browse(running), issuer), 503, "cannot be reached")


# --- back-channel logout ---------------------------------------------------------------------------


async def tell(running, token, **headers):
    """Send a logout token as an issuer does."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{running.url}/admin/sso/backchannel-logout",
            data={"logout_token": token},
            headers=headers,
        ) as response,
    ):
        assert response.headers["Cache-Control"] == "no-store"
        body = await response.read()
        document = await response.json() if body else {}
        return response.status, document.get("error_description")


@pytest.mark.parametrize(
    "named", [{"sid": "session of a-1"}, {"sub": "a-1"}, {"sub": "a-1", "sid": "session of a-1"}]
)
async def test_the_issuer_ends_logins(running, browse, issuer, named):
    issuer.people["b-2"] = {"preferred_username": "bob", "groups": ["lab"]}
    ada, bob = await browse(running), await browse(running)
    await log_in(ada, issuer)
    await log_in(bob, issuer, "b-2")
    assert await tell(running, issuer.logout_token(**named)) == (200, None)
    assert not await logged_in(ada)
    assert await logged_in(bob)
    [ended] = await events(running, "end-logins")
    assert ended["detail"] == {"user": "ada", "logins_ended": 1}


async def test_a_login_without_a_session_is_ended_by_its_subject(running, browser, issuer):
    issuer.changed = {"sid": None}
    await log_in(browser, issuer)
    assert await tell(running, issuer.logout_token(sub="a-1", sid="other")) == (200, None)
    assert not await logged_in(browser)


async def test_the_streams_of_a_login_end_with_it(running, browser, issuer):
    await log_in(browser, issuer)
    async with browser.session.get(f"{running.url}/admin/api/v1/events/stream") as stream:
        assert stream.status == 200
        assert await tell(running, issuer.logout_token(sub="a-1")) == (200, None)
        while await stream.content.readany():
            pass  # what was sent before; then the stream ends


LOGOUT = {
    "another issuer": {"iss": "https://evil.example"},
    "another client": {"aud": "other"},
    "an old one": {"iat": now(-700)},
    "a future one": {"iat": LATE},
    "expired": {"exp": now(-100)},
    "without expiry": {"exp": None},
    "with a nonce": {"nonce": "n"},
    "with an empty nonce": {"nonce": ""},
    "without events": {"events": None},
    "with another event": {"events": {"http://schemas.openid.net/event/other": {}}},
    "with events as a list": {"events": ["http://schemas.openid.net/event/backchannel-logout"]},
    "without jti": {"jti": None},
    "jti as number": {"jti": 1},
    "without sub and sid": {"sub": None},
    "sub as list": {"sub": ["a-1"]},
}


async def test_logout_tokens_that_are_refused(running, browser, issuer):
    await log_in(browser, issuer)
    for what, changed in LOGOUT.items():
        status, reason = await tell(running, issuer.logout_token(**{"sub": "a-1"} | changed))
        assert status == 400, what
        assert reason.startswith(("it ", "its ")), what
    for key, header in (
        (key_of("ES256", "evil"), {"kid": "one"}),
        (key_of("ES256", "evil"), {}),
        (OctKey.import_key(SECRET), {"alg": "HS256", "kid": "one"}),
    ):
        token = issuer.logout_token(sub="a-1", key=key, header=header)
        assert (await tell(running, token))[0] == 400, header
    assert (await tell(running, unsigned({"sub": "a-1"})))[0] == 400
    for token in ("", "x" * 33_000, "x" * 100_000):
        assert (await tell(running, token))[0] == 400
    assert await logged_in(browser)
    assert issuer.count(JWKS) == 1, "forged keys cost no request"


async def test_a_logout_token_is_good_once(running, browser, issuer):
    token = issuer.logout_token(sub="a-1")
    assert await tell(running, token) == (200, None), "who is not here is logged out"
    await log_in(browser, issuer)
    assert await tell(running, token) == (400, "it was used before")
    assert await logged_in(browser)
    assert counted(running, "logout-token") == 1


async def test_a_logout_without_a_token(running):
    url = f"{running.url}/admin/sso/backchannel-logout"
    async with aiohttp.ClientSession() as session:
        for data, headers in (({"x": "y"}, {}), ("{}", {"Content-Type": "application/json"})):
            async with session.post(url, data=data, headers=headers) as response:
                assert response.status == 400
                assert (await response.json())["error"] == "invalid_request"
