"""The page of the audit log, newest first, filtered by ICE, actor, action and time.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.audit import send_export
from gateway.admin.api.requests import MAX_NUMBER, Number, Query, Text
from gateway.admin.context import admin_context
from gateway.admin.pages.base import PAGE, render, render_table
from gateway.admin.pages.event_text import actor_text, detail_parts
from gateway.core.audit_event import AuditAction
from gateway.core.ice import Action
from gateway.core.problems import invalid
from gateway.core.roles import Need
from gateway.services.audit_export import FORMATS
from gateway.store.events import EventFilter
from gateway.web.responses import RequestRefused

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ACTIONS: Final = (*Action, *AuditAction)
"""The actions that the filter offers; the address may name others."""


class AuditQuery(Query):
    """The query of the page's address: the filter, and the event before which the page starts."""

    ice_name: Text | None = None
    actor: Text | None = None
    action: Text | None = None
    since: Text | None = None
    until: Text | None = None
    before: Number | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/audit`."""
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
    """The page, or only its table if htmx asks for that."""
    query = AuditQuery.of(request)
    admin = admin_context(request)
    where = await _filter(request, query)
    before = MAX_NUMBER if query.before is None else query.before
    found = await admin.events.before(before, PAGE + 1, where)
    context = {
        "title": "Audit log",
        "query": query,
        "entries": found[:PAGE],
        "more": len(found) > PAGE,
        "actions": ACTIONS,
        "detail_parts": detail_parts,
        "actor_text": actor_text,
        "announced": request.headers.get("HX-Trigger") == "filter",
    }
    return render_table(request, "audit", context)


async def verdict(request: web.Request) -> web.StreamResponse:
    """Whether the chain verifies; a separate fragment, so that the page does not wait for it."""
    found, at = await admin_context(request).services.audit.shared_verdict()
    return render(request, "audit_verdict.html", {"verdict": found, "at": at})


async def download(request: web.Request) -> web.StreamResponse:
    """All events that match the filter, as a file."""
    where = await _filter(request, AuditQuery.of(request))
    return await send_export(request, where, request.match_info["format"])


async def _filter(request: web.Request, query: AuditQuery) -> EventFilter:
    return EventFilter(
        query.ice_name and query.ice_name.strip(),
        query.actor and await _actor(request, query.actor.strip()),
        query.action,
        _time("since", query.since),
        _time("until", query.until),
    )


async def _actor(request: web.Request, name: str) -> str:
    """The name as the log spells it; people may type it in another case."""
    user = await admin_context(request).services.accounts.user(name)
    if user is not None:
        return user.name
    listed = await admin_context(request).ices.find(name)
    return name if listed is None else listed.ice.ice_name


def _time(field: str, text: str | None) -> datetime | None:
    """A time from the address, in UTC if it has no zone. Raises `RequestRefused`."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(moment.astimezone(UTC), _EPOCH)
    except (ValueError, OverflowError):
        raise RequestRefused(invalid(field, "needs a time such as 2026-11-22T09:30Z")) from None
