"""The registration guide, to which the dialog with a new token links.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.pages.base import gateway_url, render
from gateway.core.roles import Need
from gateway.core.start_commands import run_commands


def routes() -> list[web.RouteDef]:
    """The route of `/guide`."""
    return [route("GET", "/guide", page, need=Need.CALLER)]


async def page(request: web.Request) -> web.StreamResponse:
    """How to register an ICE, for the person at its machine."""
    url = gateway_url(request)
    context = {
        "title": "Guide",
        "gateway_url": url,
        "commands": run_commands(url, "NAME", with_token=True),
    }
    return render(request, "guide.html", context)
