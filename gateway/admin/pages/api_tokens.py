"""API tokens: what scripts bring, shown once, revoked at any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query
from gateway.admin.auth import actor
from gateway.admin.pages.base import PAGE, Page, form, parts, render, render_table
from gateway.admin.pages.ices import form_fault
from gateway.core.accounts import ApiToken, TokenState
from gateway.core.audit_event import Via
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.web.responses import RequestRefused

CHANGED: Final = "tokens-changed"
"""Tells the page's script that the table is to be asked for again."""
_DAY: Final = 86_400.0
LIFETIMES: Final = {"30d": 30 * _DAY, "90d": 90 * _DAY, "365d": 365 * _DAY, "never": 0.0}
USUAL: Final = "90d"
_IDS: Final = {
    "name": "token_label",
    "not-found": "token_owner",  # the user, that is
    "forbidden": "token_owner",
    "not-registered": "token_ice",
}
"""Where on the page the faulty field is."""


class TokensQuery(Query):
    """What the address says of the table."""

    page: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A token, and how it stands now."""

    token: ApiToken
    state: TokenState


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    return [
        route("GET", "/api-tokens", page, need=Need.SEE_ALL),
        route("POST", "/api-tokens", create, need=Need.ACT),
        route("GET", "/api-tokens/{token_id}/revoke", confirm, need=Need.ACT),
        route("POST", "/api-tokens/{token_id}/revoke", revoke, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The whole page, or the table alone where htmx asks for it."""
    query = TokensQuery.of(request)
    here = parts(request)
    shown = Page.of(query.page)
    found, total = await here.services.accounts.tokens_page(PAGE, shown.offset)
    disabled = await here.services.accounts.disabled_among([token.user for token in found])
    now = here.clock()
    context = {
        "title": "API tokens",
        "rows": [
            Row(token, token.state(now, owner_disabled=token.user in disabled)) for token in found
        ],
        **shown.context(total),
        "lifetimes": list(LIFETIMES),
        "usual": USUAL,
    }
    return render_table(request, "api_tokens", context)


async def create(request: web.Request) -> web.StreamResponse:
    """Make a token and show it this once; a refusal comes back into the form."""
    fields = await form(request)
    lifetime = LIFETIMES.get(fields.get("expires_in", ""))
    if lifetime is None:
        return form_fault(request, invalid("expires_in", f"choose {', '.join(LIFETIMES)}"), _IDS)
    made = await parts(request).services.accounts.create_token(
        actor(request, Via.PAGE),
        fields.get("owner", "").strip(),
        fields.get("label", "").strip(),
        lifetime,
        fields.get("ice_name", "").strip() or None,
    )
    if isinstance(made, Problem):
        return form_fault(request, made, _IDS)
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
        tell={CHANGED: {}, "form-done": {}},
    )


async def confirm(request: web.Request) -> web.StreamResponse:
    """Say what revoking does, before it is done."""
    return render(request, "api_token_revoke.html", {"token": await _token(request)})


async def revoke(request: web.Request) -> web.StreamResponse:
    """Revoke a token; once revoked it stays so."""
    token = await _token(request)
    done = await parts(request).services.accounts.revoke_token(actor(request, Via.PAGE), token.id)
    if isinstance(done, Problem):
        raise RequestRefused(done)
    said = f"{token.label} of {token.user}: the next request that brings it is refused."
    if done.revokedon is not None:
        said = f"{token.label} of {token.user} was revoked before; nothing was changed."
    context = {"heading": "API token revoked", "said": [said]}
    return render(request, "told.html", context, tell={CHANGED: {}})


async def _token(request: web.Request) -> ApiToken:
    token = await parts(request).services.accounts.token(request.match_info["token_id"])
    if token is None:
        raise RequestRefused(problem("not-found", "There is no such API token."))
    return token
