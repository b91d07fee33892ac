"""Logging in and out."""

from __future__ import annotations

import math
from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.auth import cookie_name, from_own_page, is_secure, login_cookie, login_of
from gateway.admin.pages.base import form, parts, render, root
from gateway.core.problems import problem
from gateway.core.roles import Need
from gateway.core.secret import Secret
from gateway.services.logins import NotLoggedIn
from gateway.web.responses import RequestRefused, client_address

MAX_FORM: Final = 16 * 1024
"""Bytes of the form: strangers send it, too."""


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    return [
        route("GET", "/login", page, need=Need.NOTHING),
        route("POST", "/login", log_in, need=Need.NOTHING),
        route("POST", "/logout", log_out, need=Need.CALLER),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The form; while there is no user it names the command that makes the first admin."""
    if await login_of(request) is not None:
        raise web.HTTPFound(root(request))
    return await _page(request, None)


async def _page(
    request: web.Request, fault: str | None, name: str = "", status: int = 200
) -> web.StreamResponse:
    anybody = await parts(request).services.accounts.any()
    context = {"fault": fault, "name": name, "anybody": anybody, "title": "Log in"}
    return render(request, "login.html", context, status=status)


async def log_in(request: web.Request) -> web.StreamResponse:
    """Check name and password."""
    if not from_own_page(request):
        raise RequestRefused(problem("forbidden", "This login did not come from the login page."))
    fields = await form(request, MAX_FORM)
    name, password = fields.get("name", ""), Secret(fields.get("password", ""))
    address = client_address(request, parts(request).trusted_proxies)
    outcome = await parts(request).services.logins.log_in(name, password, address)
    if isinstance(outcome, NotLoggedIn):
        if not outcome.wait:
            return await _page(request, "Name or password is wrong.", name, 401)
        minutes = math.ceil(outcome.wait / 60)
        fault = f"Too many failed attempts. Try again in {minutes} minute{'s' * (minutes != 1)}."
        response = await _page(request, fault, name, 429)
        response.headers["Retry-After"] = str(math.ceil(outcome.wait))
        return response
    response = web.HTTPSeeOther(root(request))
    response.set_cookie(
        cookie_name(request),
        outcome.reveal(),
        httponly=True,
        samesite="Strict",
        secure=is_secure(request),
        path="/",
    )
    raise response


async def log_out(request: web.Request) -> web.StreamResponse:
    """End this login."""
    brought = login_cookie(request)
    if brought is not None:
        await parts(request).services.logins.log_out(brought)
    response = web.Response(headers={"HX-Redirect": f"{root(request)}login"})
    response.del_cookie(cookie_name(request), path="/", secure=is_secure(request))
    return response
