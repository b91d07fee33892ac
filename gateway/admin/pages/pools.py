"""The page of pools, and the page of one: its ICEs, its operations and its API tokens.

Tested in tests/gateway/admin/test_pool_pages.py and tests/browser/test_pools.py.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, Text, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.admin.pages.api_tokens import token_rows
from gateway.admin.pages.base import (
    PAGE,
    Page,
    form,
    is_fragment,
    pages_of,
    render,
    render_table,
    toast,
)
from gateway.admin.pages.ices import LABELS, form_error
from gateway.admin.pages.operations import operations_of_pool
from gateway.core.audit_event import Via
from gateway.core.ice import IceType
from gateway.core.labels import labels_of, labels_text
from gateway.core.pool import Pool
from gateway.core.problems import Problem, invalid
from gateway.core.roles import Need
from gateway.services.pools import WantedPool, no_pool
from gateway.store.accounts import TokenFilter

CHANGED: Final = "pools-changed"
"""The event on which the page reloads the table."""
_FIELD_IDS: Final = {
    "name": "pool_name",
    "ice_type": "pool_type",
    "labels": "pool_labels",
    "description": "pool_description",
}
"""The element of an invalid field, by the problem's field."""


class PoolsQuery(Query):
    """The query of the page's address."""

    q: Text | None = None
    page: int = 1


def routes() -> list[web.RouteDef]:
    """The routes of `/pools`."""
    one = "/pools/{name}"
    return [
        route("GET", "/pools", page, need=Need.SEE_ALL),
        # Not below /pools, where a path of one segment is a pool's page.
        route("GET", "/new-pool", ask, need=Need.ACT),
        route("POST", "/pools", create, need=Need.ACT),
        route("GET", one, show, need=Need.SEE_ALL),
        route("GET", f"{one}/change", ask_change, need=Need.ACT),
        route("POST", f"{one}/change", change, need=Need.ACT),
        route("GET", f"{one}/delete", confirm, need=Need.ACT),
        route("POST", f"{one}/delete", delete, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The pools by name, or only their table if htmx asks for that."""
    query = PoolsQuery.of(request)
    table = admin_context(request).pools
    total = await table.count(query.q or "")
    shown = Page.of(min(query.page, pages_of(total)))
    found = await table.after(query.q or "", "", PAGE, shown.offset)
    waiting = await table.waiting(found)
    counts = await table.counts(found)
    content = {
        "title": "Pools",
        "query": query,
        "rows": [
            (pool, ices, waiting.get(pool.name, 0))
            for pool, ices in zip(found, counts, strict=True)
        ],
        "labels": LABELS,
    }
    return render_table(request, "pools", content | shown.context(total))


async def show(request: web.Request) -> web.StreamResponse:
    """The page of one pool, or only what may change of it."""
    pool = await _pool(request)
    context = admin_context(request)
    [ices] = await context.pools.counts([pool])
    tokens, total = await context.services.accounts.tokens_page(TokenFilter(pool=pool.name), PAGE)
    content = {
        "title": pool.name,
        "section": "Pools",
        "pool": pool,
        "ices": ices,
        "waiting": (await context.pools.waiting([pool])).get(pool.name, 0),
        "rows": await token_rows(request, tokens),
        "total": total,
        "labels": LABELS,
        **await operations_of_pool(request, pool),
    }
    return render(request, "pool_live.html" if is_fragment(request) else "pool.html", content)


async def _pool(request: web.Request) -> Pool:
    name = request.match_info["name"]
    return unwrap(await admin_context(request).pools.find(name) or no_pool(name))


def _form(request: web.Request, pool: Pool | None) -> web.StreamResponse:
    pairs = () if pool is None else (f"{key}={value}" for key, value in pool.labels.items())
    content = {"pool": pool, "labels_text": labels_text(pairs), "labels": LABELS}
    return render(request, "pool_form.html", content)


async def ask(request: web.Request) -> web.StreamResponse:
    """The form of a new pool."""
    return _form(request, None)


async def ask_change(request: web.Request) -> web.StreamResponse:
    """The form of a pool as it is."""
    return _form(request, await _pool(request))


async def create(request: web.Request) -> web.StreamResponse:
    """Make a pool; a refusal appears in the form."""
    fields = await form(request)
    return await _set(request, fields.get("name", "").strip(), fields, only_new=True)


async def change(request: web.Request) -> web.StreamResponse:
    """Change a pool; a refusal appears in the form."""
    fields = await form(request)
    pool = await _pool(request)
    return await _set(request, pool.name, fields)


async def _set(
    request: web.Request, name: str, fields: dict[str, Any], *, only_new: bool = False
) -> web.StreamResponse:
    wanted = _wanted(name, fields)
    if isinstance(wanted, Problem):
        return form_error(request, wanted, _FIELD_IDS, "#dialog-fault")
    context = admin_context(request)
    done = await context.services.pools.set(actor(request, Via.PAGE), wanted, only_new=only_new)
    if isinstance(done, Problem):
        return form_error(request, done, _FIELD_IDS, "#dialog-fault")
    [ices] = await context.pools.counts([done.pool])
    became = "made" if done.created else "changed"
    belong = f"{ices.total:,} ICE{' belongs' if ices.total == 1 else 's belong'} to it."
    return toast(request, f"The pool {done.pool.name} is {became}. {belong}", changed=CHANGED)


def _wanted(name: str, fields: dict[str, str]) -> WantedPool | Problem:
    """What the form asks for; the service checks the rest."""
    labels = labels_of(fields.get("labels", ""))
    if isinstance(labels, str):
        return invalid("labels", labels)
    kind = fields.get("ice_type", "")
    if kind not in ("", *IceType):
        return invalid("ice_type", "choose Normal, CI/CD or both")
    # A browser sends line breaks as CRLF.
    description = fields.get("description", "").replace("\r\n", "\n").strip()
    return WantedPool(name, labels, description, IceType(kind) if kind else None)


async def confirm(request: web.Request) -> web.StreamResponse:
    """Ask before deleting a pool."""
    pool = await _pool(request)
    context = admin_context(request)
    _, tokens = await context.services.accounts.tokens_page(TokenFilter(pool=pool.name), 1)
    waiting = (await context.pools.waiting([pool])).get(pool.name, 0)
    content = {"pool": pool, "tokens": tokens, "waiting": waiting}
    return render(request, "pool_delete.html", content)


async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a pool, and go to the others."""
    await form(request)
    service = admin_context(request).services.pools
    unwrap(await service.delete(actor(request, Via.PAGE), request.match_info["name"]))
    return web.Response(status=204, headers={"HX-Redirect": "./pools"})
