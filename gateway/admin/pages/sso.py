"""Single sign-on in the browser: to the issuer and back; and the issuer's message that a user has logged out there.

The login's cookie is SameSite=Strict: a browser that the issuer has redirected would not send it with a further redirect.
So the login ends with a small page, from which the browser goes on.

Tested in tests/gateway/admin/test_single_sign_on.py.
"""

from __future__ import annotations

import math
from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.auth import current_login, is_secure
from gateway.admin.context import admin_context
from gateway.admin.pages.base import form, render, root
from gateway.admin.pages.login import login_page, own_address, set_login_cookie
from gateway.core.login_state import LIFETIME
from gateway.core.roles import Need
from gateway.core.secret import Secret
from gateway.services.issuer import IssuerUnavailable
from gateway.services.login_failures import FailureReason
from gateway.services.sso import Answer, LoggedIn, Refusal, SsoService
from gateway.web.client_address import client_address
from gateway.web.http_headers import cookie
from gateway.web.responses import RequestRefused, json_response

STATE_COOKIE: Final = "ice_sso"
_MAX_FORM: Final = 40 * 1024
"""Bytes of the form with a logout token, which anyone can send."""


def routes() -> list[web.RouteDef]:
    """The routes below `/sso`."""
    return [
        route("GET", "/sso/login", begin, need=Need.NOTHING, allow_head=False),
        route("GET", "/sso/callback", callback, need=Need.NOTHING, allow_head=False),
        route("POST", "/sso/backchannel-logout", log_out, need=Need.NOTHING),
    ]


async def begin(request: web.Request) -> web.StreamResponse:
    """Send the browser to the issuer, with a cookie of the login that begins."""
    sso, to = _service(request), own_address(request.query.get("to", ""))
    if await current_login(request) is not None:
        raise web.HTTPFound(root(request) + to)
    begun = await sso.begin(to, _address(request))
    if isinstance(begun, Refusal):
        return await _refuse(request, begun, to)
    response = web.HTTPFound(begun.url)
    response.set_cookie(
        _cookie_name(request),
        begun.cookie.reveal(),
        max_age=int(LIFETIME),
        httponly=True,
        samesite="Lax",  # the issuer's redirect has to bring it back
        secure=is_secure(request),
        path="/",
    )
    raise response


async def callback(request: web.Request) -> web.StreamResponse:
    """Finish a login with what the issuer sent back, and go on to where it began."""
    sso, query = _service(request), request.query
    value = cookie(request.headers.getall("Cookie", ()), _cookie_name(request))
    twice = any(len(query.getall(name, ())) > 1 for name in ("code", "state", "iss", "error"))
    answer = Answer(
        Secret(query.get("code", "")),
        "" if twice else query.get("state", ""),
        query.get("iss"),
        query.get("error"),
    )
    done = await sso.finish(answer, None if value is None else Secret(value), _address(request))
    if isinstance(done, LoggedIn):
        response = render(request, "logged_in.html", {"to": done.to, "title": "Log in"})
        set_login_cookie(request, response, done.cookie)
    else:
        response = await _refuse(request, done, "")
    # The cookie may be of a login that another tab has begun since; it ends by itself.
    if not (isinstance(done, Refusal) and done.why is FailureReason.SSO_STATE):
        response.del_cookie(_cookie_name(request), path="/", secure=is_secure(request))
    # The address has the code and the state.
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


async def log_out(request: web.Request) -> web.StreamResponse:
    """End the logins that the issuer names (OpenID Connect Back-Channel Logout 1.0 section 2.5)."""
    sso = _service(request)
    try:
        fields = await form(request, _MAX_FORM)
    except RequestRefused as error:
        return _logout_refused(error.problem.detail or error.problem.title)
    if "logout_token" not in fields:
        return _logout_refused("logout_token is missing")
    try:
        fault = await sso.log_out(Secret(fields["logout_token"]), _address(request))
    except IssuerUnavailable:
        return _logout_refused("the keys of the issuer cannot be read just now", status=503)
    return web.Response(headers=_NO_STORE) if fault is None else _logout_refused(fault)


_NO_STORE: Final = {"Cache-Control": "no-store"}


def _logout_refused(reason: str, status: int = 400) -> web.Response:
    """Section 2.8: a JSON object as of RFC 6749 section 5.2."""
    document: dict[str, Any] = {"error": "invalid_request", "error_description": reason}
    return json_response(document, status=status)


async def _refuse(request: web.Request, refusal: Refusal, to: str) -> web.StreamResponse:
    response = await login_page(request, refusal.sentence, to, status=refusal.status)
    if refusal.wait:
        response.headers["Retry-After"] = str(math.ceil(refusal.wait))
    return response


def _service(request: web.Request) -> SsoService:
    sso = admin_context(request).sso
    if sso is None:
        raise web.HTTPNotFound
    return sso


def _cookie_name(request: web.Request) -> str:
    """Over https no other host can set a cookie of this name (RFC 6265bis section 4.1.3.2)."""
    return f"__Host-{STATE_COOKIE}" if is_secure(request) else STATE_COOKIE


def _address(request: web.Request) -> str:
    return client_address(request, admin_context(request).trusted_proxies)
