"""`/api-tokens`: the credentials of scripts: list, create and revoke them.

Tested in tests/gateway/admin/api/test_users.py.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Moment,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    moment,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.accounts import ApiToken
from gateway.core.problems import invalid, problem
from gateway.core.roles import Need
from gateway.core.times import MAX_DURATION
from gateway.services import account_schemas
from gateway.services.accounts import DEFAULT_LIFETIME, check_token
from gateway.store.accounts import TokenFilter
from gateway.web.responses import RequestRefused, json_response, no_content


class NewApiToken(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of POST /api-tokens: it expires after 90 days, or at `expires`, or never if that is null.

    With `ice` or `pool` it may operate that ICE or pool and do nothing else, with `accounts` also change users and API tokens.
    """

    user: str
    name: str
    expires: Moment | msgspec.UnsetType | None = msgspec.UNSET
    ice: str | None = None
    pool: str | None = None
    accounts: bool = False


class ApiTokenQuery(Query):
    """Filter and page of GET /api-tokens: `q` is a part of a label, user, ICE, pool or id."""

    q: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/api-tokens`."""
    one = "/api-tokens/{id}"
    return [
        route("GET", "/api-tokens", listing, need=Need.USER, reads=_query),
        route("POST", "/api-tokens", create, need=Need.CHANGE_ACCOUNTS, reads=_new),
        route("GET", one, show, need=Need.USER, finds=_find),
        route("DELETE", one, revoke, need=Need.ACT, finds=_find),
    ]


async def _query(request: web.Request) -> tuple[ApiTokenQuery, str | None]:
    query = ApiTokenQuery.of(request)
    return query, decode_cursor(query.cursor)


async def _new(request: web.Request) -> tuple[NewApiToken, float | datetime]:
    new = await body_as(request, NewApiToken)
    unwrap(check_token(new.name, new.ice, new.pool, accounts=new.accounts))
    if new.expires is msgspec.UNSET:
        return new, DEFAULT_LIFETIME
    expires = moment("expires", new.expires)
    if expires is None:
        return new, 0.0
    if not 0 < (expires - admin_context(request).clock()).total_seconds() <= MAX_DURATION:
        raise RequestRefused(invalid("expires", "needs a time within the next 36500 days"))
    return new, expires


async def _find(request: web.Request) -> tuple[ApiToken | None]:
    """The API token of the path, if the caller may see it. Raises `RequestRefused`."""
    caller = request[CALLER]
    if caller.is_confined:  # nothing is shown, whatever the id
        return (None,)
    token = await admin_context(request).services.accounts.token(request.match_info["id"])
    if token is None or not (caller.grants.sees_all or token.user == caller.user):
        raise RequestRefused(problem("not-found", "There is no such API token."))
    return (token,)


async def listing(request: web.Request, query: ApiTokenQuery, place: str | None) -> web.Response:
    """List API tokens, newest first; a member's own ones."""
    caller = request[CALLER]
    where = TokenFilter(query.q or "", None if caller.grants.sees_all else caller.user)
    accounts = admin_context(request).services.accounts
    page, last = split_page(
        await accounts.tokens_before(where, query.limit + 1, place), query.limit
    )
    cursor = None if last is None else encode_cursor(last.place)
    items = await account_schemas.api_token_documents(accounts, page)
    return json_response(account_schemas.ApiTokenPage(items, cursor))


async def create(
    request: web.Request, new: NewApiToken, lifetime: float | datetime
) -> web.Response:
    """Create an API token."""
    made = unwrap(
        await admin_context(request).services.accounts.create_token(
            actor(request),
            new.user,
            new.name,
            lifetime,
            new.ice,
            pool=new.pool,
            may_change_accounts=new.accounts,
            by_token=request[CALLER].token,
        )
    )
    token = account_schemas.api_token_document(made.token, made.state)
    document = account_schemas.ApiTokenMade(token, made.secret.reveal())
    location = f"{request.path}/{made.token.id}"
    return json_response(document, status=201, headers={"Location": location})


async def show(request: web.Request, token: ApiToken) -> web.Response:
    """Show an API token."""
    accounts = admin_context(request).services.accounts
    [document] = await account_schemas.api_token_documents(accounts, [token])
    return json_response(document)


async def revoke(request: web.Request, token: ApiToken) -> web.Response:
    """Revoke an API token at once; one that was revoked before stays so."""
    unwrap(await admin_context(request).services.accounts.revoke_token(actor(request), token.id))
    return no_content()
