"""`/audit`: the head of the audit log, the proof that it was not altered, and its export.

Tested in tests/gateway/admin/api/test_audit.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query
from gateway.admin.auth import authenticate
from gateway.admin.context import CALLER, admin_context
from gateway.core.hash_chain import HEAD_PATTERN, Head
from gateway.core.problems import problem
from gateway.core.roles import Need
from gateway.services import schemas
from gateway.services.audit_export import export, media_type
from gateway.store.events import EventFilter
from gateway.web.responses import CutOff, RequestRefused, json_response, send_parts


class VerificationQuery(Query):
    """Query parameters of GET /audit/verification: `SEQ:DIGEST` of a head that was kept elsewhere."""

    head: Annotated[str, msgspec.Meta(pattern=f"^{HEAD_PATTERN}$")] | None = None


class ExportQuery(Query):
    """Query parameters of GET /audit/export."""

    format: Literal["jsonl", "csv"] = "jsonl"


def routes() -> list[web.RouteDef]:
    """The routes of `/audit`."""
    return [
        route("GET", "/audit/head", head, need=Need.READ_EVENTS),
        route("GET", "/audit/verification", verification, need=Need.READ_EVENTS, reads=_kept_head),
        route("GET", "/audit/export", download, need=Need.READ_EVENTS, reads=_format),
    ]


async def head(request: web.Request) -> web.Response:
    """Show number and digest of the newest event."""
    newest = await admin_context(request).services.audit.head()
    if newest is None:
        raise RequestRefused(problem("not-found", "There is no event yet."))
    return json_response(schemas.described(schemas.HeadDocument, newest))


async def _kept_head(request: web.Request) -> tuple[Head | None]:
    text = VerificationQuery.of(request).head
    return (None if text is None else Head.parse(text),)


async def verification(request: web.Request, kept: Head | None) -> web.Response:
    """Say whether the log is as it was written."""
    verdict, at = await admin_context(request).services.audit.shared_verdict(kept)
    return json_response(schemas.verdict_document(verdict, at))


async def _format(request: web.Request) -> tuple[str]:
    return (ExportQuery.of(request).format,)


async def download(request: web.Request, name: str) -> web.StreamResponse:
    """Send all events, oldest first, as a file."""
    return await send_export(request, EventFilter(), name)


async def send_export(request: web.Request, where: EventFilter, name: str) -> web.StreamResponse:
    """The events of the filter as a file in the format of this name; cut off if the client does not read or loses its right.

    Raises `RequestRefused` if too many run.
    """
    context = admin_context(request)
    day = context.clock().strftime("%Y-%m-%d")
    headers = {
        "Cache-Control": "no-store",
        "Content-Type": media_type(name),
        "Content-Disposition": f'attachment; filename="audit-log-{day}.{name}"',
    }
    with context.exports.use(request[CALLER].user):
        return await send_parts(request, headers, _while_allowed(request, where, name))


async def _while_allowed(
    request: web.Request, where: EventFilter, name: str
) -> AsyncIterator[bytes]:
    context = admin_context(request)
    every, loop = context.streams.limits.authenticate_every, asyncio.get_running_loop()
    authenticated = loop.time()
    async for part in export(context.events, where, name):
        if loop.time() - authenticated >= every:  # a slow client may take hours
            authenticated = loop.time()
            caller = await authenticate(request, used=False)
            if caller is None or not caller.grants.reads_events:
                raise CutOff
        yield part
