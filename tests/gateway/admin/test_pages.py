"""The admin's pages as HTTP: logging in, who may see and do what, and what a page never does."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
from datetime import timedelta
from urllib.parse import quote, urlencode, urljoin

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from gateway.admin.auth import COOKIE, FORM_TOKEN
from gateway.admin.pages.audit import ACTIONS
from gateway.app import run_gateway
from gateway.core.ice import IceType, Status
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.services.login_failures import LoginFailures
from gateway.services.logins import LoginService
from gateway.services.passwords import TooBusy
from gateway.store.engine import StoreUnavailable
from gateway.web.responses import MAX_BODY
from tests.contract.domain import add_user, login_rules, unguarded
from tests.support.harness import ADMIN, API, Api, expect_refused, harness, settings_for
from tests.support.ice import Key
from tests.support.pages import PASSWORD, Browser, has_password, said
from tests.support.work import connected

WRONG = "Name or password is wrong."
SCRIPT = "<script>alert('x')</script>\"&"
PAGES = ["", "users", "api-tokens", "me", "audit", "guide", "ices/lab-1"]


changes_nothing = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway for tests that change nothing: lab-1 of alice, `theirs` of bob, and a browser of each role."""
    async with (
        harness(tmp_path_factory.mktemp("shared")) as started,
        contextlib.AsyncExitStack() as stack,
    ):
        await started.add_user("bob")
        await started.provision()
        provisioning = started.gateway.services.provisioning
        await provisioning.provision(ADMIN, "theirs", IceType.NORMAL, "bob")
        started.browsers = {}
        roles = {"alice": Role.MEMBER, "eve": Role.AUDITOR, "root": Role.ADMIN, "other": Role.ADMIN}
        for name, role in roles.items():
            await has_password(started, name, role)
        for name in ("stranger", *roles):
            jar = aiohttp.CookieJar(unsafe=True)
            session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
            browser = started.browsers[name] = Browser(session, started.url)
            if name in roles:
                assert (await browser.log_in(name)).status == 303
        yield started


@pytest.fixture
def shared_root(shared):
    """The browser of its admin."""
    return shared.browsers["root"]


async def last_seq(running):
    return await running.gateway.admin.events.last()


async def actions(running):
    return [entry.event.action for entry in await running.gateway.admin.events.after(0, 1000)]


def expect_login_page(answer, status, sentence=None):
    assert answer.status == status, f"expected the login page with {status}, got {answer}"
    assert 'name="password"' in answer.text
    if sentence is not None:
        assert sentence in said(answer)


# --- logging in ----------------------------------------------------------------------------------


async def test_right_password_opens_the_page(running, browse):
    await has_password(running, "root")
    browser = await browse(running)
    expect_login_page(await browser.get("login"), 200)
    answer = await browser.log_in("ROOT")
    assert (answer.status, answer.headers["Location"]) == (303, "./")
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie
    assert "secure" not in cookie, "over http the browser would not send it back"
    page = await browser.get()
    assert page.status == 200
    assert "root (admin)" in said(page)
    assert (await browser.get("login")).headers["Location"] == "./", "who is logged in goes on"
    assert (await actions(running))[-1] == "log-in"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("root", "wrong"),
        ("root", ""),
        ("root", PASSWORD + " "),
        ("root", PASSWORD.upper()),
        ("nobody", PASSWORD),
        ("", ""),
        ("tagged", ""),
        ("tagged", PASSWORD),
        ("gone", PASSWORD),
        ("r" * 10_000, PASSWORD),
        ("\x00", "\x00"),
        ("\ud7ff\U0010ffff", "\N{SNOWMAN}"),
    ],
)
async def test_wrong_credentials_are_told_alike(running, browse, name, password):
    await has_password(running, "root")
    await running.add_user("tagged")
    await has_password(running, "gone", Role.MEMBER)
    await running.gateway.services.accounts.disable(ADMIN, "gone")
    browser = await browse(running)
    answer = await browser.log_in(name, password)
    expect_login_page(answer, 401, WRONG)
    assert "Set-Cookie" not in answer.headers
    assert (await browser.get()).status == 302
    assert "log-in" not in await actions(running)


async def test_cookie_is_secure_where_the_public_url_is(tmp_path, browse):
    async with harness(tmp_path, server__public_url=["https://ice.example/gw"]) as running:
        await has_password(running, "root")
        browser = await browse(running)
        answer = await browser.log_in()
        name, _, rest = answer.headers["Set-Cookie"].partition("=")
        assert name == "__Host-ice_login"
        assert {"secure", "path=/"} < {part.strip().lower() for part in rest.split(";")}
        assert "domain" not in rest.lower()
        value = rest.partition(";")[0]
        for name, status in (("__Host-ice_login", 200), ("ice_login", 302)):
            answer = await browser.get("", headers={"Cookie": f"{name}={value}"})
            assert answer.status == status, f"{name} gave {answer}"
        headers = {
            "Cookie": f"__Host-ice_login={value}",
            "Origin": running.url,
            FORM_TOKEN: await form_token(browser, value),
        }
        answer = await browser.send("POST", "logout", headers=headers)
        forgotten = answer.headers["Set-Cookie"].lower()
        assert forgotten.startswith("__host-ice_login=")
        assert "secure" in forgotten, "or else browsers keep a cookie of this name"


async def form_token(browser, cookie):
    page = await browser.get("guide", headers={"Cookie": f"__Host-ice_login={cookie}"})
    return re.search(r'name="form-token" content="(\w+)"', page.text)[1]


async def test_over_plain_http_the_cookie_of_https_is_not_believed(running, root):
    headers = {"Cookie": f"__Host-ice_login={root.cookie}"}
    root.session.cookie_jar.clear()
    assert (await root.get("", headers=headers)).status == 302


@pytest.mark.parametrize(
    "origin", [None, "", "null", "http://evil.example", "http://[", "http://127.0.0.1:1"]
)
async def test_login_has_to_come_from_the_login_page(running, browse, origin):
    await has_password(running, "root")
    browser = await browse(running)
    answer = await browser.log_in(Origin=origin)
    assert answer.status == 403
    assert "did not come from the login page" in said(answer)
    assert "Set-Cookie" not in answer.headers


async def test_first_user_is_hinted_at_while_there_is_none(tmp_path, browse):
    async with run_gateway(settings_for(tmp_path)) as gateway:
        browser = await browse(gateway)
        page = await browser.get("login")
        assert "ice-gateway users add NAME --role admin" in said(page)
        await gateway.services.accounts.add_user(ADMIN, "root", Role.ADMIN, None)
        assert "users add" not in said(await browser.get("login"))


# --- throttling ----------------------------------------------------------------------------------


async def test_sixth_attempt_of_a_user_from_one_address_is_refused(running, browse, root):
    api = await running.api("root")
    stranger = await browse(running)
    for _ in range(5):
        expect_login_page(await stranger.log_in("root", "wrong"), 401, WRONG)
    answer = await stranger.log_in("ROOT")
    expect_login_page(answer, 429, "Too many failed attempts. Try again in 15 minutes.")
    assert 800 < int(answer.headers["Retry-After"]) <= 900
    assert 'value="ROOT"' in answer.text, "what was typed is kept"
    # whoever is in stays in, and others are let in
    assert (await root.get()).status == 200
    assert (await api.get("/ices")).status == 200
    await browse(running, "eve", Role.AUDITOR)


async def test_success_clears_the_user_but_not_the_address(running, browse):
    await has_password(running, "root")
    browser = await browse(running)
    for _ in range(3):
        for _ in range(4):
            assert (await browser.log_in("root", "wrong")).status == 401
        assert (await browser.log_in()).status == 303


async def test_fiftyfirst_attempt_from_one_address_is_refused(tmp_path, browse):
    async with harness(tmp_path, server__trusted_proxies=["127.0.0.1"]) as running:
        await has_password(running, "root")
        browser = await browse(running)
        here, there = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        for number in range(50):
            assert (await browser.log_in(f"u{number}", "x", **here)).status == 401
        expect_login_page(await browser.log_in(**here), 429, "Too many failed attempts")
        assert (await browser.log_in(**there)).status == 303


async def test_address_that_is_held_off_has_no_more_names_remembered(running, browse, monkeypatch):
    """Or else it could have others' failures forgotten, and its own."""

    async def wrong(*_):
        return False

    monkeypatch.setattr(running.passwords, "verify", wrong)
    desk = LoginService(
        engine=running.gateway.engine,
        clock=utc_now,
        passwords=running.passwords,
        failures=LoginFailures(running.gateway.engine, utc_now, lambda _: None),
        rules=login_rules(),
    )
    tries = [await desk.log_in(f"user {n}", Secret("x"), "192.0.2.1") for n in range(200)]
    assert [tried.wait > 0 for tried in tries] == [False] * 50 + [True] * 150
    assert len(desk._attempts) == 50
    # Nor does one who insists on a name that is held off use up the address.
    for _ in range(200):
        await desk.log_in("root", Secret("x"), "192.0.2.2")
    assert (await desk.log_in("another", Secret("x"), "192.0.2.2")).wait == 0


