"""Who may use which page and call: one table, of every route there is."""

from __future__ import annotations

import contextlib

import aiohttp
import pytest
import pytest_asyncio

from gateway.admin import api_app, pages_app
from gateway.core.roles import Role
from tests.support.harness import API, Api, harness
from tests.support.pages import Browser, has_password
from tests.support.work import asked, connected

STALE = {"If-Match": '"9"'}
NEW = {"ice_name": "mine", "ice_type": "normal", "provisionedto": "alice"}

# What `nobody`, the member whose ICE it is, an auditor, an admin, and an API token for that ICE are answered. One for a
# pool is tested with pools.
# What an admin may do is asked for in a way that fails afterwards, so that nothing is done.
CALLS = {
    "POST /ices": ("/ices", NEW, (401, 403, 403, 409, 403)),
    "GET /ices": ("/ices", None, (401, 200, 200, 200, 403)),
    "POST /ices/bulk": (
        "/ices/bulk",
        {"action": "disconnect", "ice_names": []},
        (401, 403, 403, 200, 403),
    ),
    "GET /ices/{ice_name}": ("/ices/mine", None, (401, 200, 200, 200, 403)),
    **{
        f"{method} /ices/{{ice_name}}": ("/ices/mine", None, (401, 405, 405, 405, 405))
        for method in ("DELETE", "PUT")
    },
    "PATCH /ices/{ice_name}": ("/ices/mine", {"labels": {"no": None}}, (401, 403, 403, 200, 403)),
    "GET /ice-counts": ("/ice-counts", None, (401, 200, 200, 200, 403)),
    **{
        f"POST /ices/{{ice_name}}/{action}": (
            f"/ices/mine/{action}",
            None,
            (401, 403, 403, 412, 403),
        )
        for action in ("reprovision", "reregister", "deregister", "disconnect")
    },
    **{
        f"POST /ices/{{ice_name}}/{action}": (
            f"/ices/mine/{action}",
            None,
            (401, 412, 403, 412, 403),
        )
        for action in ("pause", "resume")
    },
    "GET /ices/{ice_name}/connections": (
        "/ices/mine/connections",
        None,
        (401, 200, 200, 200, 403),
    ),
    "POST /ices/{ice_name}/operations": (
        "/ices/mine/operations",
        {"kind": "execute", "idempotency_key": "once"},
        (401, 202, 403, 202, 202),
    ),
    "POST /pools/{name}/operations": (
        "/pools/none/operations",
        {"kind": "execute"},
        (401, 403, 404, 404, 403),
    ),
    "GET /operations": ("/operations", None, (401, 200, 200, 200, 200)),
    "GET /operations/{id}": ("/operations/{id}", None, (401, 200, 200, 200, 200)),
    "GET /operations/{id}/stream": ("/operations/{id}/stream", None, (401, 200, 200, 200, 200)),
    "GET /operations/{id}/log": ("/operations/{id}/log", None, (401, 200, 200, 200, 200)),
    "POST /operations/{id}/cancel": ("/operations/{id}/cancel", None, (401, 409, 403, 409, 409)),
    "GET /events": ("/events", None, (401, 403, 200, 200, 403)),
    "GET /events/stream": ("/events/stream", None, (401, 403, 200, 200, 403)),
    "GET /pools": ("/pools", None, (401, 403, 200, 200, 403)),
    "GET /pools/{name}": ("/pools/none", None, (401, 403, 404, 404, 403)),
    "PUT /pools/{name}": ("/pools/lab", {"labels": {"a": "b"}}, (401, 403, 403, 201, 403)),
    "DELETE /pools/{name}": ("/pools/none", None, (401, 403, 404, 404, 403)),
    "GET /schedules": ("/schedules", None, (401, 200, 200, 200, 403)),
    "POST /schedules": (
        "/schedules",
        {"name": "x", "ice_name": "mine", "cron": "0 0 1 1 *"},
        (401, 201, 403, 201, 403),
    ),
    **{
        f"{method} /schedules/{{id}}{rest}": (
            f"/schedules/none{rest}",
            {"enabled": False} if method == "PATCH" else None,
            (401, 404, 404, 404, 403),
        )
        for method, rest in (
            *(("GET", ""), ("PATCH", ""), ("DELETE", "")),
            *(("POST", "/run"), ("GET", "/occurrences")),
        )
    },
    "GET /webhooks": ("/webhooks", None, (401, 403, 200, 200, 403)),
    "POST /webhooks": (
        "/webhooks",
        {"name": "x", "url": "https://hooks.example.com", "events": ["*"], "enabled": False},
        (401, 403, 403, 201, 403),
    ),
    **{
        f"{method} /webhooks/{{id}}{rest}": (
            f"/webhooks/none{rest.format(message='none')}",
            {"enabled": False} if method == "PATCH" else None,
            (401, 403, 404, 404, 403),
        )
        for method, rest in (
            *(("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test")),
            *(("GET", "/deliveries"), ("GET", "/set-aside")),
            ("POST", "/set-aside/{message}/send"),
        )
    },
    "GET /users": ("/users", None, (401, 403, 200, 200, 403)),
    "POST /users": ("/users", {"name": "alice", "role": "member"}, (401, 403, 403, 409, 403)),
    "GET /users/{name}": ("/users/alice", None, (401, 200, 200, 200, 403)),
    "PATCH /users/{name}": ("/users/alice", {"role": "member"}, (401, 403, 403, 200, 403)),
    "GET /me": ("/me", None, (401, 200, 200, 200, 403)),
    "POST /me/password": (
        "/me/password",
        {"old": "wrong", "new": "a new password"},
        (401, 403, 403, 403, 403),
    ),
    "GET /api-tokens": ("/api-tokens", None, (401, 200, 200, 200, 403)),
    "POST /api-tokens": (
        "/api-tokens",
        {"user": "alice", "name": "ci", "expires": "2001-01-01T00:00:00Z"},
        (401, 422, 422, 422, 422),
    ),
    "GET /api-tokens/{id}": ("/api-tokens/none", None, (401, 404, 404, 404, 403)),
    "DELETE /api-tokens/{id}": ("/api-tokens/none", None, (401, 404, 404, 404, 403)),
    "GET /enrolment-keys": ("/enrolment-keys", None, (401, 403, 200, 200, 403)),
    "POST /enrolment-keys": (
        "/enrolment-keys",
        {"name": "x", "ice_type": "ci-cd", "name_prefix": "x"},
        (401, 422, 422, 422, 422),
    ),
    "GET /enrolment-keys/{id}": ("/enrolment-keys/none", None, (401, 403, 404, 404, 403)),
    "DELETE /enrolment-keys/{id}": ("/enrolment-keys/none", None, (401, 403, 404, 404, 403)),
    "GET /enrolments": ("/enrolments", None, (401, 403, 200, 200, 403)),
    "GET /enrolments/{id}": ("/enrolments/none", None, (401, 403, 404, 404, 403)),
    "POST /enrolments/{id}/approve": ("/enrolments/none/approve", {}, (401, 403, 404, 404, 403)),
    "POST /enrolments/{id}/reject": ("/enrolments/none/reject", {}, (401, 403, 404, 404, 403)),
    "GET /audit/head": ("/audit/head", None, (401, 403, 200, 200, 403)),
    "GET /audit/verification": ("/audit/verification", None, (401, 403, 200, 200, 403)),
    "GET /audit/export": ("/audit/export", None, (401, 403, 200, 200, 403)),
    "GET /nodes": ("/nodes", None, (401, 403, 200, 200, 403)),
    "POST /nodes/{name}/drain": ("/nodes/none/drain", {}, (401, 403, 404, 404, 403)),
    "POST /nodes/{name}/resume": ("/nodes/none/resume", {}, (401, 403, 404, 404, 403)),
    "GET /openapi.json": ("/openapi.json", None, (200, 200, 200, 200, 200)),
}

