"""The page of API tokens: create, list and revoke the credentials of scripts.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, Text, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.admin.pages.base import PAGE, Page, form, notice, render, render_table
from gateway.admin.pages.ices import form_error
from gateway.core.accounts import ApiToken, TokenState
from gateway.core.audit_event import Via
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.store.accounts import TokenFilter

CHANGED: Final = "tokens-changed"
"""The event on which the page reloads the table."""
_DAY: Final = 86_400.0
LIFETIMES: Final = {"30d": 30 * _DAY, "90d": 90 * _DAY, "365d": 365 * _DAY, "never": 0.0}
DEFAULT_LIFETIME: Final = "90d"
_FIELD_IDS: Final = {
    "name": "token_label",
    "user": "token_owner",
    "ice": "token_ice",
    "pool": "token_pool",
    "accounts": "token_accounts",
}
"""The element of an invalid field, by the problem's field or code."""


class TokensQuery(Query):
    """The query of the page's address."""

    q: Text | None = None
    page: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A token and its present state."""

    token: ApiToken
    state: TokenState


def routes() -> list[web.RouteDef]:
    """The routes of `/api-tokens`."""
    return [
        route("GET", "/api-tokens", page, need=Need.SEE_ALL),
        route("POST", "/api-tokens", create, need=Need.ACT),
        route("GET", "/api-tokens/{token_id}/revoke", confirm, need=Need.ACT),
        route("POST", "/api-tokens/{token_id}/revoke", revoke, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or only its table if htmx asks for that."""
    query = TokensQuery.of(request)
    admin = admin_context(request)
    shown = Page.of(query.page)
    where = TokenFilter(query.q or "")
    found, total = await admin.services.accounts.tokens_page(where, PAGE, shown.offset)
    context = {
        "title": "API tokens",
        "query": query,
        "rows": await token_rows(request, found),
        **shown.context(total),
        "lifetimes": list(LIFETIMES),
        "default_lifetime": DEFAULT_LIFETIME,
    }
    return render_table(request, "api_tokens", context)


async def token_rows(request: web.Request, found: Sequence[ApiToken]) -> list[Row]:
    """Tokens with their present states."""
    states = await admin_context(request).services.accounts.token_states(found)
    return list(map(Row, found, states))


async def create(request: web.Request) -> web.StreamResponse:
    """Create a token and show it once; a refusal appears in the form."""
    fields = await form(request)
    lifetime = LIFETIMES.get(fields.get("expires_in", ""))
    if lifetime is None:
        return form_error(
            request, invalid("expires_in", f"choose {', '.join(LIFETIMES)}"), _FIELD_IDS
        )
    made = await admin_context(request).services.accounts.create_token(
        actor(request, Via.PAGE),
        fields.get("owner", "").strip(),
        fields.get("label", "").strip(),
        lifetime,
        fields.get("ice_name", "").strip() or None,
        pool=fields.get("pool", "").strip() or None,
        may_change_accounts=fields.get("accounts") == "true",
    )
    if isinstance(made, Problem):
        return form_error(request, made, _FIELD_IDS)
    context = {
        "issued": made.token,
        "token": made.secret.reveal(),
        "filename": f"api-token-{made.token.id}.txt",
    }
    return render(
        request,
        "api_token_issued.html",
        context,
        status=201,
        trigger={CHANGED: {}, "form-done": {}},
    )


async def confirm(request: web.Request) -> web.StreamResponse:
    """Ask before revoking a token."""
    return render(request, "api_token_revoke.html", {"token": await _token(request)})


async def revoke(request: web.Request) -> web.StreamResponse:
    """Revoke a token for good."""
    token = await _token(request)
    accounts = admin_context(request).services.accounts
    before = unwrap(await accounts.revoke_token(actor(request, Via.PAGE), token.id))
    sentence = f"{token.label} of {token.user}: the next request with it is refused."
    if before.revokedon is not None:
        sentence = f"{token.label} of {token.user} was revoked before; nothing was changed."
    return notice(request, "API token revoked", sentence, changed=CHANGED)


async def _token(request: web.Request) -> ApiToken:
    token = await admin_context(request).services.accounts.token(request.match_info["token_id"])
    return unwrap(token or problem("not-found", "There is no such API token."))