async def test_who_could_not_be_checked_has_not_failed(running, browse, monkeypatch):
    await has_password(running, "root")
    browser = await browse(running)

    async def busy(*_):
        raise TooBusy

    with monkeypatch.context() as patch:
        patch.setattr(running.passwords, "verify", busy)
        for _ in range(60):
            assert (await browser.log_in()).status == 429
    assert (await browser.log_in()).status == 303


# --- how a login ends ----------------------------------------------------------------------------


class Hands:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = utc_now()

    def __call__(self):
        return self.now

    def move(self, **by):
        self.now += timedelta(**by)


@pytest.fixture
async def timed(tmp_path, browse):
    """A gateway, its clock, and an admin's browser."""
    clock = Hands()
    async with harness(tmp_path, clock=clock) as running:
        yield running, clock, await browse(running, "root")


async def test_login_ends_when_it_is_not_used(timed):
    _, clock, browser = timed
    for _ in range(3):
        clock.move(minutes=29)
        assert (await browser.get()).status == 200
    clock.move(minutes=30)
    assert (await browser.get()).status == 302


async def test_login_ends_after_its_time_though_it_is_used(timed):
    _, clock, browser = timed
    for _ in range(25):
        clock.move(minutes=28)
        assert (await browser.get()).status == 200
    clock.move(minutes=20)
    assert (await browser.get()).status == 302


async def test_what_a_page_asks_for_by_itself_does_not_keep_a_login(timed):
    _, clock, browser = timed
    for _ in range(2):
        clock.move(minutes=14)
        live = {"HX-Request": "true", "HX-Target": "table", "X-Live": "true"}
        assert (await browser.get("", headers=live)).status == 200
    clock.move(minutes=2)
    assert (await browser.get()).status == 302


async def test_open_event_stream_does_not_keep_a_login(timed, monkeypatch):
    running, clock, browser = timed
    url = f"{running.url}{API}/events/stream"
    async with browser.session.get(url) as stream:
        assert stream.status == 200
        clock.move(minutes=20)
        await running.add_user("bob")  # users change: the stream looks at its caller again
        async with asyncio.timeout(5):
            while b"add-user" not in await stream.content.readline():
                pass
        clock.move(minutes=11)
        await running.add_user("carol")
        async with asyncio.timeout(5):
            assert b"carol" not in await stream.read(), "the stream was expected to end"
    assert (await browser.get()).status == 302


async def test_log_out_revokes_the_login(running, root):
    cookie = root.cookie
    answer = await root.post("logout")
    assert (answer.status, answer.headers["HX-Redirect"]) == (200, "./login")
    assert root.cookie is None, "the browser was expected to be told to forget it"
    answer = await root.get("", headers={"Cookie": f"{COOKIE}={cookie}"})
    assert answer.status == 302


async def test_disabled_user_is_out_at_once(running, browse, root):
    eve = await browse(running, "eve", Role.AUDITOR)
    answer = await root.post("users/disable", {"name": "eve"})
    assert answer.status == 200
    assert (await eve.get()).status == 302
    assert (await eve.part("users")).status == 401
    expect_login_page(await eve.log_in("eve"), 401, WRONG)


async def test_ended_logins_are_out_and_may_log_in_again(running, browse, root):
    first, second = [await browse(running, "eve", Role.AUDITOR) for _ in range(2)]
    answer = await root.post("users/logins", {"name": "EVE"})
    assert "2 logins ended." in said(answer)
    assert [(await first.get()).status, (await second.get()).status] == [302, 302]
    assert (await root.get()).status == 200
    assert (await first.log_in("eve")).status == 303


async def test_role_counts_from_the_next_request_on(running, browse, root):
    eve = await browse(running, "eve", Role.AUDITOR)
    assert (await eve.get("audit")).status == 200
    assert (await root.post("users/role", {"name": "eve", "role": "member"})).status == 200
    assert (await eve.get("audit")).status == 403


@pytest.mark.parametrize(
    "cookie", ["", "x", "\N{SNOWMAN}", "%00", "a" * 5000, "icegw_", '"', "x; y"]
)
@changes_nothing
async def test_garbage_for_a_cookie_is_nobody(shared, cookie):
    answer = await shared.browsers["stranger"].get("", headers={"Cookie": f"{COOKIE}={cookie}"})
    assert (answer.status, answer.headers["Location"]) == (302, "./login")


# --- redirects and addresses ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "users", "ices/lab-1", "no/such/page", "ices/a%2Fb"])
@changes_nothing
async def test_who_is_not_logged_in_is_sent_to_the_login_page(shared, path):
    answer = await shared.browsers["stranger"].get(path)
    assert answer.status == 302
    to = f"?to={quote(path)}" if path else ""
    assert urljoin(answer.url, answer.headers["Location"]) == f"{shared.url}/admin/login{to}"


async def test_login_leads_to_the_address_that_was_asked_for(running, browse):
    await has_password(running, "root")
    await running.provision("lab-1")
    browser = await browse(running)
    asked = "?q=a%20%26b&label=os%3Dx&page=1"
    page = await browser.get(f"ices/lab-1{asked}", follow=True)
    to = html.unescape(re.search(r'name="to" value="([^"]*)"', page.text)[1])
    login = {"name": "root", "password": "wrong", "to": to}
    page = await browser.send("POST", "login", login, headers={"Origin": browser.origin})
    assert html.unescape(re.search(r'name="to" value="([^"]*)"', page.text)[1]) == to
    login["password"] = PASSWORD
    answer = await browser.send("POST", "login", login, headers={"Origin": browser.origin})
    assert answer.status == 303
    assert urljoin(page.url, answer.headers["Location"]) == f"{running.url}/admin/ices/lab-1{asked}"
    # Who is logged in already goes there at once.
    answer = await browser.get(f"login?{urlencode({'to': 'users?q=a'})}")
    assert answer.headers["Location"] == "./users?q=a"


@pytest.mark.parametrize(
    "to",
    [
        *("//evil.example", "/metrics", "\\\\evil.example", "../healthz", "a/../../healthz"),
        *("%2e%2e/healthz", "%2Fevil", "a\r\nX: y", "ü", "x#y", "a" * 3000),
    ],
)
@changes_nothing
async def test_login_leads_nowhere_else(shared_root, to):
    answer = await shared_root.get(f"login?{urlencode({'to': to})}")
    assert answer.headers["Location"] == "./"


@pytest.mark.parametrize("prefix", ["/gw", "/admin/gw", "/a/admin", "/a.b/c"])
async def test_pages_work_under_a_prefix(tmp_path, browse, prefix):
    public = {"server__public_url": [f"http://ice.example{prefix}"]}
    async with harness(tmp_path, **public) as running:
        await has_password(running, "root")
        browser = await browse(running)
        base = f"{running.url}{prefix}/admin"
        for path in ("", "users", "ices/x/deregister"):
            answer = await browser.get(f"{base}/{path}")
            to = f"?to={quote(path)}" if path else ""
            assert urljoin(answer.url, answer.headers["Location"]) == f"{base}/login{to}"
        answer = await browser.get(base)
        assert urljoin(answer.url, answer.headers["Location"]) == f"{base}/"
        assert (await browser.log_in()).status == 303
        for path in ("", "users", "ices/none", "no/such/page"):
            page = await browser.get(f"{base}/{path}")
            way = re.search(r'<base href="([./]+)">', page.text)[1]
            assert urljoin(page.url, way) == f"{base}/", f"{path} has base {way}"


async def test_pages_work_behind_a_proxy_that_takes_the_prefix_away(tmp_path, browse):
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession())
        upstream = []

        async def forward(request):
            headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
            url = f"{upstream[0]}/{request.match_info['tail']}"
            async with client.request(
                request.method,
                url,
                headers=headers,
                data=await request.read(),
                allow_redirects=False,
            ) as answer:
                kept = {
                    k: v
                    for k, v in answer.headers.items()
                    if k in ("Location", "Set-Cookie", "Content-Type", "HX-Redirect")
                }
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

        app = web.Application()
        app.router.add_route("*", "/deep/gw/{tail:.*}", forward)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        public = f"http://127.0.0.1:{runner.addresses[0][1]}/deep/gw"
        running = await stack.enter_async_context(harness(tmp_path, server__public_url=[public]))
        upstream.append(running.url)
        await has_password(running, "root")
        browser = await browse(running)
        browser.url, browser.origin = public, public.removesuffix("/deep/gw")
        answer = await browser.get("users", follow=True)
        assert answer.url == f"{public}/admin/login?to=users"
        answer = await browser.send("GET", f"{public}/admin", follow=True)
        assert answer.url == f"{public}/admin/login"
        answer = await browser.log_in()
        assert answer.status == 303, f"the proxy asks us under another name: {answer}"
        assert urljoin(answer.url, answer.headers["Location"]) == f"{public}/admin/"
        assert (await browser.get("users", follow=True)).status == 200
        answer = await browser.post("users", {"name": "bob", "role": "member"})
        assert answer.status == 201
        answer = await browser.post("logout")
        assert urljoin(f"{public}/admin/", answer.headers["HX-Redirect"]).endswith("/admin/login")