# The same of pages: an API token is nobody there.
_WORK = "ices/mine/operations"
_IN = (302, 200, 200, 200)
_SEES_ALL = (302, 403, 200, 200)
PAGES = {
    "GET ": (".", (302, 302, 302, 302)),
    "GET /login": ("login", (200, 302, 302, 302)),
    "POST /login": ("login", (401, 401, 401, 401)),
    "POST /logout": ("logout", (401, 200, 200, 200)),
    # Without an issuer there is none.
    "GET /sso/login": ("sso/login", (404, 404, 404, 404)),
    "GET /sso/callback": ("sso/callback", (404, 404, 404, 404)),
    "POST /sso/backchannel-logout": ("sso/backchannel-logout", (404, 404, 404, 404)),
    "GET /static/{name}": ("static/icon.svg", (200, 200, 200, 200)),
    "GET /static-{digest}/{name}": ("static-0/icon.svg", (200, 200, 200, 200)),
    "GET /guide": ("guide", _IN),
    "GET /": ("", _IN),
    "POST /ices": ("ices", (401, 403, 403, 422)),
    "GET /ice-names": ("ice-names", (302, 403, 403, 200)),
    "POST /fleet": ("fleet", (401, 403, 403, 200)),
    "POST /fleet/check": ("fleet/check", (401, 403, 403, 200)),
    "POST /ices/owner": ("ices/owner", (401, 403, 403, 422)),
    "POST /ices/bulk": ("ices/bulk", (401, 403, 403, 422)),
    "POST /ices/bulk/confirm": ("ices/bulk/confirm", (401, 403, 403, 422)),
    "GET /ices/{ice_name}": ("ices/mine", _IN),
    "GET /ices/{ice_name}/pause": ("ices/mine/pause", (302, 200, 403, 200)),
    "POST /ices/{ice_name}/pause": ("ices/mine/pause", (401, 422, 403, 422)),
    "POST /ices/{ice_name}/resume": ("ices/mine/resume", (401, 204, 403, 204)),
    "GET /schedules": ("schedules", _IN),
    "GET /new-schedule": ("new-schedule", _IN),
    "GET /schedule-times": ("schedule-times", _IN),
    "POST /schedules": ("schedules", (401, 422, 422, 422)),
    "GET /schedules/{id}": ("schedules/none", (302, 404, 404, 404)),
    **{
        f"{method} /schedules/{{id}}/{what}": (
            f"schedules/none/{what}",
            (302 if method == "GET" else 401, 404, 404, 404),
        )
        for method, what in (
            *(("GET", "change"), ("POST", "change"), ("POST", "enable"), ("POST", "disable")),
            *(("POST", "run"), ("GET", "delete"), ("POST", "delete")),
        )
    },
    "GET /ices/{ice_name}/replaced": ("ices/mine/replaced?generation=1", (302, 403, 403, 200)),
    "GET /ices/{ice_name}/description": ("ices/mine/description", (302, 403, 403, 200)),
    "POST /ices/{ice_name}/description": ("ices/mine/description", (401, 403, 403, 200)),
    "GET /ices/{ice_name}/{action}": ("ices/mine/disconnect", (302, 403, 403, 200)),
    "POST /ices/{ice_name}/{action}": ("ices/mine/disconnect", (401, 403, 403, 422)),
    "GET /ices/{ice_name}/operations/new": (f"{_WORK}/new", (302, 200, 403, 200)),
    "POST /ices/{ice_name}/operations": (_WORK, (401, 422, 403, 422)),
    "GET /operations": ("operations", _IN),
    "GET /operations/{id}": ("operations/{id}", _IN),
    "GET /operations/{id}/details": ("operations/{id}/details", _IN),
    "GET /operations/{id}/cancel": ("operations/{id}/cancel", (302, 200, 403, 200)),
    "POST /operations/{id}/cancel": ("operations/{id}/cancel", (401, 409, 403, 409)),
    "GET /pools": ("pools", _SEES_ALL),
    "GET /new-pool": ("new-pool", (302, 403, 403, 200)),
    "POST /pools": ("pools", (401, 403, 403, 422)),
    "GET /pools/{name}": ("pools/none", (302, 403, 404, 404)),
    "GET /pools/{name}/change": ("pools/none/change", (302, 403, 403, 404)),
    "POST /pools/{name}/change": ("pools/none/change", (401, 403, 403, 404)),
    "GET /pools/{name}/operations/new": ("pools/none/operations/new", (302, 403, 404, 404)),
    "POST /pools/{name}/operations": ("pools/none/operations", (401, 403, 404, 404)),
    "GET /pools/{name}/delete": ("pools/none/delete", (302, 403, 403, 404)),
    "POST /pools/{name}/delete": ("pools/none/delete", (401, 403, 403, 404)),
    "GET /webhooks": ("webhooks", _SEES_ALL),
    "GET /new-webhook": ("new-webhook", (302, 403, 403, 200)),
    "POST /webhooks": ("webhooks", (401, 403, 403, 422)),
    "GET /webhooks/{id}": ("webhooks/none", (302, 403, 404, 404)),
    **{
        f"{method} /webhooks/{{id}}/{what}": (
            f"webhooks/none/{what.format(message='none')}",
            (302 if method == "GET" else 401, 403, 404, 404),
        )
        for method, what in (
            *(("GET", "change"), ("POST", "change"), ("POST", "enable"), ("POST", "disable")),
            *(("POST", "test"), ("GET", "delete"), ("POST", "delete")),
            ("POST", "set-aside/{message}/send"),
        )
    },
    "GET /users": ("users", _SEES_ALL),
    "GET /users/known": ("users/known", _SEES_ALL),
    "POST /users": ("users", (401, 403, 403, 422)),
    "GET /users/{action}": ("users/role?name=alice", (302, 403, 403, 200)),
    "POST /users/role": ("users/role", (401, 403, 403, 422)),
    "POST /users/password": ("users/password", (401, 403, 403, 422)),
    "POST /users/origin": ("users/origin", (401, 403, 403, 404)),
    "POST /users/logins": ("users/logins", (401, 403, 403, 404)),
    "POST /users/disable": ("users/disable", (401, 403, 403, 404)),
    "POST /users/enable": ("users/enable", (401, 403, 403, 404)),
    "GET /me": ("me", _IN),
    "POST /me/password": ("me/password", (401, 422, 422, 422)),
    "GET /api-tokens": ("api-tokens", _SEES_ALL),
    "POST /api-tokens": ("api-tokens", (401, 403, 403, 422)),
    "GET /api-tokens/{token_id}/revoke": ("api-tokens/none/revoke", (302, 403, 403, 404)),
    "POST /api-tokens/{token_id}/revoke": ("api-tokens/none/revoke", (401, 403, 403, 404)),
    "GET /enrolment": ("enrolment", _SEES_ALL),
    "GET /enrolment/of/{id}/{action}": ("enrolment/of/none/approve", (302, 403, 403, 404)),
    "POST /enrolment/of/{id}/{action}": ("enrolment/of/none/approve", (401, 403, 403, 404)),
    "POST /enrolment/chosen/{action}/confirm": (
        "enrolment/chosen/reject/confirm",
        (401, 403, 403, 422),
    ),
    "POST /enrolment/chosen/{action}": ("enrolment/chosen/reject", (401, 403, 403, 422)),
    "GET /enrolment/keys": ("enrolment/keys", _SEES_ALL),
    "GET /enrolment/keys/new": ("enrolment/keys/new", (302, 403, 403, 200)),
    "POST /enrolment/keys": ("enrolment/keys", (401, 403, 403, 422)),
    "GET /enrolment/keys/{id}/revoke": ("enrolment/keys/none/revoke", (302, 403, 403, 404)),
    "POST /enrolment/keys/{id}/revoke": ("enrolment/keys/none/revoke", (401, 403, 403, 404)),
    "GET /audit": ("audit", _SEES_ALL),
    "GET /audit/verdict": ("audit/verdict", _SEES_ALL),
    "GET /audit/export.{format}": ("audit/export.csv", _SEES_ALL),
    "GET /nodes": ("nodes", _SEES_ALL),
    "GET /nodes/{name}/{action}": ("nodes/none/drain", (302, 403, 403, 404)),
    "POST /nodes/{name}/{action}": ("nodes/none/drain", (401, 403, 403, 404)),
}

