"""The page of users: add and disable them, change their roles, passwords and origins, end their logins.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, Text, unwrap
from gateway.admin.auth import actor, login_cookie
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import PAGE, Page, form, notice, render, render_table
from gateway.admin.pages.bulk import MAX_LISTED, tokens_csv
from gateway.admin.pages.ices import LABELS, form_error
from gateway.core.accounts import Origin, User, fold_user
from gateway.core.audit_event import Via
from gateway.core.login_rules import MAX_SUBJECT
from gateway.core.problems import Problem, invalid, problem, quoted
from gateway.core.roles import Need, Role
from gateway.core.secret import Secret
from gateway.services.bulk_actions import MAX_BULK
from gateway.services.leavers import LeaverIces, NextUser, became
from gateway.services.passwords import MIN_LENGTH, RULE
from gateway.services.user_changes import Change
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import Listed
from gateway.web.responses import RequestRefused

CHANGED: Final = "users-changed"
"""The event on which the page reloads lists of users."""
MAX_KNOWN: Final = 20
"""Users that a field offers as completions."""
_FIELD_IDS: Final = {
    "name": "user_name",
    "user-exists": "user_name",
    "role": "user_role",
    "password": "user_password",
}
"""The element of an invalid field, by the problem's field or code."""
_IN_DIALOG: Final = {
    "role": "new_role",
    "password": "new_password",
    "ices.to": "next-user",
    "subject": "new_subject",
    "subject-in-use": "new_subject",
}


class UsersQuery(Query):
    """The query of the page's address."""

    q: Text | None = None
    page: int = 1


class KnownQuery(Query):
    """The input of a field that names a user; each field sends it under its own name."""

    provisionedto: Text | None = None
    owner: Text | None = None
    user: Text | None = None
    actor: Text | None = None
    requested_by: Text | None = None

    def text(self) -> str:
        """The typed part of a name."""
        given: Iterable[str | None] = msgspec.structs.astuple(self)
        return next((text for text in given if text), "")