async def test_unknown_page_says_so(root):
    for path in ("none", "ices/none", "ices/a%2Fb", "users/none", "ices/lab-1/burn"):
        answer = await root.get(path)
        assert answer.status == 404, f"{path} gave {answer}"
        assert answer.headers["Content-Type"].startswith("text/html")
    assert "There is nothing at this address." in said(await root.get("none"))
    told = await root.get("ices/none")
    assert "no token has been provisioned" in said(told)
    assert '<a href="./">Back to ICE Provisioning</a>' in told.text
    part = await root.part("none")
    assert part.status == 404
    assert part.text.lstrip().startswith("<dialog"), "within a page it is said in a dialog"


@pytest.mark.parametrize(("method", "path"), [("GET", "logout"), ("DELETE", "users"), ("PUT", "")])
@changes_nothing
async def test_wrong_method_is_a_page_too(shared_root, method, path):
    headers = {"Origin": shared_root.url, FORM_TOKEN: shared_root.form_token}
    answer = await shared_root.send(method, path, headers=headers)
    assert answer.status == 405
    assert answer.headers["Content-Type"].startswith("text/html")


# --- only a page of ours can change anything -----------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("ices", {"ice_name": "new", "ice_type": "ci-cd"}),
        ("ices/lab-1/reprovision", {"generation": "1"}),
        ("ices/bulk", {"action": "disconnect", "ice_names": "lab-1"}),
        ("users", {"name": "bob", "role": "admin"}),
        ("users/role", {"name": "alice", "role": "admin"}),
        ("users/password", {"name": "alice", "password": "x"}),
        ("users/logins", {"name": "alice"}),
        ("users/disable", {"name": "alice"}),
        ("api-tokens", {"owner": "root", "label": "x", "expires_in": "90d"}),
        ("logout", {}),
    ],
)
@changes_nothing
async def test_change_needs_origin_and_form_token(shared, path, fields):
    root, other = (shared.browsers[name] for name in ("root", "other"))
    before = await last_seq(shared)
    wrong = [
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {FORM_TOKEN: None},
        {FORM_TOKEN: ""},
        {FORM_TOKEN: "garbage"},
        {FORM_TOKEN: other.form_token},
        {FORM_TOKEN: "sn\N{SNOWMAN}wman"},
        {FORM_TOKEN: root.form_token.upper()},
    ]
    for headers in wrong:
        answer = await root.post(path, fields, **headers)
        assert answer.status == 403, f"{headers}: {answer}"
        assert "nothing was changed" in said(answer)
    stranger = shared.browsers["stranger"]
    answer = await stranger.post(path, fields, Cookie=f"{COOKIE}=x")
    assert answer.status == 401
    assert "Your login has ended. Nothing was changed." in said(answer)
    assert await last_seq(shared) == before
    assert (await root.get()).status == 200, "nobody was logged out"


async def test_page_of_an_older_login_gets_the_new_token(running, browse, root):
    old = root.form_token
    await root.log_in()
    assert root.form_token != old
    answer = await root.post("users", {"name": "bob", "role": "member"}, **{FORM_TOKEN: old})
    assert answer.status == 403
    assert f'"form-token":"{root.form_token}"' in answer.headers["HX-Trigger"]


async def test_cookie_at_the_json_api(running, root):
    api = Api(root.session, running.url, None)
    assert (await api.get("/ices")).status == 200
    assert (await api.get("/events")).status == 200
    body = {"ice_name": "new", "ice_type": "ci-cd"}
    good = {"Origin": running.url, FORM_TOKEN: root.form_token}
    for missing in ("Origin", FORM_TOKEN):
        headers = {name: value for name, value in good.items() if name != missing}
        expect_refused(await api.post("/ices", body, headers=headers), 401, "unauthenticated")
    evil = good | {"Origin": "http://evil.example"}
    expect_refused(await api.post("/ices", body, headers=evil), 401, "unauthenticated")
    # an Authorization that is no good is not made good by a cookie
    both = good | {"Authorization": "Bearer x"}
    expect_refused(await api.post("/ices", body, headers=both), 401, "unauthenticated")
    assert (await api.post("/ices", body, headers=good)).status == 201


# --- headers -------------------------------------------------------------------------------------


async def test_every_page_has_the_headers_that_guard_it(running, browse, root):
    await running.provision()
    stranger = await browse(running)
    answers = [await root.get(path) for path in PAGES]
    answers += [await stranger.get(path) for path in [*PAGES, "login", "none"]]
    answers += [await root.get("none"), await root.get("logout"), await root.part("users")]
    answers += [await root.post("users", {}), await root.post("users", {}, Origin=None)]
    answers.append(await stranger.log_in("x", "y"))
    for answer in answers:
        policy = dict(
            part.strip().partition(" ")[::2]
            for part in answer.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'", answer.url
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"].replace("self", "none") == "'none'"
        assert policy["form-action"] == "'self'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store", answer.url
        assert answer.headers["Server"] == "ice-gateway"


async def test_no_page_has_inline_code_or_other_hosts(running, root):
    await running.provision()
    for path in [*PAGES, "login"]:
        text = (await root.get(path, follow=True)).text
        assert not re.search(r"<script(?![^>]* src=)", text), f"inline script on {path}"
        assert not re.search(r"<[^>]* (on\w+|style|hx-on\S*)=", text), f"inline code on {path}"
        assert "<style" not in text
        linked = re.findall(r'(?:src|href|action|hx-\w+)="(https?:)?//', text)
        assert not linked, f"{path} leads to another host"


async def test_static_files(running, browse):
    browser = await browse(running)
    page = (await browser.get("login")).text
    files = re.findall(r'(?:src|href)="(static-[^"]+)"', page)
    assert len(files) == 5
    for file in files:
        answer = await browser.get(file)
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "max-age=31536000, immutable"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"].partition(";")[0] in (
            "text/css",
            "text/javascript",
            "application/javascript",
            "image/svg+xml",
        )
        tag = answer.headers["ETag"]
        again = await browser.get(file, headers={"If-None-Match": tag})
        assert again.status == 304
    name = files[-1].partition("/")[2]
    for other in (f"static/{name}", f"static-0123456789abcdef/{name}"):  # of another version
        answer = await browser.get(other)
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-cache"
    answer = await browser.get("static/none.js")
    assert answer.status == 404
    assert "There is nothing at this address." in said(answer)
    for path in (
        "static/",
        "static/../auth.py",
        "static/%2e%2e/auth.py",
        "static/..%2fauth.py",
        "static//etc/passwd",
        "static/%00",
    ):
        answer = await browser.get(path)
        assert answer.status in (302, 404), f"{path} gave {answer}"
        assert "import" not in answer.text


# --- roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "member", "auditor", "admin"),
    [
        ("GET ", 200, 200, 200),
        ("GET guide", 200, 200, 200),
        ("GET ices/lab-1", 200, 200, 200),
        ("GET ices/theirs", 404, 200, 200),
        ("GET ices/lab-1/operations/new", 200, 403, 200),
        ("GET ices/theirs/operations/new", 404, 403, 200),
        ("GET operations/none/details", 404, 404, 404),
        ("POST ices/lab-1/operations", 422, 403, 422),
        ("POST ices/theirs/operations", 404, 403, 422),
        ("POST operations/none/cancel", 404, 404, 404),
        ("GET users", 403, 200, 200),
        ("GET api-tokens", 403, 200, 200),
        ("GET audit", 403, 200, 200),
        ("GET audit/verdict", 403, 200, 200),
        ("GET audit/export.csv", 403, 200, 200),
        ("GET ices/lab-1/reprovision", 403, 403, 200),
        ("GET ices/theirs/reprovision", 404, 403, 200),
        ("GET users/role?name=alice", 403, 403, 200),
        ("GET users/password?name=alice", 403, 403, 200),
        ("GET users/logins?name=alice", 403, 403, 200),
        ("GET users/disable?name=alice", 403, 403, 200),
        ("GET users/disable?name=none", 403, 403, 404),
        ("GET api-tokens/none/revoke", 403, 403, 404),
        ("POST ices", 403, 403, 422),
        ("POST ices/bulk", 403, 403, 422),
        ("POST ices/bulk/confirm", 403, 403, 422),
        ("POST users", 403, 403, 422),
        ("POST users/role", 403, 403, 422),
        ("POST users/password", 403, 403, 422),
        ("POST users/logins", 403, 403, 404),
        ("POST users/disable", 403, 403, 404),
        ("POST api-tokens", 403, 403, 422),
        ("POST api-tokens/none/revoke", 403, 403, 404),
    ],
)
@changes_nothing
async def test_what_each_role_may_see_and_do(shared, call, *, member, auditor, admin):
    method, path = call.split(" ")
    for name, expected in {"alice": member, "eve": auditor, "root": admin}.items():
        browser = shared.browsers[name]
        before = await last_seq(shared)
        answer = await (browser.get(path) if method == "GET" else browser.post(path))
        assert answer.status == expected, f"{name}: {call} gave {answer}"
        assert await last_seq(shared) == before
        if expected == 403:
            assert "Your role does not allow this." in said(answer)


