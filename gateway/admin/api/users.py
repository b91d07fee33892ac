"""`/users` and `/me`: the users, the caller, and their passwords.

Tested in tests/gateway/admin/api/test_users.py.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    LongText,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor, login_cookie
from gateway.admin.context import CALLER, admin_context
from gateway.core.accounts import MAX_USER_NAME, Origin, fold_user
from gateway.core.login_rules import MAX_SUBJECT
from gateway.core.problems import invalid, problem, quoted
from gateway.core.roles import Need, Role
from gateway.core.secret import Secret
from gateway.services import account_schemas
from gateway.services.accounts import check_name
from gateway.services.leavers import LeaverIces
from gateway.services.passwords import MAX_BYTES, MIN_LENGTH, check_password
from gateway.services.user_changes import Change, check_origin
from gateway.store.accounts import ListedUser
from gateway.web.responses import RequestRefused, json_response, no_content

NewPassword = Annotated[
    str, msgspec.Meta(extra_json_schema={"minLength": MIN_LENGTH, "maxLength": MAX_BYTES})
]
"""The description only; `check_password` names the rule in words."""
NewName = Annotated[
    str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_USER_NAME})
]

Subject = Annotated[
    str,
    msgspec.Meta(
        extra_json_schema={"minLength": 1, "maxLength": MAX_SUBJECT, "pattern": "^[ -~]*$"}
    ),
]


class NewUser(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of POST /users; without a password the user cannot log in, and can own ICEs."""

    name: NewName
    role: Role
    password: NewPassword | None = None


class UserChanges(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of PATCH /users/{name}: all of it is done, or nothing.

    `ices` says what becomes of the ICEs of a user who is disabled. `subject` is the issuer's `sub` of a user whose
    `origin` becomes `sso`.
    """

    role: Role | msgspec.UnsetType = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET
    password: NewPassword | msgspec.UnsetType = msgspec.UNSET
    ices: LeaverIces | msgspec.UnsetType = msgspec.UNSET
    origin: Origin | msgspec.UnsetType = msgspec.UNSET
    subject: Subject | msgspec.UnsetType = msgspec.UNSET


class PasswordChange(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /me/password."""

    old: str
    new: NewPassword


class UserQuery(Query):
    """Filter and page of GET /users: `q` is a part of a name."""

    q: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: LongText | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/users` and `/me`."""
    one = "/users/{name}"
    return [
        route("GET", "/users", listing, need=Need.SEE_ALL, reads=_query),
        route("POST", "/users", add, need=Need.CHANGE_ACCOUNTS, reads=_new),
        route("GET", one, show, need=Need.USER, finds=_find),
        route("PATCH", one, change, need=Need.CHANGE_ACCOUNTS, reads=_changes, finds=_find),
        route("GET", "/me", me, need=Need.USER),
        route(
            "POST",
            "/me/password",
            set_own_password,
            need=Need.CHANGE_OWN_ACCOUNT,
            reads=_passwords,
        ),
    ]


async def _query(request: web.Request) -> tuple[UserQuery, str]:
    query = UserQuery.of(request)
    return query, decode_cursor(query.cursor) or ""


async def _new(request: web.Request) -> tuple[NewUser, Secret | None]:
    new = await body_as(request, NewUser)
    password = None if new.password is None else Secret(new.password)
    unwrap(check_name(new.name) or (password and check_password(password)))
    return new, password


async def _changes(request: web.Request) -> tuple[Change]:
    given = msgspec.structs.asdict(await body_as(request, UserChanges))
    wanted = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if not wanted:
        raise RequestRefused(invalid("body", "needs a member to change"))
    if "password" in wanted:
        wanted["password"] = Secret(wanted["password"])
        unwrap(check_password(wanted["password"]))
    unwrap(check_origin(wanted.get("origin"), wanted.get("subject")))
    if "ices" in wanted and wanted.get("disabled") is not True:
        raise RequestRefused(invalid("ices", "only together with `disabled`: true"))
    return (Change(**wanted),)


async def _passwords(request: web.Request) -> tuple[Secret, Secret]:
    given = await body_as(request, PasswordChange)
    new = Secret(given.new)
    unwrap(check_password(new, "new"))
    return Secret(given.old), new


async def _find(request: web.Request) -> tuple[()]:
    """Check that the caller may see the user of the path, and that there is one. Raises `RequestRefused`."""
    name, caller = request.match_info["name"], request[CALLER]
    if not caller.is_confined:  # otherwise nothing is shown, whatever the name
        own = fold_user(name) == fold_user(caller.user)
        accounts = admin_context(request).services.accounts
        if not (own or (caller.grants.sees_all and await accounts.user(name))):
            raise RequestRefused(problem("not-found", f"There is no user {quoted(name)}."))
    return ()


async def listing(request: web.Request, query: UserQuery, after: str) -> web.Response:
    """List users by name."""
    services = admin_context(request).services
    found = await services.accounts.after(query.q or "", after, query.limit + 1)
    page, last = split_page(found, query.limit)
    logins = await services.logins.counts()
    items = [account_schemas.user_document(item, logins.get(item.user.name, 0)) for item in page]
    cursor = None if last is None else encode_cursor(fold_user(last.user.name))
    return json_response(account_schemas.UserPage(items, cursor))


async def add(request: web.Request, new: NewUser, password: Secret | None) -> web.Response:
    """Add a user."""
    accounts = admin_context(request).services.accounts
    user = unwrap(await accounts.add_user(actor(request), new.name, new.role, password))
    location = f"{request.path}/{quote(user.name, safe='')}"
    document = account_schemas.user_document(*await _listed(request, user.name))
    return json_response(document, status=201, headers={"Location": location})


async def show(request: web.Request) -> web.Response:
    """Show a user."""
    listed, logins = await _listed(request, request.match_info["name"])
    return json_response(account_schemas.user_document(listed, logins))


async def change(request: web.Request, wanted: Change) -> web.Response:
    """Change a user's role, password or origin, disable or enable them; answers with the user, and what they left."""
    name = request.match_info["name"]
    accounts = admin_context(request).services.accounts
    done = unwrap(await accounts.change(actor(request), name, wanted, keep=login_cookie(request)))
    if wanted.ices is not None:
        return json_response(account_schemas.leaver_document(done))
    return await show(request)


async def me(request: web.Request) -> web.Response:
    """Show the caller, and the API token of the request."""
    caller = request[CALLER]
    listed, logins = await _listed(request, caller.user)
    accounts = admin_context(request).services.accounts
    token = None if caller.token is None else await accounts.token(caller.token)
    shown = (
        None if token is None else (await account_schemas.api_token_documents(accounts, [token]))[0]
    )
    return json_response(account_schemas.me_document(listed, logins, shown))


async def set_own_password(request: web.Request, old: Secret, new: Secret) -> web.Response:
    """Change the caller's password; their other logins end."""
    services = admin_context(request).services
    keep = login_cookie(request)
    unwrap(
        await services.logins.change_password(
            services.accounts, actor(request), old, new, keep=keep
        )
    )
    return no_content()


async def _listed(request: web.Request, name: str) -> tuple[ListedUser, int]:
    """The user of this name and the number of their logins."""
    services = admin_context(request).services
    listed = unwrap(await services.accounts.listed(name) or problem("not-found"))
    return listed, (await services.logins.counts()).get(listed.user.name, 0)
