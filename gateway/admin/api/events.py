"""`/events`: the audit log, page by page and live."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from gateway.admin.access import route
from gateway.admin.api.requests import DEFAULT_LIMIT, Limit, Number, Query, Text, split_page
from gateway.admin.auth import authenticate
from gateway.admin.context import CALLER, admin_context
from gateway.admin.event_streams import EventStream, send_document
from gateway.core.audit_event import Position
from gateway.core.problems import invalid, problem
from gateway.core.roles import Need
from gateway.node.presence import News
from gateway.runtime.eventloop import wait_at_most
from gateway.services import schemas
from gateway.store.events import EventFilter
from gateway.store.sessions import ConnectionEvent
from gateway.web.connection import call_when_lost
from gateway.web.responses import RequestRefused, json_response

_BATCH: Final = 200


class EventQuery(Query):
    """Filters of GET /events."""

    ice_name: Text | None = None
    actor: Text | None = None
    action: Text | None = None
    after: Number = 0
    limit: Limit = DEFAULT_LIMIT


def routes() -> list[web.RouteDef]:
    """The routes of `/events`."""
    return [
        route("GET", "/events", listing, need=Need.READ_EVENTS, reads=_query),
        route(
            "GET",
            "/events/stream",
            stream,
            need=Need.READ_EVENTS,
            reads=_last_event_id,
            allow_head=False,
        ),
    ]


async def _query(request: web.Request) -> tuple[EventQuery]:
    return (EventQuery.of(request),)


async def listing(request: web.Request, query: EventQuery) -> web.Response:
    """List audit events."""
    log = admin_context(request).events
    found = await log.after(
        query.after,
        query.limit + 1,
        EventFilter(query.ice_name, query.actor, query.action),
    )
    if not found and query.after > (last := await log.last()):
        raise RequestRefused(problem("reset", f"The audit log ends at event {last}.", seq=last))
    page, end = split_page(found, query.limit)
    items = [schemas.event_document(entry) for entry in page]
    return json_response(schemas.EventPage(items, None if end is None else end.seq))


async def stream(request: web.Request, position: Position | None) -> web.StreamResponse:
    """Send audit events, presence and refused attempts as they happen."""
    context = admin_context(request)
    start = position or await context.events.end()
    with context.streams.subscribe() as reader:  # before the answer starts
        call_when_lost(request, reader.wake.set)
        return await context.streams.serve(
            request,
            request[CALLER].user,
            lambda response: _send_all(request, response, reader, start),
        )


async def _send_all(
    request: web.Request, response: EventSourceResponse, reader: EventStream, position: Position
) -> None:
    context = admin_context(request)
    every = context.streams.limits.authenticate_every
    loop = asyncio.get_running_loop()
    authenticated = loop.time()
    # Check `transport`: a stream without news writes nothing, so only `call_when_lost` tells of a disconnect.
    while not context.streams.closed and request.transport is not None:
        reader.wake.clear()
        # Before the log is read: an event that takes the caller's right away is then among the entries.
        news = [reader.news.popleft() for _ in range(len(reader.news))]
        # Read the last sent event again: if it differs, the log was restored from a backup.
        found = await context.events.after(position.seq - 1, _BATCH + 1)
        known = position.is_in(found)
        entries = [entry for entry in found if known and entry.seq > position.seq]
        # An event without an ICE may have changed the caller's user or API token.
        may_have_changed = not known or any(entry.event.ice_name is None for entry in entries)
        if may_have_changed or loop.time() - authenticated >= every:
            authenticated = loop.time()
            caller = await authenticate(request, used=False)
            if caller is None or not caller.grants.reads_events:
                return
        if not known:
            position = await context.events.end()
            reset = schemas.ResetDocument(position.seq)
            await send_document(response, reset, event="reset", id=str(position))
        for entry in entries:
            position = Position.after(entry)
            document = schemas.event_document(entry)
            await send_document(response, document, id=str(position))
        for item in news:
            await _send_news(response, item)
        if len(entries) < _BATCH:
            await wait_at_most(reader.wake, every)


async def _send_news(response: EventSourceResponse, news: News) -> None:
    if isinstance(news, ConnectionEvent):
        refused = schemas.described(schemas.RefusedDocument, news)
        await send_document(response, refused, event="refused")
    else:
        connection = schemas.connection_document(news.connection)
        presence = schemas.PresenceDocument(news.ice_name, connection)
        await send_document(response, presence, event="presence")


async def _last_event_id(request: web.Request) -> tuple[Position | None]:
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return (None,)
    position = Position.parse(text)
    if position is None:
        raise RequestRefused(invalid("Last-Event-ID", "must be the id, or the number, of an event"))
    return (position,)