async def test_nobody_is_offered_what_they_may_not_do(running, browse):
    await running.provision()
    await running.provision("build-1", "ci-cd")
    await running.api("alice")
    eve = await browse(running, "eve", Role.AUDITOR)
    for path in PAGES:
        if path == "me":
            continue  # their own password is theirs to change
        page = (await eve.get(path)).text
        assert page.count("hx-post") == 1, f"more than Log out is offered on {path}"
        assert 'hx-target="#dialog"' not in page
    alice = await browse(running, "alice", Role.MEMBER)
    page = await alice.get()
    for looker in (eve, alice):
        listed = (await looker.get()).text
        assert 'id="row-lab-1"' in listed
        assert ('id="row-build-1"' in listed) is (looker is eve)
        for offer in ('id="provision"', 'id="row-menu"', 'class="actions"', 'type="checkbox"'):
            assert offer not in listed
    for name in ("users", "api-tokens", "audit"):
        assert f'href="{name}"' not in page.text
    assert "sse-connect" not in page.text


async def test_auditor_never_sees_a_secret(running, browse, root):
    ice = await running.provision()
    made = await root.post("api-tokens", {"owner": "root", "label": "ci", "expires_in": "90d"})
    token = re.search(r"icegw_[\w-]+", made.text)[0]
    eve = await browse(running, "eve", Role.AUDITOR)
    for path in PAGES:
        text = (await eve.get(path)).text
        for secret in (token, Secret(token).digest(), ice.token, "argon2", eve.cookie):
            assert secret not in text, f"{path} shows a secret"


# --- users ---------------------------------------------------------------------------------------


async def test_users_are_listed(running, browse, root):
    await running.provision("lab-1")
    await running.provision("lab-2")
    await browse(running, "eve", Role.AUDITOR)
    await running.add_user("gone")
    await running.gateway.services.accounts.disable(ADMIN, "gone")
    rows = dict(
        re.findall(r'<tr id="user-(\w+)">(.*?)</tr>', (await root.get("users")).text, re.DOTALL)
    )
    shown = {
        name: [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row.split("</td>")[:5]]
        for name, row in rows.items()
    }
    assert shown["alice"] == ["alice member", "no", "Local", "2", "0"]
    assert shown["eve"] == ["eve auditor", "yes", "Local", "0", "1"]
    assert shown["root"] == ["root admin", "yes", "Local", "0", "1"]
    assert "Disabled" in rows["gone"]
    assert rows["gone"].count("hx-get") == 1, "a disabled user can only be enabled"
    assert 'hx-get="users/logins?name=alice"' not in rows["alice"], "alice has no login to end"
    part = await root.part("users?q=AL")
    assert "alice" in part.text
    assert "user-eve" not in part.text
    assert "<html" not in part.text
    assert "No user matches." in said(await root.part("users?q=%25"))


async def test_users_are_paged(running, root):
    for number in range(60):
        await running.add_user(f"u{number:02}")
    first, second = await root.get("users?q=u"), await root.get("users?q=u&page=2")
    assert "60 users, page 1 of 2" in said(first)
    assert "users?q=u&amp;page=2" in first.text
    assert "u49" in first.text
    assert "u50" not in first.text
    assert "u59" in second.text
    for page in ("0", "-1", "999999999"):
        assert (await root.get(f"users?page={page}")).status == 200
    for query in ("page=x", "page=1&page=2", "none=1", "q=" + "x" * 257):
        assert (await root.get(f"users?{query}")).status == 422


async def test_user_is_added(running, browse, root):
    answer = await root.post("users", {"name": " bob ", "role": "member", "password": ""})
    assert answer.status == 201
    assert "users-changed" in answer.headers["HX-Trigger"]
    assert "they can only own ICEs" in said(answer)
    fields = {"name": "carol", "role": "auditor", "password": "\N{SNOWMAN}" * 12}
    assert (await root.post("users", fields)).status == 201
    browser = await browse(running)
    assert (await browser.log_in("carol", fields["password"])).status == 303
    bob = await running.gateway.services.accounts.user("bob")
    assert (bob.role, bob.password_hash) == (Role.MEMBER, None)
    entry = (await running.gateway.admin.events.after(0, 1000))[-3]
    assert (entry.event.action, entry.event.actor.name, entry.event.actor.via) == (
        "add-user",
        "root",
        "page",
    )
    assert 'value="bob"' in (await root.part("users/known?owner=OB")).text


def offered(answer):
    return re.findall(r'<option value="([^"]*)">', answer.text)


@pytest.mark.parametrize("field", ["provisionedto", "owner", "user", "actor", "requested_by"])
async def test_users_are_offered_by_a_part_of_their_name(running, root, field):
    for number in range(30):
        await running.add_user(f"Bob {number:02}")
    await running.add_user("100% bob")
    await running.gateway.services.accounts.disable(ADMIN, "bob 07")
    bobs = ["100% bob", *(f"Bob {number:02}" for number in range(20) if number != 7)]
    assert offered(await root.part(f"users/known?{field}=bOB")) == bobs
    assert offered(await root.part(f"users/known?{field}=bob+29")) == ["Bob 29"]
    assert offered(await root.part(f"users/known?{field}=%25")) == ["100% bob"]
    assert offered(await root.part(f"users/known?{field}=x")) == []
    assert len(offered(await root.part(f"users/known?{field}="))) == 20
    assert (await root.part(f"users/known?{field}={'x' * 257}")).status == 422


async def test_no_page_lists_all_users_as_completions(running, browse, root):
    stranger = await browse(running)
    for path in ("", "users", "api-tokens", "audit?action=none", "users/known"):
        answer = await root.get(path)
        assert answer.status == 200
        if path in ("", "api-tokens", "audit?action=none"):
            assert '<datalist id="known-users" data-live></datalist>' in answer.text
    assert (await stranger.get("login")).status == 200


async def test_members_are_offered_nobody(running, browse):
    alice = await browse(running, "alice", Role.MEMBER)
    assert (await alice.part("users/known?user=a")).status == 403
    assert "known" not in (await alice.get()).text


@pytest.mark.parametrize(
    ("fields", "status", "field", "sentence"),
    [
        ({"name": "ALICE", "role": "member"}, 409, "user_name", "The user ALICE already exists"),
        ({"name": "", "role": "member"}, 422, "user_name", "1 to 128 printable"),
        ({"name": "x" * 129, "role": "member"}, 422, "user_name", "1 to 128 printable"),
        ({"name": "a\nb", "role": "member"}, 422, "user_name", "1 to 128 printable"),
        ({"name": "a\u202eb", "role": "member"}, 422, "user_name", "1 to 128 printable"),
        ({"name": "bob", "role": "king"}, 422, "user_role", "choose admin, auditor, member"),
        ({"name": "bob"}, 422, "user_role", "choose"),
        ({}, 422, "user_role", "choose"),
        *(
            (
                {"name": "bob", "role": "member", "password": password},
                422,
                "user_password",
                "12 characters or more and at most 1,024 bytes",
            )
            for password in ("x" * 11, "x" * 1025, "\N{SNOWMAN}" * 342)
        ),
    ],
)
@changes_nothing
async def test_user_who_cannot_be_added(shared, shared_root, fields, *, status, field, sentence):
    before = await last_seq(shared)
    answer = await shared_root.post("users", fields)
    assert answer.status == status
    assert answer.headers["HX-Retarget"] == "#form-fault"
    assert f'"form-fault":{{"field":"{field}"}}' in answer.headers["HX-Trigger"]
    assert 'role="alert"' in answer.text
    assert sentence in said(answer)
    assert "users-changed" not in answer.headers["HX-Trigger"]
    assert await last_seq(shared) == before


async def test_password_is_set_and_the_old_logins_end(running, browse, root):
    eve = await browse(running, "eve", Role.AUDITOR)
    ask = await root.get("users/password?name=eve")
    assert "1 login with the old password ends." in said(ask)
    for password in ("", "x" * 11):
        answer = await root.post("users/password", {"name": "eve", "password": password})
        assert answer.status == 422
        assert answer.headers["HX-Retarget"] == "#dialog-fault"
    assert (await eve.get()).status == 200
    fields = {"name": "eve", "password": "another one of it"}
    assert "1 login ended." in said(await root.post("users/password", fields))
    assert (await eve.get()).status == 302
    entry = (await running.gateway.admin.events.after(0, 1000))[-1]
    assert (entry.event.action, entry.event.detail) == (
        "set-password",
        {"user": "eve", "logins_ended": 1},
    )
    expect_login_page(await eve.log_in("eve"), 401)
    assert (await eve.log_in("eve", "another one of it")).status == 303


async def test_who_sets_their_own_password_stays_and_their_other_logins_end(running, browse, root):
    other = await browse(running, "root")
    assert "Your other logins end." in said(await root.get("users/password?name=root"))
    answer = await root.post("users/password", {"name": "root", "password": "another one of it"})
    assert "1 login ended." in said(answer)
    assert (await root.get()).status == 200
    assert (await other.get()).status == 302