changes_nothing = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway with the ICE `mine` of alice, and a finished operation."""
    async with harness(tmp_path_factory.mktemp("shared")) as started:
        ice = await connected(started, "mine")
        started.operation = await asked(started.admin, "mine")
        await started.admin.post(f"/operations/{started.operation}/cancel")
        await ice.close()
        await started.settled()
        started.callers = [
            Api(started.session, started.url, None),
            await started.api("alice"),
            await started.api("eve", Role.AUDITOR),
            started.admin,
            await started.api("root", ice="mine"),
        ]
        yield started


def routes(app):
    return {
        f"{each.method} {each.resource.canonical}"
        for each in app.router.routes()
        if each.method != "HEAD"
    }


def test_the_tables_have_every_route():
    assert set(CALLS) == routes(api_app(None))
    assert set(PAGES) == routes(pages_app(None))


@pytest.mark.parametrize("call", CALLS)
@changes_nothing
async def test_calls(shared, call):
    path, body, expected = CALLS[call]
    path = path.format(id=shared.operation)
    for caller, status in zip(shared.callers, expected, strict=True):
        token = {"Authorization": f"Bearer {caller.token}"} if caller.token else {}
        async with shared.session.request(
            call.split()[0], f"{shared.url}{API}{path}", json=body, headers=STALE | token
        ) as answer:
            assert answer.status == status, f"{call} of {caller.token}: {await answer.text()}"


@contextlib.asynccontextmanager
async def browsers_of(running):
    """The browsers of nobody, the member, the auditor and the admin."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in (None, "alice", "eve", "root"):
            jar = aiohttp.CookieJar(unsafe=True)
            session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
            found.append(Browser(session, running.url))
            if name is not None:
                await has_password(running, name)
                assert (await found[-1].log_in(name)).status == 303
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(shared):
    async with browsers_of(shared) as found:
        yield found


@pytest.mark.parametrize("page", PAGES)
@changes_nothing
async def test_pages(shared, opened, page):
    method = page.split(" ")[0]
    path, expected = PAGES[page]
    path = path.format(id=shared.operation)
    token = shared.callers[-1].token
    async with contextlib.AsyncExitStack() as stack:
        if path == "logout":  # it would end the logins of the others
            opened = await stack.enter_async_context(browsers_of(shared))
        for browser, status in zip(opened, expected, strict=True):
            answer = await ask(browser, method, path)
            assert answer.status == status, f"{page}: {answer}"
        answer = await ask(opened[0], method, path, Authorization=f"Bearer {token}")
        assert answer.status == expected[0], f"{page} with an API token: {answer}"


async def ask(browser, method, path, **more):
    url = f"{browser.url}/admin" if path == "." else path
    if method == "GET":
        return await browser.get(url, headers=more)
    return await browser.post(url, **more)
