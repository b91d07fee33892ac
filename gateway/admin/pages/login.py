"""Logging in and out.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

import math
import re
from typing import Final
from urllib.parse import unquote, urlencode

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.auth import cookie_name, current_login, is_same_origin, is_secure, login_cookie
from gateway.admin.context import admin_context
from gateway.admin.pages.base import form, render, root
from gateway.core.problems import problem
from gateway.core.roles import Need
from gateway.core.secret import Secret
from gateway.runtime.sso_settings import CALLBACK, LOGIN
from gateway.services.logins import NotLoggedIn, too_many_attempts
from gateway.web.client_address import client_address
from gateway.web.responses import RequestRefused

MAX_FORM: Final = 16 * 1024
"""Bytes of the form, which anyone can send."""
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,2048}")
"""An address as browsers send it (RFC 3986), without a fragment."""


def routes() -> list[web.RouteDef]:
    """The routes of `/login` and `/logout`."""
    return [
        route("GET", "/login", page, need=Need.NOTHING),
        route("POST", "/login", log_in, need=Need.NOTHING),
        route("POST", "/logout", log_out, need=Need.CALLER),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The form; while there is no user, it names the command that adds the first admin."""
    to = own_address(request.query.get("to", ""))
    if await current_login(request) is not None:
        raise web.HTTPFound(root(request) + to)
    return await login_page(request, None, to)


def own_address(text: str) -> str:
    """The address below `/admin/` to go to after the login; "" for all that is no such address.

    It is appended to `./`, so it names neither another scheme nor another host.
    """
    path = unquote(text.partition("?")[0])
    leaves = path.startswith("/") or "\\" in path or ".." in path.split("/")
    return "" if leaves or not _ADDRESS.fullmatch(text) else text


async def login_page(
    request: web.Request, fault: str | None, to: str, name: str = "", status: int = 200
) -> web.StreamResponse:
    """The page of the login, with what went wrong before; `to` is an `own_address`."""
    context = admin_context(request)
    has_users = await context.services.accounts.any()
    sso = None
    if context.sso is not None:
        # The whole URL: the issuer sends the browser back to this host, and the cookie must be there.
        sso = context.sso.settings.redirect_url.removesuffix(CALLBACK) + LOGIN
        sso += f"?{urlencode({'to': to})}" if to else ""
    shown = {
        "fault": fault,
        "to": to,
        "name": name,
        "has_users": has_users,
        "title": "Log in",
        "sso": sso,
    }
    return render(request, "login.html", shown, status=status)


async def log_in(request: web.Request) -> web.StreamResponse:
    """Check name and password, and set the login's cookie."""
    if not is_same_origin(request):
        raise RequestRefused(problem("forbidden", "This login did not come from the login page."))
    fields = await form(request, MAX_FORM)
    name, password = fields.get("name", ""), Secret(fields.get("password", ""))
    to = own_address(fields.get("to", ""))
    context = admin_context(request)
    address = client_address(request, context.trusted_proxies)
    outcome = await context.services.logins.log_in(name, password, address)
    if isinstance(outcome, NotLoggedIn):
        if not outcome.wait:
            return await login_page(request, "Name or password is wrong.", to, name, 401)
        response = await login_page(request, too_many_attempts(outcome.wait), to, name, 429)
        response.headers["Retry-After"] = str(math.ceil(outcome.wait))
        return response
    response = web.HTTPSeeOther(root(request) + to)
    set_login_cookie(request, response, outcome)
    raise response


def set_login_cookie(request: web.Request, response: web.StreamResponse, value: Secret) -> None:
    """Give the browser the cookie of its login."""
    response.set_cookie(
        cookie_name(request),
        value.reveal(),
        httponly=True,
        samesite="Strict",
        secure=is_secure(request),
        path="/",
    )


async def log_out(request: web.Request) -> web.StreamResponse:
    """End this login."""
    value = login_cookie(request)
    if value is not None:
        await admin_context(request).services.logins.log_out(value)
    response = web.Response(headers={"HX-Redirect": f"{root(request)}login"})
    response.del_cookie(cookie_name(request), path="/", secure=is_secure(request))
    return response