@pytest.mark.parametrize("ends", ["set_password", "disable"])
async def test_login_that_is_checked_while_all_are_ended_does_not_begin(
    running, browse, monkeypatch, ends
):
    await has_password(running, "eve", Role.MEMBER)
    browser = await browse(running)
    verify = running.passwords.verify

    async def meanwhile(*args):
        right = await verify(*args)
        more = [Secret("another one of it")] if ends == "set_password" else []
        await getattr(running.gateway.services.accounts, ends)(ADMIN, "eve", *more)
        return right

    monkeypatch.setattr(running.passwords, "verify", meanwhile)
    expect_login_page(await browser.log_in("eve"), 401, WRONG)
    assert await running.gateway.engine.fetch("SELECT * FROM logins") == []


async def test_disabling_ends_the_logins_for_good(running, browse):
    await browse(running, "eve", Role.AUDITOR)
    await running.gateway.services.accounts.disable(ADMIN, "eve")
    assert await running.gateway.engine.fetch("SELECT * FROM logins") == []


async def test_password_that_was_set_under_older_rules_is_good(running, browse):
    for password in ("short", "\N{SNOWMAN}" * 1024):
        digest = await running.passwords.hash(Secret(password))
        await running.gateway.engine.write(
            lambda transaction, digest=digest: transaction.run(
                "UPDATE users SET password_hash = $1 WHERE name = 'root'", digest
            )
        )
        browser = await browse(running)
        assert (await browser.log_in("root", password)).status == 303


# --- what is refused leaves a trace -----------------------------------------------------------------


async def failed_logins(running):
    return (await running.admin.get("/events?action=login-failed")).json["items"]


def counted(running, why):
    registry = running.gateway.node._meters.registry
    return registry.get_sample_value("ice_gateway_refused_credentials_total", {"why": why})


async def test_failed_login_of_a_user_is_an_event(running, browse):
    await has_password(running, "root")
    await (await browse(running)).log_in("ROOT", "wrong")
    await running.eventually("/events?action=login-failed", lambda answer: answer.json["items"])
    [event] = await failed_logins(running)
    assert (event["actor"], event["via"], event["address"]) == ("root", "page", "127.0.0.1")
    assert event["detail"] == {"user": "root", "count": 1, "why": "wrong-password"}
    assert counted(running, "wrong-password") == 1
    page = await (await browse(running, "root")).get("audit?action=login-failed")
    assert "root by page from 127.0.0.1" in said(page)
    assert "1 failed login as root, the last from 127.0.0.1." in said(page)


@pytest.mark.parametrize("user", ["nobody", "gone"])
async def test_failed_login_of_nobody_is_counted_and_named_nowhere(running, browse, said, user):
    why = "unknown-user"
    await has_password(running, "gone", Role.MEMBER)
    await running.gateway.services.accounts.disable(ADMIN, "gone")
    await (await browse(running)).log_in(user, "wrong")
    assert counted(running, why) == 1
    [line] = [line for line in said if line["event"] == "credentials refused"]
    assert line == {
        "event": "credentials refused",
        "log_level": "info",
        "why": why,
        "address": "127.0.0.1",
    }
    await running.gateway.services.accounts.add_user(ADMIN, "eve", Role.ADMIN, Secret(PASSWORD))
    await (await browse(running)).log_in("eve", "wrong")
    await running.eventually("/events?action=login-failed", lambda answer: answer.json["items"])
    assert [event["detail"]["user"] for event in await failed_logins(running)] == ["eve"]


async def test_what_is_throttled_and_refused_api_tokens_are_counted(running, browse):
    await has_password(running, "root")
    browser = await browse(running)
    for _ in range(7):
        await browser.log_in("root", "wrong")
    assert counted(running, "wrong-password") == 5
    assert counted(running, "too-many-attempts") == 2
    for token in ("icegw_none", ""):
        assert (await Api(running.session, running.url, token).get("/ices")).status == 401
    assert counted(running, "api-token") == 2
    assert (await Api(running.session, running.url, None).get("/ices")).status == 401
    assert counted(running, "api-token") == 2


@pytest.mark.parametrize("action", ["role", "password", "logins", "disable"])
@changes_nothing
async def test_action_on_nobody(shared_root, action):
    fields = {"name": "none", "role": "admin", "password": PASSWORD}
    for answer in (
        await shared_root.part(f"users/{action}?name=none"),
        await shared_root.part(f"users/{action}"),
        await shared_root.post(f"users/{action}", fields),
    ):
        assert answer.status == 404
        assert "here is no user" in said(answer)


async def test_long_name_of_nobody_is_quoted_in_part(root):
    for path, field, status in (("users/disable", "name", 404), ("api-tokens", "owner", 422)):
        sent = {field: "x" * 500_000, "label": "l", "expires_in": "90d"}
        answer = await root.post(path, sent)
        assert answer.status == status
        assert "xxx…" in answer.text
        assert len(answer.text) < 2000


async def test_user_whose_name_is_no_path(running, root):
    for name in ("..", "a/b", "a%2Fb", "a?b=c&d#e", "a;b+c d", "'\"<>", "\N{SNOWMAN}"):
        assert await add_user(running.gateway.engine, name), "older versions made such users"
        page = (await root.get("users")).text
        links = re.findall(r'hx-get="(users/role\?name=[^"]+)"', page)
        found = [await root.part(html.unescape(link)) for link in links]
        assert sum(f"Role of {name}" in said(answer) for answer in found) == 1, name
        answer = await root.post("users/role", {"name": name, "role": "auditor"})
        assert answer.status == 200
        assert (await running.gateway.services.accounts.user(name)).role is Role.AUDITOR


async def test_disabling_asks_what_becomes_of_the_ices(running, root):
    connections = [await (await running.provision(name)).connect() for name in ("lab-1", "lab-2")]
    await running.provision("lab-3")
    answer = await root.part("users/disable?name=alice")
    ask = said(answer)
    assert "3 ICEs are tagged to alice" in ask
    assert "lab-1 Registered connected" in ask
    assert "lab-3 Provisioned" in ask
    assert re.findall(r'name="ices" value="(\w+)"', answer.text) == ["keep", "deregister", "to"]

    kept = said(await root.post("users/disable", {"name": "alice"}))
    assert "alice is disabled" in kept
    assert "lab-1 : active until deregistered" in kept
    assert "lab-3 : provisioned; the unused token has expired" in kept
    assert "session" not in kept
    for connection in connections:
        await connection.round_trip()

    done = await root.post("users/disable", {"name": "alice", "ices": "deregister"})
    assert "2 sessions dropped" in said(done)
    assert re.search(r"lab-1 : deregistered now, dropped in [\d.]+ ms", said(done))
    assert "users-changed" in done.headers["HX-Trigger"]
    for connection in connections:
        await connection.expect_dropped(4101)
    assert await running.status("lab-1") == Status.DEREGISTERED
    assert (await actions(running)).count("disable-user") == 1


async def test_ices_of_a_disabled_user_are_given_to_another(running, root):
    await running.add_user("bob")
    connection = await (await running.provision("lab-1")).connect()
    fields = {"name": "alice", "ices": "to", "provisionedto": "nobody"}
    refused = await root.post("users/disable", fields)
    assert (refused.status, refused.headers["HX-Retarget"]) == (422, "#dialog-fault")
    assert "Next user: there is no user of this name" in said(refused)
    assert "next-user" in refused.headers["HX-Trigger"]
    answer = await root.post("users/disable", fields | {"provisionedto": " BOB "})
    await connection.expect_dropped(4102)
    assert "alice is disabled" in said(answer)
    assert "1 session dropped" in said(answer)
    assert "lab-1 : given to another user, with a new token" in said(answer)
    [token] = re.findall(r"lab-1,(\S+)", answer.text)
    await (await running.ice(token).connect()).round_trip()
    assert (await running.admin.get("/ices/lab-1")).json["provisionedto"] == "bob"


async def test_admin_is_warned_before_locking_themselves_out(running, browse, root):
    ask = said(await root.part("users/disable?name=root"))
    assert "This is you" in ask
    assert "Nobody could administer any more" in ask
    for action in ("role", "disable"):
        assert 'type="submit"' not in (await root.part(f"users/{action}?name=root")).text
        assert f'id="{action}-root"' not in (await root.get("users")).text
    assert 'id="password-root"' in (await root.get("users")).text
    await browse(running, "second", Role.ADMIN)
    assert 'id="role-root"' in (await root.get("users")).text
    assert 'id="disable-root"' in (await root.get("users")).text
    roles = re.findall(r'<option value="(\w+)"', (await root.part("users/role?name=root")).text)
    assert sorted(roles) == ["auditor", "member"], "another than now"
    ask = said(await root.part("users/disable?name=root"))
    assert "This is you" in ask
    assert "Nobody could" not in ask
    ask = said(await root.part("users/disable?name=alice"))
    assert "This is you" not in ask
    assert "Nobody could" not in ask


async def test_disabling_is_not_undone_by_a_change_at_the_same_time(running, monkeypatch):
    accounts = running.gateway.services.accounts
    await has_password(running, "root")
    await has_password(running, "eve", Role.AUDITOR)
    for _ in range(20):
        await asyncio.gather(
            accounts.set_role(ADMIN, "eve", Role.ADMIN),
            accounts.disable(ADMIN, "eve"),
            accounts.set_role(ADMIN, "eve", Role.MEMBER),
        )
        assert (await accounts.user("eve")).disabledon is not None


