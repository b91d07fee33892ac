"""The registration guide, to which the dialog with a new token links.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.context import admin_context
from gateway.admin.pages.base import render
from gateway.core.roles import Need


def routes() -> list[web.RouteDef]:
    """The route of `/guide`."""
    return [route("GET", "/guide", page, need=Need.CALLER)]


async def page(request: web.Request) -> web.StreamResponse:
    """How to register an ICE, for the person at its machine."""
    urls = admin_context(request).public_urls or (f"{request.scheme}://{request.host}",)
    return render(request, "guide.html", {"title": "Guide", "gateway_url": urls[0]})
