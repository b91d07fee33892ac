"""Users: who may use the gateway, and whom ICEs are tagged to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, Text
from gateway.admin.auth import actor, login_cookie
from gateway.admin.context import CALLER
from gateway.admin.pages.base import PAGE, Page, form, parts, render, render_table
from gateway.admin.pages.ices import WORDS, form_fault
from gateway.core.accounts import User, fold_user
from gateway.core.audit_event import Via
from gateway.core.ice import Status
from gateway.core.problems import Problem, invalid, problem, quoted
from gateway.core.roles import Need, Role
from gateway.core.secret import Secret
from gateway.services.passwords import MIN_LENGTH, RULE
from gateway.services.provisioning import MAX_BULK
from gateway.store.engine import StoreUnavailable
from gateway.store.ices import IceFilter, Listed, Order
from gateway.web.responses import RequestRefused, store_problem

CHANGED: Final = "users-changed"
"""Tells the page's script that lists of users are to be asked for again."""
MAX_KNOWN: Final = 20
"""Users that are offered for what is typed."""
_IDS: Final = {
    "name": "user_name",
    "user-exists": "user_name",
    "role": "user_role",
    "password": "user_password",
}
"""Where on the page the faulty field is."""
_IN_DIALOG: Final = {"role": "new_role", "password": "new_password"}


class UsersQuery(Query):
    """What the address says of the table."""

    q: Text | None = None
    page: int = 1


class KnownQuery(Query):
    """What is typed into a field that names a user: it sends that under its own name."""

    provisionedto: Text | None = None
    owner: Text | None = None
    user: Text | None = None
    actor: Text | None = None

    def text(self) -> str:
        """The part of a name."""
        return self.provisionedto or self.owner or self.user or self.actor or ""