async def test_disabled_user_is_enabled_again(running, browse, root):
    await has_password(running, "eve", Role.MEMBER)
    await root.post("users/disable", {"name": "eve"})
    expect_login_page(await (await browse(running)).log_in("eve"), 401, WRONG)
    assert 'hx-get="users/enable?name=eve"' in (await root.get("users")).text
    assert "API tokens work again" in said(await root.part("users/enable?name=eve"))
    assert "eve is enabled" in said(await root.post("users/enable", {"name": "eve"}))
    assert "user: eve" in said(await root.get("audit?action=enable-user"))
    eve = await browse(running, "eve")
    assert (await eve.get()).status == 200
    refused = await root.post("users/disable", {"name": "root"})
    assert refused.status == 409
    assert "Nobody could administer any more" in said(refused)


async def test_my_account(running, browse):
    member = await browse(running, "eve", Role.MEMBER)
    other = await browse(running, "eve")
    assert 'href="me"' in (await member.get()).text
    token = await running.api("eve")
    await running.api("root")
    page = said(await member.get("me"))
    assert "Your role is member" in page
    assert "have 2 open logins" in page
    assert page.count("command of root") == 1, "only their own API tokens"
    sent = {"old": "wrong", "new": "another good one"}
    wrong = await member.post("me/password", sent)
    assert wrong.status == 403
    assert '"field":"old_password"' in wrong.headers["HX-Trigger"]
    assert "The old password is wrong" in said(wrong)
    short = await member.post("me/password", {"old": PASSWORD, "new": "short"})
    assert "New password: a password must have 12" in said(short)
    done = await member.post("me/password", sent | {"old": PASSWORD})
    assert (done.status, "Your password is changed" in said(done)) == (200, True)
    assert (await member.get("me")).status == 200
    assert (await other.get("me")).status == 302, "other logins end"
    assert (await token.get("/me")).status == 200, "API tokens stay"


# --- API tokens ----------------------------------------------------------------------------------


async def test_no_tokens(tmp_path, browse):
    async with run_gateway(settings_for(tmp_path)) as gateway:
        await gateway.services.accounts.add_user(ADMIN, "root", Role.ADMIN, Secret(PASSWORD))
        browser = await browse(gateway)
        await browser.log_in()
        assert "No tokens have been issued" in said(await browser.get("api-tokens"))


@pytest.mark.parametrize(("choice", "days"), [("30d", 30), ("90d", 90), ("365d", 365)])
async def test_token_is_shown_once_and_works(running, root, choice, days):
    fields = {"owner": "ROOT", "label": "nightly build", "expires_in": choice}
    answer = await root.post("api-tokens", fields)
    assert answer.status == 201
    assert "tokens-changed" in answer.headers["HX-Trigger"]
    assert answer.headers["Cache-Control"] == "no-store"
    token = re.search(r"icegw_[\w-]+", answer.text)[0]
    assert answer.text.count(token) == 1
    page = await root.get("api-tokens")
    assert token not in page.text
    assert "nightly build root all Good" in said(page)
    assert (await Api(running.session, running.url, token).get("/ices")).status == 200
    made = next(
        t for t in await running.gateway.services.accounts.tokens() if t.label == "nightly build"
    )
    assert made.expireson - made.createdon == timedelta(days=days)
    assert f'datetime="{made.expireson:%Y-%m-%dT%H:%M:%S}' in page.text, "date and time"


async def test_token_that_may_change_accounts_is_shown_as_such(root):
    fields = {"owner": "root", "label": "onboarding", "expires_in": "90d", "accounts": "true"}
    made = await root.post("api-tokens", fields)
    assert "It may change users, passwords and API tokens" in said(made)
    page = said(await root.get("api-tokens?q=ONBOARD"))
    assert "all, and change accounts" in page
    assert "login of root" in page
    assert "1 token" in page
    assert "No API token matches" in said(await root.get("api-tokens?q=none"))
    refused = await root.post("api-tokens", {**fields, "ice_name": "lab-1"})
    assert "May change accounts: a token for one ICE" in said(refused)


async def test_token_for_one_ice_is_shown_as_such(running, root):
    await running.provision("Lab-1")
    fields = {"owner": "root", "label": "ci", "expires_in": "90d", "ice_name": " LAB-1 "}
    answer = await root.post("api-tokens", fields)
    assert answer.status == 201
    assert "It may operate Lab-1 and nothing else." in said(answer)
    token = Secret(re.search(r"icegw_[\w-]+", answer.text)[0])
    assert (await running.gateway.services.accounts.authenticate(token)).ice == "Lab-1"
    assert "ci root operate only Lab-1 Good" in said(await root.get("api-tokens"))
    assert (await root.post("api-tokens", fields | {"ice_name": " "})).status == 201
    assert "ci root all Good" in said(await root.get("api-tokens"))


async def test_token_is_revoked_after_a_question(running, root):
    fields = {"owner": "root", "label": "ci", "expires_in": "never"}
    answer = await root.post("api-tokens", fields)
    assert "It does not expire." in said(answer)
    token = re.search(r"icegw_[\w-]+", answer.text)[0]
    page = (await root.get("api-tokens")).text
    link = re.search(r'hx-get="(api-tokens/\w+/revoke)"[^>]*aria-label="Revoke ci of root"', page)[
        1
    ]
    api = Api(running.session, running.url, token)
    assert "Revoke ci?" in said(await root.part(link))
    assert (await api.get("/ices")).status == 200, "to ask is not to do"
    assert "is refused" in said(await root.post(link))
    assert (await api.get("/ices")).status == 401
    before = await last_seq(running)
    assert "was revoked before" in said(await root.post(link))
    assert "was revoked on" in said(await root.part(link))
    assert await last_seq(running) == before
    assert link not in (await root.get("api-tokens")).text


async def test_how_tokens_stand(timed):
    running, clock, browser = timed
    made = running.gateway.services.accounts.create_token
    await running.add_user("gone")
    await made(ADMIN, "root", "short", 60)
    await made(ADMIN, "gone", "orphan", 0)
    await running.gateway.services.accounts.disable(ADMIN, "gone")
    clock.move(seconds=61)
    answer = await browser.get("api-tokens")
    assert 'aria-label="Revoke orphan of gone"' in answer.text, "it would be good again"
    assert 'aria-label="Revoke short of root"' not in answer.text
    page = said(answer)
    assert "short root all Expired" in page
    assert "orphan gone all Owner disabled" in page


@pytest.mark.parametrize(
    ("fields", "status", "field", "sentence"),
    [
        ({"owner": "none"}, 422, "token_owner", "Owner: there is no user none"),
        ({"owner": ""}, 422, "token_owner", "there is no user"),
        ({"owner": "gone"}, 422, "token_owner", "the user gone is disabled"),
        ({"label": ""}, 422, "token_label", "1 to 128 printable characters"),
        ({"label": "x" * 129}, 422, "token_label", "1 to 128 printable characters"),
        ({"label": "a\nb"}, 422, "token_label", "1 to 128 printable characters"),
        ({"expires_in": "1000d"}, 422, "expires_in", "choose 30d, 90d, 365d, never"),
        ({"expires_in": ""}, 422, "expires_in", "choose"),
        ({"ice_name": "lab-9"}, 422, "token_ice", "there is no ICE lab-9; provision it first"),
        ({"ice_name": SCRIPT}, 422, "token_ice", "there is no ICE"),
    ],
)
async def test_token_that_cannot_be_made(running, root, fields, *, status, field, sentence):
    await running.add_user("gone")
    await running.gateway.services.accounts.disable(ADMIN, "gone")
    before = await last_seq(running)
    given = {"owner": "root", "label": "ci", "expires_in": "90d"} | fields
    answer = await root.post("api-tokens", given)
    assert answer.status == status
    assert f'"form-fault":{{"field":"{field}"}}' in answer.headers["HX-Trigger"]
    assert answer.headers["HX-Retarget"] == "#form-fault"
    assert sentence in said(answer)
    assert "icegw_" not in answer.text
    assert await last_seq(running) == before


# --- audit log -----------------------------------------------------------------------------------


def numbers(answer):
    return [int(number) for number in re.findall(r'<tr id="event-(\d+)">', answer.text)]


async def test_audit_log_is_newest_first_and_paged(running, root):
    for number in range(110):
        await running.add_user(f"u{number}")
    last = await last_seq(running)
    first = await root.get("audit")
    assert numbers(first) == list(range(last, last - 50, -1))
    shown = numbers(first)
    page = first
    while older := re.search(r'id="page-older" href="([^"]+)"', page.text):
        page = await root.get(html.unescape(older[1]))
        assert 'id="page-newest"' in page.text
        shown += numbers(page)
    assert shown == list(range(last, 0, -1)), "each event once"


