"""The audit log: newest first, found by ICE, actor, action and time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, Text
from gateway.admin.pages.base import PAGE, parts, render, render_table
from gateway.core.codes import AuditAction
from gateway.core.ice import Action
from gateway.core.problems import invalid
from gateway.core.roles import Need
from gateway.services.audit_export import FORMATS, export, media_type
from gateway.store.engine import StoreUnavailable
from gateway.store.events import EventFilter
from gateway.web.responses import RequestRefused

_LAST: Final = 2**63 - 1
_PATIENCE: Final = 30.0
"""Seconds for a reader of a file to take the next part."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ACTIONS: Final = (*Action, *AuditAction)
"""What is offered to filter by; the address may name others."""

Seq = Annotated[int, msgspec.Meta(ge=0, le=_LAST)]


class AuditQuery(Query):
    """What the address says: the filter, and the event before which the page begins."""

    ice_name: Text | None = None
    actor: Text | None = None
    action: Text | None = None
    since: Text | None = None
    until: Text | None = None
    before: Seq | None = None

    def address(self, **changes: Any) -> str:
        """The query of another page: this one with changes."""
        wanted = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        return urlencode({name: value for name, value in wanted.items() if value is not None})


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    return [
        route("GET", "/audit", page, need=Need.READ_EVENTS),
        route("GET", "/audit/verdict", verdict, need=Need.READ_EVENTS),
        route(
            "GET",
            f"/audit/export.{{format:{'|'.join(FORMATS)}}}",
            download,
            need=Need.READ_EVENTS,
        ),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The whole page, or the table alone where htmx asks for it."""
    query = AuditQuery.of(request)
    here = parts(request)
    where = await _filter(request, query)
    before = _LAST if query.before is None else query.before
    found = await here.events.before(before, PAGE + 1, where)
    context = {
        "title": "Audit log",
        "query": query,
        "entries": found[:PAGE],
        "more": len(found) > PAGE,
        "actions": ACTIONS,
    }
    return render_table(request, "audit", context)


async def verdict(request: web.Request) -> web.StreamResponse:
    """Whether the chain verifies: asked for by the page, which does not wait for it."""
    found, at = await parts(request).services.audit.cached_verdict()
    return render(request, "audit_verdict.html", {"verdict": found, "at": at})


async def download(request: web.Request) -> web.StreamResponse:
    """All events of the filter, as a file."""
    where = await _filter(request, AuditQuery.of(request))
    name = request.match_info["format"]
    day = parts(request).clock().strftime("%Y-%m-%d")
    response = web.StreamResponse(
        headers={
            "Content-Type": media_type(name),
            "Content-Disposition": f'attachment; filename="audit-log-{day}.{name}"',
        }
    )
    await response.prepare(request)
    try:
        async for part in export(parts(request).events, where, name):
            async with asyncio.timeout(_PATIENCE):
                await response.write(part)
        await response.write_eof()
    except (StoreUnavailable, TimeoutError):
        # The status is out: only a connection that breaks tells that the file is not whole.
        if request.transport is not None:
            request.transport.abort()
    return response


async def _filter(request: web.Request, query: AuditQuery) -> EventFilter:
    return EventFilter(
        query.ice_name and query.ice_name.strip(),
        query.actor and await _actor(request, query.actor.strip()),
        query.action,
        _time("since", query.since),
        _time("until", query.until),
    )


async def _actor(request: web.Request, name: str) -> str:
    """The name as the log has it: people do not type capitals as they were given."""
    user = await parts(request).services.accounts.user(name)
    if user is not None:
        return user.name
    listed = await parts(request).ices.find(name)
    return name if listed is None else listed.ice.ice_name


def _time(field: str, text: str | None) -> datetime | None:
    """A time of the address; without a zone it is UTC. Raises `RequestRefused`."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(moment.astimezone(UTC), _EPOCH)
    except (ValueError, OverflowError):
        raise RequestRefused(invalid(field, "needs a time such as 2026-11-22T09:30Z")) from None
