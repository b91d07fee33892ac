"""Authentication of callers, by an API token or a login's cookie. `core.roles` has their rights.

A browser sends the cookie even with a request that a page of another site caused (CSRF). A request
that changes something by cookie must therefore have an Origin of this gateway and the form token that
only its pages know. The cookie is SameSite=Strict, too.

Tested in tests/gateway/admin/test_api.py and tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.admin.context import CALLER, admin_context
from gateway.core.audit_event import Actor, Via
from gateway.core.problems import problem
from gateway.core.roles import Caller, Need
from gateway.core.secret import Secret
from gateway.services.login_failures import FailureReason
from gateway.services.logins import CurrentLogin
from gateway.web.client_address import client_address
from gateway.web.connection import mark_authenticated
from gateway.web.http_headers import cookie
from gateway.web.responses import RequestRefused, problem_response

COOKIE = "ice_login"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""The cookie's name over https; a browser accepts it only from this host and https (RFC 6265bis section 4.1.3.2)."""
FORM_TOKEN = "X-Form-Token"  # noqa: S105 - a header's name
LIVE = "X-Live"
"""The header of requests that the page's script makes by itself, without a person."""
_SCHEME = "bearer "
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110 section 9.2.1


def declared_need(handler: object) -> Need | None:
    """The need that a route's handler declares; None if `access.route` did not make the route."""
    return getattr(handler, "need", None)


def is_public(request: web.Request) -> bool:
    """Whether the route needs no credentials; an unknown path needs them."""
    return declared_need(request.match_info.handler) is Need.NOTHING


@web.middleware
async def require_caller(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware of the API: refuse requests without credentials, except for public routes."""
    if not is_public(request):
        caller = await authenticate(request)
        if caller is None:
            if "Authorization" in request.headers:  # an expired login is no failed attempt
                context = admin_context(request)
                address = client_address(request, context.trusted_proxies)
                context.services.logins.failures.note(FailureReason.API_TOKEN, address)
            response = problem_response(problem("unauthenticated"))
            response.headers["WWW-Authenticate"] = "Bearer"  # RFC 6750 section 3
            return response
        request[CALLER] = caller
    return await handler(request)


async def authenticate(request: web.Request, *, used: bool = True) -> Caller | None:
    """The caller, if the request's credentials are valid now and it passes the CSRF check.

    `used` extends the login's idle time.
    """
    values = request.headers.getall("Authorization", [])
    if not values:
        login = await current_login(request, used=used)
        return login.caller if login is not None and passes_csrf_check(request, login) else None
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        return None
    token = values[0][len(_SCHEME) :].strip()
    if not token.isascii():  # RFC 6750 section 2.1; surrogates of invalid UTF-8 cannot be hashed
        return None
    caller = await admin_context(request).services.accounts.authenticate(Secret(token))
    if caller is not None:
        mark_authenticated(request)
    return caller


def is_secure(request: web.Request) -> bool:
    """Whether browsers reach this gateway by https, through its own TLS or a proxy's."""
    public = admin_context(request).public_urls
    return request.secure or any(url.startswith("https:") for url in public)


def cookie_name(request: web.Request) -> str:
    """The name of the login's cookie; a cookie with the other name is ignored."""
    return SECURE_COOKIE if is_secure(request) else COOKIE


def login_cookie(request: web.Request) -> Secret | None:
    """The value of the login's cookie, if the request has one."""
    value = cookie(request.headers.getall("Cookie", ()), cookie_name(request))
    return Secret(value) if value and value.isascii() else None


async def current_login(request: web.Request, *, used: bool = True) -> CurrentLogin | None:
    """The login of the request's cookie, if it is valid now.

    A request that a page makes by itself (`LIVE`) does not extend the login's idle time.
    """
    value = login_cookie(request)
    if value is None:
        return None
    login = await admin_context(request).services.logins.authenticate(
        value, used=used and LIVE not in request.headers
    )
    if login is not None:
        mark_authenticated(request)
    return login


def passes_csrf_check(request: web.Request, login: CurrentLogin) -> bool:
    """Whether a page of this gateway, opened in this login, made a request by cookie."""
    form_token = Secret(request.headers.get(FORM_TOKEN, ""))
    return request.method in _SAFE or (is_same_origin(request) and form_token == login.form_token)


def is_same_origin(request: web.Request) -> bool:
    """Whether the request's Origin (RFC 6454 section 7.3) is this gateway; no page can forge it.

    The Origin must name the host of the request or of a public URL, since a proxy may change the host.
    """
    try:
        origin = urlsplit(request.headers.get("Origin", "")).netloc.lower()
    except ValueError:
        return False
    public = admin_context(request).public_urls
    return bool(origin) and origin in (
        request.host.lower(),
        *(urlsplit(url).netloc.lower() for url in public),
    )


def forbidden(request: web.Request, need: Need) -> RequestRefused:
    """The refusal of a caller without the right; it says if the user has it and the API token has not."""
    caller = request[CALLER]
    detail = None
    if caller.is_confined:
        target = caller.ice or f"the pool {caller.pool}"
        detail = f"This API token may operate {target} and nothing else."
    elif replace(caller, accounts=True).may(need, None):
        detail = (
            "This API token may not change users, passwords or API tokens: it was made without"
            " `accounts`."
        )
    return RequestRefused(problem("forbidden", detail))


def actor(request: web.Request, via: Via = Via.API) -> Actor:
    """The caller as the audit log records them."""
    trusted = admin_context(request).trusted_proxies
    return Actor(request[CALLER].user, via, client_address(request, trusted))