def routes() -> list[web.RouteDef]:
    """The addresses of this noun; a user's name may hold any sign, so it is no part of a path."""
    return [
        route("GET", "/users", page, need=Need.SEE_ALL),
        route("GET", "/users/known", known, need=Need.SEE_ALL),
        route("POST", "/users", add, need=Need.ACT),
        route("GET", "/users/{action:role|password|logins|disable}", ask, need=Need.ACT),
        *(route("POST", f"/users/{name}", act, need=Need.ACT) for name, act in _ACTS.items()),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The whole page, or the table alone where htmx asks for it."""
    query = UsersQuery.of(request)
    here = parts(request)
    shown = Page.of(query.page)
    found, total = await here.services.accounts.page(query.q or "", PAGE, shown.offset)

    def address(to: int) -> str:
        given = {"q": query.q, "page": None if to == 1 else to}
        return urlencode({name: value for name, value in given.items() if value})

    context = {
        "title": "Users",
        "query": query,
        "found": found,
        "logins": await here.services.logins.counts(),
        **shown.context(total),
        "address": address,
        "roles": list(Role),
        "password_rule": RULE,
        "password_min": MIN_LENGTH,
    }
    return render_table(request, "users", context)


async def known(request: web.Request) -> web.StreamResponse:
    """Users whose name contains what is typed into a field, as its options."""
    text = KnownQuery.of(request).text()
    names = await parts(request).services.accounts.enabled_names(text, MAX_KNOWN)
    return render(request, "user_options.html", {"names": names})


async def add(request: web.Request) -> web.StreamResponse:
    """Add a user; a refusal comes back into the form, which keeps what was typed."""
    fields = await form(request)
    role = _role(fields)
    if isinstance(role, Problem):
        return form_fault(request, role, _IDS)
    password = fields.get("password") or None
    user = await parts(request).services.accounts.add_user(
        actor(request, Via.PAGE),
        fields.get("name", "").strip(),
        role,
        None if password is None else Secret(password),
    )
    if isinstance(user, Problem):
        return form_fault(request, user, _IDS)
    response = render(
        request, "user_added.html", {"user": user}, status=201, tell={CHANGED: {}, "form-done": {}}
    )
    response.headers["HX-Retarget"] = "#form-fault"
    return response


# --- what is done to one -------------------------------------------------------------------------


async def ask(request: web.Request) -> web.StreamResponse:
    """Say what will be done to a user, or ask for the new role or password."""
    user = await _user(request, request.query.get("name", ""))
    here = parts(request)
    counts = await here.services.logins.counts()
    context = {
        "user": user,
        "action": request.match_info["action"],
        "roles": list(Role),
        "own": user.name == request[CALLER].user,
        "last_admin": await here.services.accounts.is_last_admin(user),
        "logins": counts.get(user.name, 0),
        "password_rule": RULE,
        "password_min": MIN_LENGTH,
        "ices": await _tagged(request, user),
        "words": WORDS,
    }
    return render(request, "user_ask.html", context)


async def set_role(request: web.Request) -> web.StreamResponse:
    """Give a user another role."""
    fields = await form(request)
    role = _role(fields)
    if isinstance(role, Problem):
        return form_fault(request, role, _IN_DIALOG, "#dialog-fault")
    user = _done(
        await parts(request).services.accounts.set_role(
            actor(request, Via.PAGE), fields.get("name", ""), role
        )
    )
    said = [f"{user.name} is {user.role} now. It counts from the next request on."]
    return _told(request, f"Role of {user.name} changed", said)


async def set_password(request: web.Request) -> web.StreamResponse:
    """Give a user another password; this login stays, should it be theirs, and their others end."""
    fields = await form(request)
    done = await parts(request).services.accounts.set_password(
        actor(request, Via.PAGE),
        fields.get("name", ""),
        Secret(fields.get("password", "")),
        keep=login_cookie(request),
    )
    if isinstance(done, Problem):
        if done.more.get("field") == "password":
            return form_fault(request, done, _IN_DIALOG, "#dialog-fault")
        raise RequestRefused(done)
    user, ended = done
    said = [f"{user.name} logs in with the new password from now on.", _ended(ended)]
    return _told(request, f"Password of {user.name} set", said)


async def end_logins(request: web.Request) -> web.StreamResponse:
    """End every login of a user."""
    user = await _user(request, (await form(request)).get("name", ""))
    ended = await parts(request).services.logins.end_all(actor(request, Via.PAGE), user.name)
    return _told(request, f"Logins of {user.name} ended", [_ended(ended)])


async def disable(request: web.Request) -> web.StreamResponse:
    """Disable a user, name their ICEs, and offer to deregister the registered ones."""
    user = await _user(request, (await form(request)).get("name", ""))
    if user.disabledon is None:  # or somebody else was first, and it is done
        done = await parts(request).services.accounts.disable(actor(request, Via.PAGE), user.name)
        user = done[0] if not isinstance(done, Problem) else _done(done)
    try:
        ices = await _tagged(request, user)
    except StoreUnavailable as error:
        done_so_far = f"{user.name} is disabled, but their ICEs cannot be shown"
        raise _half_done(request, error, done_so_far) from None
    context = {
        "user": user,
        "ices": ices,
        "registered": [item.ice for item in ices if item.ice.status is Status.REGISTERED],
        "waiting": any(item.ice.status is Status.PROVISIONED for item in ices),
        "words": WORDS,
    }
    return render(request, "user_disabled.html", context, tell={CHANGED: {}})


_ACTS: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "role": set_role,
    "password": set_password,
    "logins": end_logins,
    "disable": disable,
}


async def _user(request: web.Request, name: str) -> User:
    user = await parts(request).services.accounts.user(name)
    if user is None:
        raise RequestRefused(problem("not-found", f"There is no user {quoted(name)}."))
    return user


async def _tagged(request: web.Request, user: User) -> list[Listed]:
    where = IceFilter(provisionedto=fold_user(user.name))
    found, _ = await parts(request).ices.sorted(where, Order(), MAX_BULK, 0)
    return found


def _role(fields: dict[str, str]) -> Role | Problem:
    try:
        return Role(fields.get("role", ""))
    except ValueError:
        return invalid("role", f"choose {', '.join(Role)}")


def _done(user: User | Problem) -> User:
    if isinstance(user, Problem):
        raise RequestRefused(user)
    return user


def _half_done(request: web.Request, error: StoreUnavailable, what: str) -> RequestRefused:
    refused = store_problem(request, error)
    return RequestRefused(
        replace(refused, detail=f"{what}: the store failed meanwhile. Do it once more.")
    )


def _ended(count: int) -> str:
    return f"{count} login{'s' * (count != 1)} ended."


def _told(request: web.Request, heading: str, said: list[str]) -> web.StreamResponse:
    context: dict[str, Any] = {"heading": heading, "said": said}
    return render(request, "told.html", context, tell={CHANGED: {}})