def routes() -> list[web.RouteDef]:
    """The routes of `/users`; a user's name may have any character, so it is never part of a path."""
    return [
        route("GET", "/users", page, need=Need.SEE_ALL),
        route("GET", "/users/known", known, need=Need.SEE_ALL),
        route("POST", "/users", add, need=Need.ACT),
        route(
            "GET", "/users/{action:role|password|origin|logins|disable|enable}", ask, need=Need.ACT
        ),
        *(route("POST", f"/users/{name}", act, need=Need.ACT) for name, act in _ACTS.items()),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or only its table if htmx asks for that."""
    query = UsersQuery.of(request)
    admin = admin_context(request)
    shown = Page.of(query.page)
    found, total = await admin.services.accounts.page(query.q or "", PAGE, shown.offset)
    context = {
        "title": "Users",
        "query": query,
        "found": found,
        "last_admins": await admin.services.accounts.last_admins(item.user for item in found),
        "logins": await admin.services.logins.counts(),
        "issuer": admin.services.accounts.rules.issuer,
        **shown.context(total),
        "roles": list(Role),
        "password_rule": RULE,
        "password_min": MIN_LENGTH,
    }
    return render_table(request, "users", context)


async def known(request: web.Request) -> web.StreamResponse:
    """The enabled users whose name contains a field's input, as its options."""
    text = KnownQuery.of(request).text()
    names = await admin_context(request).services.accounts.enabled_names(text, MAX_KNOWN)
    return render(request, "user_options.html", {"names": names})


async def add(request: web.Request) -> web.StreamResponse:
    """Add a user; a refusal appears in the form, which keeps its input."""
    fields = await form(request)
    role = _role(fields)
    if isinstance(role, Problem):
        return form_error(request, role, _FIELD_IDS)
    password = fields.get("password") or None
    user = await admin_context(request).services.accounts.add_user(
        actor(request, Via.PAGE),
        fields.get("name", "").strip(),
        role,
        None if password is None else Secret(password),
    )
    if isinstance(user, Problem):
        return form_error(request, user, _FIELD_IDS)
    response = render(
        request,
        "user_added.html",
        {"user": user},
        status=201,
        trigger={CHANGED: {}, "form-done": {}},
    )
    response.headers["HX-Retarget"] = "#form-fault"
    return response


# --- actions on one user -------------------------------------------------------------------------


async def ask(request: web.Request) -> web.StreamResponse:
    """Ask before an action on a user, or ask for the new role or password."""
    user = await _user(request, request.query.get("name", ""))
    admin = admin_context(request)
    counts = await admin.services.logins.counts()
    context = {
        "user": user,
        "action": request.match_info["action"],
        "roles": list(Role),
        "own": user.name == request[CALLER].user,
        "last_admin": bool(await admin.services.accounts.last_admins([user])),
        "logins": counts.get(user.name, 0),
        "password_rule": RULE,
        "password_min": MIN_LENGTH,
        "issuer": admin.services.accounts.rules.issuer,
        "max_subject": MAX_SUBJECT,
        "ices": await _tagged(request, user),
        "labels": LABELS,
    }
    return render(request, "user_ask.html", context)


async def set_role(request: web.Request) -> web.StreamResponse:
    """Change a user's role."""
    fields = await form(request)
    role = _role(fields)
    if isinstance(role, Problem):
        return form_error(request, role, _IN_DIALOG, "#dialog-fault")
    accounts = admin_context(request).services.accounts
    done = unwrap(await accounts.set_role(actor(request, Via.PAGE), fields.get("name", ""), role))
    user = done.user
    sentence = f"{user.name} is {user.role} from the next request on."
    return notice(request, f"Role of {user.name} changed", sentence, changed=CHANGED)


async def set_password(request: web.Request) -> web.StreamResponse:
    """Change a user's password and end their logins, except the one that makes this request."""
    fields = await form(request)
    done = await admin_context(request).services.accounts.set_password(
        actor(request, Via.PAGE),
        fields.get("name", ""),
        Secret(fields.get("password", "")),
        keep=login_cookie(request),
    )
    if isinstance(done, Problem):
        if done.more.get("field") == "password":
            return form_error(request, done, _IN_DIALOG, "#dialog-fault")
        raise RequestRefused(done)
    name, ended = done.user.name, _ended_logins(done.logins_ended)
    sentence = f"{name} logs in with the new password from now on."
    return notice(request, f"Password of {name} set", sentence, ended, changed=CHANGED)


async def set_origin(request: web.Request) -> web.StreamResponse:
    """Link a user to a subject of the issuer, or make them local; a refusal appears in the form."""
    fields = await form(request)
    to_sso = fields.get("origin") == Origin.SSO
    wanted = Change(origin=Origin.LOCAL)
    if to_sso:
        wanted = Change(origin=Origin.SSO, subject=fields.get("subject", "").strip())
    accounts = admin_context(request).services.accounts
    done = await accounts.change(actor(request, Via.PAGE), fields.get("name", ""), wanted)
    if isinstance(done, Problem):
        if done.code == "not-found":
            raise RequestRefused(done)
        return form_error(request, done, _IN_DIALOG, "#dialog-fault")
    name = done.user.name
    sentence = f"{name} logs in by single sign-on alone, as {done.user.subject}."
    if not to_sso:
        has = "logs in by password" if done.user.password_hash else "needs a password to log in"
        sentence = f"{name} is a local user and {has}."
    ended = _ended_logins(done.logins_ended)
    return notice(request, f"Origin of {name} changed", sentence, ended, changed=CHANGED)


async def end_logins(request: web.Request) -> web.StreamResponse:
    """End every login of a user."""
    user = await _user(request, (await form(request)).get("name", ""))
    logins = admin_context(request).services.logins
    ended = await logins.end_all(actor(request, Via.PAGE), user.name)
    return notice(request, f"Logins of {user.name} ended", _ended_logins(ended), changed=CHANGED)


async def disable(request: web.Request) -> web.StreamResponse:
    """Disable a user, and show what became of their ICEs; new tokens are shown once."""
    fields = await form(request)
    wanted = _leaver_ices(fields)
    accounts = admin_context(request).services.accounts
    done = await accounts.disable(actor(request, Via.PAGE), fields.get("name", ""), wanted)
    if isinstance(done, Problem):
        if "field" in done.more:
            return form_error(request, done, _IN_DIALOG, "#dialog-fault")
        raise RequestRefused(done)
    left = done.left
    drops = {drop.ice_name: drop for drop in left.dropped}
    issued = [(each.ice.ice_name, each.token) for each in left.ices if each.token is not None]
    context: dict[str, Any] = {
        "user": done.user,
        "ended": left if any(each.action is not None for each in left.ices) else None,
        "results": [
            (each.ice.ice_name, became(each.action, each.ice.status), drops.get(each.ice.ice_name))
            for each in left.ices[:MAX_LISTED]
        ],
        "count": len(left.ices),
    }
    template = "user_disabled.html"
    if issued:
        template = "user_left.html"
        context |= {
            "done": len(issued),
            "token": tokens_csv(issued),
            "filename": "reregister-tokens.csv",
        }
    return render(request, template, context, trigger={CHANGED: {}})


def _leaver_ices(fields: dict[str, str]) -> LeaverIces:
    """What the form says becomes of the ICEs; they stay unless it says otherwise."""
    match fields.get("ices"):
        case "deregister":
            return "deregister"
        case "to":
            return NextUser(fields.get("provisionedto", "").strip())
        case _:
            return "keep"


async def enable(request: web.Request) -> web.StreamResponse:
    """Enable a user again."""
    fields = await form(request)
    accounts = admin_context(request).services.accounts
    done = unwrap(await accounts.enable(actor(request, Via.PAGE), fields.get("name", "")))
    sso = done.user.origin is Origin.SSO
    sentence = f"{done.user.name} can log in again{'' if sso else ', if they have a password'}."
    return notice(request, f"{done.user.name} is enabled", sentence, changed=CHANGED)


_ACTS: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "role": set_role,
    "password": set_password,
    "origin": set_origin,
    "logins": end_logins,
    "disable": disable,
    "enable": enable,
}


async def _user(request: web.Request, name: str) -> User:
    user = await admin_context(request).services.accounts.user(name)
    return unwrap(user or problem("not-found", f"There is no user {quoted(name)}."))


async def _tagged(request: web.Request, user: User) -> list[Listed]:
    where = IceFilter(provisionedto=fold_user(user.name))
    return await admin_context(request).ices.page(where, MAX_BULK)


def _role(fields: dict[str, str]) -> Role | Problem:
    try:
        return Role(fields.get("role", ""))
    except ValueError:
        return invalid("role", f"choose {', '.join(Role)}")


def _ended_logins(count: int) -> str:
    return f"{count} login{'s' * (count != 1)} ended."
