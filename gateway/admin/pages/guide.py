"""The registration guide that the token's panel refers to."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.pages.base import parts, render
from gateway.core.roles import Need


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    return [route("GET", "/guide", page, need=Need.CALLER)]


async def page(request: web.Request) -> web.StreamResponse:
    """How an ICE is registered, for whoever sits in front of it."""
    urls = parts(request).public_urls or (f"{request.scheme}://{request.host}",)
    return render(request, "guide.html", {"title": "Guide", "gateway_url": urls[0]})