async def test_audit_log_is_filtered(running, browse, root):
    ice = await running.provision("lab-1")
    await (await ice.connect()).close()
    await running.provision("other")
    await browse(running, "Eve", Role.AUDITOR)

    async def shown(query):
        page = await root.part(f"audit?{query}")
        assert page.status == 200
        cells = re.findall(r'<tr id="event-\d+">(.*?)</tr>', page.text, re.DOTALL)
        return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in cells]

    assert [row.split()[-1] for row in await shown("ice_name=LAB-1&action=provision")]
    assert len(await shown("ice_name=LAB-1")) == 2
    assert len(await shown("action=provision")) == 2
    assert len(await shown("actor=eve")) == 1, "a name is found with case folded"
    assert len(await shown("actor=LAB-1")) == 1, "an ICE acts when it registers"
    assert await shown("actor=nobody") == []
    assert await shown("ice_name=none") == []
    assert await shown("action=none") == []
    assert "1 → 1" not in " ".join(await shown(""))
    await running.act("lab-1", "deregister")
    assert "1 → 2" in (await shown("action=deregister"))[0]


async def test_audit_log_by_time(timed):
    running, clock, browser = timed
    began = clock.now
    clock.move(hours=1)
    await running.add_user("bob")
    clock.move(hours=1)
    await running.add_user("carol")
    await browser.log_in()

    async def users(since, until):
        given = {"action": "add-user"}
        for name, hours in (("since", since), ("until", until)):
            if hours is not None:
                given[name] = (began + timedelta(hours=hours)).isoformat()
        page = await browser.get(f"audit?{urlencode(given)}")
        return re.findall(r"user: (\w+)", said(page))

    assert await users(0.5, None) == ["carol", "bob"]
    assert await users(0.5, 1.5) == ["bob"]
    assert await users(1, 2) == ["bob"], "from included, until not"
    assert await users(3, None) == []
    naive = (began + timedelta(hours=1.5)).replace(tzinfo=None).isoformat()
    page = await browser.get(f"audit?since={naive}&action=add-user")
    assert "carol" in said(page)
    assert "user: bob" not in said(page)
    assert naive in page.text, "the filter stays in the form"


@pytest.mark.parametrize(
    "query",
    [
        "since=yesterday",
        "until=25:00",
        "since=0001-01-01T00:00%2B14:00",
        "before=x",
        "before=-1",
        f"before={2**63}",
        "before=1&before=2",
        "none=1",
        "actor=" + "x" * 257,
    ],
)
@changes_nothing
async def test_filter_that_makes_no_sense(shared, query):
    answer = await shared.browsers["root"].get(f"audit?{query}")
    assert answer.status == 422
    assert query.partition("=")[0] in said(answer)


@pytest.mark.parametrize(
    "query",
    [
        "before=0",
        f"before={2**63 - 1}",
        "since=0001-01-01",
        "until=9999-12-31T23:59:59-14:00",
        "actor=%00",
        "actor=%FF",
        "actor=%ED%A0%80",
        "ice_name=%F0%9F%A7%8A",
        "action='%22",
    ],
)
@changes_nothing
async def test_odd_filters(shared_root, query):
    answer = await shared_root.get(f"audit?{query}")
    assert answer.status in (200, 422), answer


async def test_audit_page_knows_every_action(running, root):
    """What the filter offers is what the log may hold."""
    await running.provision()
    for action in ("disconnect", "reprovision"):
        await running.act("lab-1", action)
    await root.post("users/logins", {"name": "alice"})
    await running.gateway.services.accounts.disable(ADMIN, "alice")
    for token in await running.gateway.services.accounts.tokens():
        await running.gateway.services.accounts.revoke_token(ADMIN, token.id)
    await running.gateway.services.accounts.set_role(ADMIN, "alice", Role.AUDITOR)
    assert set(await actions(running)) <= set(ACTIONS)


async def test_audit_page_says_whether_the_chain_verifies(running, root):
    await running.provision()
    assert 'hx-get="audit/verdict"' in (await root.get("audit")).text
    verdict = said(await root.part("audit/verdict", "verdict"))
    assert "The chain verifies" in verdict
    assert f"Head: {await last_seq(running)}:" in verdict


async def test_audit_page_names_the_event_that_was_altered(running, root):
    await unguarded(running.gateway.engine)
    change = "UPDATE ice_events SET actor = 'eve' WHERE seq = 1"
    await running.gateway.engine.write(lambda transaction: transaction.run(change))
    verdict = said(await root.part("audit/verdict", "verdict"))
    assert "The chain is broken: event 1 was altered." in verdict


async def test_audit_log_is_downloaded_as_it_is_filtered(running, root):
    for name in ("lab-1", "lab-2"):
        await running.provision(name)
    page = await root.get("audit?ice_name=lab-2&before=4")
    [csv, jsonl] = re.findall(r'id="export-\w+" href="([^"]+)"', page.text)
    file = await root.get(html.unescape(jsonl))
    assert file.headers["Content-Type"] == "application/jsonl"
    assert re.fullmatch(
        r'attachment; filename="audit-log-\d{4}-\d\d-\d\d\.jsonl"',
        file.headers["Content-Disposition"],
    )
    [event] = [json.loads(line) for line in file.text.splitlines()]
    assert (event["ice_name"], event["action"]) == ("lab-2", "provision")
    assert len((await root.get(html.unescape(csv))).text.splitlines()) == 2
    assert (await root.get("audit/export.exe")).status == 404


# --- bad input -----------------------------------------------------------------------------------


async def test_script_is_text_wherever_it_is_typed(running, browse, root):
    ice = await running.provision()
    connection = await ice.connect()
    hello = {"version": SCRIPT, "platform": SCRIPT, "hostname": SCRIPT}
    connection.hello(**hello)
    await running.eventually(
        "/ices/lab-1", lambda answer: (answer.json["connection"] or {}).get("version") == SCRIPT
    )
    added = await root.post("users", {"name": SCRIPT.replace("/", ""), "role": "member"})
    assert added.status == 201
    hashed = await running.passwords.hash(Secret(PASSWORD))
    await add_user(running.gateway.engine, SCRIPT, Role.ADMIN, hashed)
    token = {"owner": SCRIPT, "label": SCRIPT, "expires_in": "90d"}
    made = await root.post("api-tokens", token)
    assert made.status == 201
    other = await browse(running)
    assert (await other.log_in(SCRIPT)).status == 303
    await running.gateway.services.provisioning.provision(ADMIN, "theirs", IceType.NORMAL, SCRIPT)
    quoted = urlencode({"q": SCRIPT})[2:]
    answers = [added, made]
    answers += [await root.get(path) for path in PAGES]
    answers += [
        await root.get(f"?q={quoted}&user={quoted}"),
        await root.get(f"users?q={quoted}"),
        await root.get(f"audit?actor={quoted}&ice_name={quoted}&action={quoted}"),
        await root.get(f"audit?since={quoted}"),
        await root.get(f"?sort={quoted}"),
        await root.get(f"?status={quoted}"),
        await root.get(f"?{quoted}=1"),
        await root.get(f"none/{quoted}"),
        await root.get(f"ices/{quoted}"),
        await root.part("ices/lab-1/deregister"),
        await root.part("users/known"),
        *[
            await root.part(f"users/{action}?name={quoted}")
            for action in ("role", "password", "logins", "disable")
        ],
        await root.part(f"users/role?name=no{quoted}"),
        await root.post("users", {"name": SCRIPT, "role": "admin"}),
        await root.post("users", {"name": "x", "role": SCRIPT}),
        await root.post("ices", {"ice_name": SCRIPT, "ice_type": SCRIPT}),
        await root.post("ices", {"ice_name": SCRIPT, "ice_type": "ci-cd"}),
        await root.post("ices/bulk", {"action": "deregister", "ice_names": [SCRIPT]}),
        await root.post("ices/bulk/confirm", {"action": "deregister", "ice_names": [SCRIPT]}),
        await root.post("users/disable", {"name": SCRIPT}),
        await (await browse(running)).log_in(SCRIPT, "wrong"),
    ]
    shown = 0
    for answer in answers:
        assert answer.status != 500, answer.url
        assert "<script>alert" not in answer.text, f"{answer.url} lets it run"
        for event in ("HX-Trigger", "HX-Retarget", "Location"):
            assert "<script>" not in answer.headers.get(event, "")
        shown += "&lt;script&gt;alert" in answer.text
    assert shown > 15
    await connection.close()


async def odd(root, data, content_type="application/x-www-form-urlencoded", path="users"):
    headers = {
        "Origin": root.url,
        FORM_TOKEN: root.form_token,
        "HX-Request": "true",
        "Content-Type": content_type,
    }
    return await root.send("POST", path, data=data, headers=headers)


@pytest.mark.parametrize("path", ["users", "ices", "ices/bulk", "api-tokens", "users/disable"])
@changes_nothing
async def test_odd_forms_change_nothing(shared, path):
    before = await last_seq(shared)
    multipart = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nbob\r\n--x--\r\n'
    for data, content_type, status in [
        (b"x" * (MAX_BODY + 1), "application/x-www-form-urlencoded", 413),
        (b"a&" * 500_000, "application/x-www-form-urlencoded", 413),
        (b"name=\xff\xfe&role=member", "application/x-www-form-urlencoded", 400),
        (b"name=" + b"%" * 500_000, "application/x-www-form-urlencoded", None),
        (b"name=%ff&role=member", "application/x-www-form-urlencoded", 400),
        (b"name=b&role=x", "application/x-www-form-urlencoded; charset=none", None),
        (b"&&&===&;;", "application/x-www-form-urlencoded", None),
        (b"\x00", "application/x-www-form-urlencoded", None),
        (multipart, "multipart/form-data; boundary=x", 400),
        (multipart, "multipart/form-data", 400),
        (b'{"name": "bob", "role": "member"}', "application/json", 400),
        (b"name=bob", "text/plain", 400),
    ]:
        answer = await odd(shared.browsers["root"], data, content_type, path)
        expected = {400, 404, 422} if status is None else {status}
        assert answer.status in expected, f"{path} {data[:40]!r}: {answer}"
        assert answer.headers["Content-Type"].startswith("text/html")
        assert 'role="alert"' in answer.text
    assert await last_seq(shared) == before


