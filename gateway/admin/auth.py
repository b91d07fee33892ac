"""Who calls: the API token of a user, or the cookie of a login. What they may do stands in `roles`.

A browser sends its cookie with every request, whoever made it send one. So a request that changes
something by cookie has to come from a page of our own (Origin), and to bring the token that only such
a page knows; SameSite=Strict is the third lock.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.admin.context import CALLER, PARTS
from gateway.core.audit_event import Actor, Via
from gateway.core.problems import problem
from gateway.core.roles import Caller, Need
from gateway.core.secret import Secret
from gateway.services.login_failures import FailureReason
from gateway.services.logins import Recognised
from gateway.web.connection import mark_authenticated
from gateway.web.http_headers import cookie
from gateway.web.responses import RequestRefused, client_address, problem_response

COOKIE = "ice_login"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Its name over https: a browser takes it from no other host and from no plain http (RFC 6265bis section 4.1.3.2)."""
FORM_TOKEN = "X-Form-Token"  # noqa: S105 - a header's name
LIVE = "X-Live"
"""Marks what the page's script asks for because of news, not because of a person."""
_SCHEME = "bearer "
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110 section 9.2.1


def needed(handler: object) -> Need | None:
    """What a route declares to need by its handler; None where it was not made by `access.route`."""
    return getattr(handler, "need", None)


def is_public(request: web.Request) -> bool:
    """Whether the route needs no credentials; what is not there needs some."""
    return needed(request.match_info.handler) is Need.NOTHING


@web.middleware
async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Of the API: let nobody in without credentials; only its description is open."""
    if not is_public(request):
        caller = await recognise(request)
        if caller is None:
            if "Authorization" in request.headers:  # an ended login is no attempt
                parts = request.config_dict[PARTS]
                address = client_address(request, parts.trusted_proxies)
                parts.services.logins.failures.note(FailureReason.API_TOKEN, address)
            response = problem_response(problem("unauthenticated"))
            response.headers["WWW-Authenticate"] = "Bearer"  # RFC 6750 section 3
            return response
        request[CALLER] = caller
    return await handler(request)


async def recognise(request: web.Request, *, used: bool = True) -> Caller | None:
    """The caller whose credentials the request brings, if they are good now and meant."""
    values = request.headers.getall("Authorization", [])
    if not values:
        login = await login_of(request, used=used)
        return login.caller if login is not None and is_meant(request, login) else None
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        return None
    token = values[0][len(_SCHEME) :].strip()
    if not token.isascii():  # RFC 6750 section 2.1; bytes that are not UTF-8 could not be hashed
        return None
    caller = await request.config_dict[PARTS].services.accounts.recognise(Secret(token))
    if caller is not None:
        mark_authenticated(request)
    return caller


def is_secure(request: web.Request) -> bool:
    """Whether browsers reach this gateway by https, by its own TLS or a proxy's."""
    public = request.config_dict[PARTS].public_urls
    return request.secure or any(url.startswith("https:") for url in public)


def cookie_name(request: web.Request) -> str:
    """The name of the login's cookie; one that bears the other name is not believed."""
    return SECURE_COOKIE if is_secure(request) else COOKIE


def login_cookie(request: web.Request) -> Secret | None:
    """The value of the login's cookie, if the request brings one that could be ours."""
    value = cookie(request.headers.getall("Cookie", ()), cookie_name(request))
    return Secret(value) if value and value.isascii() else None


async def login_of(request: web.Request, *, used: bool = True) -> Recognised | None:
    """The login whose cookie the request brings, if it is good now.

    What a page asks for by itself is no sign that somebody sits there: it keeps no login alive.
    """
    brought = login_cookie(request)
    if brought is None:
        return None
    login = await request.config_dict[PARTS].services.logins.recognise(
        brought, used=used and LIVE not in request.headers
    )
    if login is not None:
        mark_authenticated(request)
    return login


def is_meant(request: web.Request, login: Recognised) -> bool:
    """Whether a request by cookie was meant by whoever is logged in."""
    if request.method in _SAFE:
        return True
    return from_own_page(request) and Secret(request.headers.get(FORM_TOKEN, "")) == (
        login.form_token
    )


def from_own_page(request: web.Request) -> bool:
    """Whether a page of this gateway made the browser send this.

    A browser names the page's origin (RFC 6454 section 7.3), which no page can change. It has to be
    the host that the browser asked for, or a public URL: a proxy may ask us under another name.
    """
    try:
        origin = urlsplit(request.headers.get("Origin", "")).netloc.lower()
    except ValueError:
        return False
    public = request.config_dict[PARTS].public_urls
    return bool(origin) and origin in (
        request.host.lower(),
        *(urlsplit(url).netloc.lower() for url in public),
    )


def forbidden(request: web.Request) -> RequestRefused:
    """To raise where the caller may not do what they ask for; says what is in the way."""
    ice = request[CALLER].ice
    return RequestRefused(
        problem("forbidden", ice and f"This API token may operate {ice} and nothing else.")
    )


def actor(request: web.Request, via: Via = Via.API) -> Actor:
    """The caller as the audit log names them."""
    trusted = request.config_dict[PARTS].trusted_proxies
    return Actor(request[CALLER].user, via, client_address(request, trusted))
