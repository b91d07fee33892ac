"""The page of the person who is logged in: who they are, their password, their own API tokens.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import unwrap
from gateway.admin.auth import actor, login_cookie
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.api_tokens import token_rows
from gateway.admin.pages.base import PAGE, form, notice, render
from gateway.admin.pages.ices import form_error
from gateway.core.audit_event import Via
from gateway.core.problems import Problem, problem
from gateway.core.roles import Need
from gateway.core.secret import Secret
from gateway.services.passwords import MIN_LENGTH, RULE
from gateway.store.accounts import TokenFilter

CHANGED: Final = "users-changed"
_FIELD_IDS: Final = {
    "forbidden": "old_password",
    "too-many-attempts": "old_password",
    "new": "own_password",
}
"""The element of an invalid field, by the problem's field or code."""


def routes() -> list[web.RouteDef]:
    """The routes of `/me`."""
    return [
        route("GET", "/me", page, need=Need.USER),
        route("POST", "/me/password", set_password, need=Need.CHANGE_OWN_ACCOUNT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The page."""
    name = request[CALLER].user
    services = admin_context(request).services
    found, total = await services.accounts.tokens_page(TokenFilter(user=name), PAGE)
    context = {
        "title": "My account",
        "me": unwrap(await services.accounts.listed(name) or problem("not-found")),
        "logins": (await services.logins.counts()).get(name, 0),
        "rows": await token_rows(request, found),
        "total": total,
        "password_rule": RULE,
        "password_min": MIN_LENGTH,
    }
    return render(request, "me.html", context)


async def set_password(request: web.Request) -> web.StreamResponse:
    """Change the caller's password; a refusal appears in the form."""
    fields = await form(request)
    services = admin_context(request).services
    done = await services.logins.change_password(
        services.accounts,
        actor(request, Via.PAGE),
        Secret(fields.get("old", "")),
        Secret(fields.get("new", "")),
        keep=login_cookie(request),
    )
    if isinstance(done, Problem):
        return form_error(request, done, _FIELD_IDS)
    ended = f"Your other logins ({done.logins_ended}) have ended."
    sentence = "Log in with the new password from now on."
    return notice(request, "Your password is changed", sentence, ended, changed=CHANGED)