async def test_odd_login_forms(running, browse):
    browser = await browse(running)
    headers = {"Origin": running.url}
    for data, status in [
        (b"", 401),
        (b"name=root", 401),
        (b"name=a&name=b&password=c", 401),
        (b"x" * 16 * 1024, 401),
        (b"x" * (16 * 1024 + 1), 413),
        (b"a&" * 33, 413),
        (b"name=\xff", 400),
    ]:
        answer = await browser.send("POST", "login", data=data, headers=headers)
        assert answer.status == status, f"{data[:40]!r}: {answer}"
        assert answer.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("kind", [";" * 32_000, "a/b; " + "(" * 275, "a/b;" * 8_000])
@changes_nothing
async def test_login_form_of_an_odd_content_type(shared, kind):
    browser = shared.browsers["stranger"]
    headers = {"Origin": shared.url, "Content-Type": kind}
    answer = await browser.send("POST", "login", data=b"name=root", headers=headers)
    assert answer.status == 400


@pytest.mark.parametrize("generation", [None, "", "x", "-1", "1.0", "\u0661", "9" * 5_000])
async def test_generation_that_is_no_number_is_refused(running, root, generation):
    await running.provision("lab-1")
    seq = await last_seq(running)
    fields = {} if generation is None else {"generation": generation}
    assert (await root.post("ices/lab-1/reprovision", fields)).status == 422
    assert await last_seq(running) == seq
    assert (await root.post("ices/lab-1/reprovision", {"generation": "2"})).status == 409
    assert (await root.post("ices/lab-1/reprovision", {"generation": "1"})).status == 200


async def test_bulk_takes_as_many_as_the_api(running, root):
    names = [f"none-{number}" for number in range(10_000)]
    fields = {"action": "disconnect", "ice_names": names}
    answer = await root.post("ices/bulk", fields)
    assert answer.status == 200
    assert "0 of 10,000 done" in said(answer)
    for more, status in ((1, 422), (100, 413)):
        fields["ice_names"] = names + ["x"] * more
        assert (await root.post("ices/bulk", fields)).status == status


async def test_store_that_fails_is_told_on_the_page(running, root, monkeypatch):
    engine = running.gateway.engine

    async def broken(*_):
        raise StoreUnavailable("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "write", broken)
        answer = await root.post("users", {"name": "bob", "role": "member"})
    assert answer.status == 503
    assert "Nothing was changed." in said(answer)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "fetch", broken)
        answer = await root.get("users")
        assert answer.status == 503
        assert "disk I/O error" not in answer.text


async def test_fault_of_ours_is_told_on_the_page(running, root, monkeypatch):
    async def broken(*_):
        raise RuntimeError("secret thing")

    with monkeypatch.context() as patch:
        patch.setattr(running.gateway.services.accounts, "page", broken)
        page, part = await root.get("users"), await root.part("users")
    for answer in (page, part):
        assert answer.status == 500
        assert "The gateway's log says more." in said(answer)
        assert "secret thing" not in answer.text


async def test_the_bare_address_leads_to_the_page(running):
    async with running.session.get(f"{running.url}/", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "admin/")


async def test_a_member_cannot_tell_which_other_ices_there_are(running, browse):
    """The search says the same of an ICE that is not theirs and of one that is not there."""
    await running.provision("not-theirs", "ci-cd")
    browser = await browse(running, "carla", Role.MEMBER)
    answers = [await browser.part(f"?q={name}") for name in ("not-theirs", "nowhere")]
    texts = [answer.text.replace("not-theirs", "X").replace("nowhere", "X") for answer in answers]
    assert "Not registered: no token has been provisioned" in texts[1]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("how", "expected"), [("disabled", "401"), ("demoted", "403")])
async def test_who_loses_the_right_while_the_form_comes_has_none(running, browse, how, expected):
    """Headers and half a form as an admin, then disabled or made an auditor, then the rest."""
    await has_password(running, "root")
    boss = await browse(running, "boss")
    body = b"ice_name=late&ice_type=ci-cd"
    host = running.url.removeprefix("http://")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    head = [
        "POST /admin/ices HTTP/1.1",
        f"Host: {host}",
        f"Origin: {running.url}",
        f"Cookie: {COOKIE}={boss.cookie}",
        f"{FORM_TOKEN}: {boss.form_token}",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode() + body[:9])
    # The gateway has seen it once somebody who came later is answered.
    assert (await boss.get()).status == 200
    if how == "disabled":
        await running.gateway.services.accounts.disable(ADMIN, "boss")
    else:
        await running.gateway.services.accounts.set_role(ADMIN, "boss", Role.AUDITOR)
    writer.write(body[9:])
    async with asyncio.timeout(10):
        status = (await reader.readline()).decode()
    writer.close()
    assert status.split()[1] == expected, f"a refusal was expected, not {status}"
    assert (await running.admin.get("/ices/late")).status == 404


async def test_a_page_says_that_nobody_is_admitted(running, root, browse):
    running.gateway.node.restore_hold.reason = "the database is a copy"
    for path in ("", "audit"):
        assert "The database is a copy." in (await root.get(path)).text
    assert "is a copy" not in (await (await browse(running)).get("login")).text, "to a stranger"
    running.gateway.node.restore_hold.reason = None
    assert "is a copy" not in (await root.get()).text


# --- one ICE -------------------------------------------------------------------------------------


async def test_an_ice_is_described_and_its_start_is_shown(running, browse, root):
    connection = await connected(running)
    await connection.leave()
    await running.settled()
    here, form = "ices/lab-1", "ices/lab-1/description"
    text = said(await root.get(here))
    assert "Last known From 127.0.0.1 Host " in text
    assert "No label." in text
    assert f"ice/bin/ice-client run --gateway {running.url}" in text
    first = {"labels": "os=linux; room=4", "note": "by\r\nthe door", "was_note": ""}
    assert (await root.post(form, first)).status == 200
    edited = {"value.os": "windows", "was.os": "linux", "value.room": "4", "was.room": "4"}
    assert (
        await root.post(form, {**edited, "remove": "room", "note": "x", "was_note": "x"})
    ).status == 200
    ice = (await running.admin.get("/ices/lab-1")).json
    assert (ice["labels"], ice["note"]) == ({"os": "windows"}, "by\nthe door")
    for fields, names in (({"labels": "os"}, "new-labels"), ({"note": "x" * 1001}, "note")):
        answer = await root.post(form, fields)
        assert answer.status == 422
        assert f'"field":"{names}"' in answer.headers["HX-Trigger"]
    for page in ("audit?action=label", here):
        assert "Set the label os=windows. Removed the label room." in said(await root.get(page))
    await running.admin.post("/ices/lab-1/deregister")
    alice = await browse(running, "alice", Role.MEMBER)
    text = said(await alice.get(here))
    assert "os=windows" in text
    assert "by the door" in text
    assert "ice-client run" not in text, "it would be refused"


async def test_each_action_is_offered_once_on_an_ices_page(running, root):
    async def offered():
        return re.findall(
            r'hx-get="ices/lab-1/(re\w+|de\w+er|dis\w+)"', (await root.get(here)).text
        )

    here = "ices/lab-1"
    ice = await running.provision("lab-1")
    assert await offered() == ["reprovision"]
    connection = await ice.connect()
    await running.settled()
    assert await offered() == ["reregister", "deregister", "disconnect"]
    await connection.leave()
    await running.settled()
    await running.ice(ice.token, Key()).refused()
    await running.settled()
    assert sorted(await offered()) == ["deregister", "reregister"]
    await running.gateway.services.accounts.disable(ADMIN, "alice")
    assert sorted(await offered()) == ["deregister", "reregister"]
    await running.act("lab-1", "deregister")
    assert await offered() == ["reregister"]


async def test_an_ice_is_given_to_another_user(running, root):
    await connected(running)
    await running.add_user("bob")
    assert "Belongs to" in said(await root.part("ices/lab-1/reregister", "dialog"))
    address, fields = "ices/lab-1/reregister", {"generation": "1"}
    answer = await root.post(address, {**fields, "provisionedto": "nobody"})
    assert answer.status == 422
    assert '"field":"new-owner"' in answer.headers["HX-Trigger"]
    assert (await root.post(address, {**fields, "provisionedto": "BOB"})).status == 200
    assert (await running.admin.get("/ices/lab-1")).json["provisionedto"] == "bob"
    said_then = [
        said(await root.part(f"ices/lab-1/replaced?generation={number}", "token-replaced"))
        for number in (1, 2)
    ]
    assert "no longer works" in said_then[0]
    assert said_then[1] == ""
