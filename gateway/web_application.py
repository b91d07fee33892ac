"""The paths that the gateway answers, and who answers each."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from client.protocol import PATH
from gateway.admin import AdminContext, api_app, pages_app
from gateway.web.ice_endpoint import IceEndpoint
from gateway.web.probes import Probes
from gateway.web.responses import MAX_BODY


def web_application(
    prefixes: Iterable[str], endpoint: IceEndpoint, admin: AdminContext, health: Probes
) -> web.Application:
    """The application; `prefixes` are the paths under which everything is answered."""
    app = web.Application(client_max_size=MAX_BODY)
    for prefix in prefixes:
        app.router.add_get(prefix + PATH, endpoint.handle, allow_head=False)
        app.router.add_get(f"{prefix}/", _to_the_page)
        app.router.add_get(f"{prefix}/healthz", health.alive)
        app.router.add_get(f"{prefix}/readyz", health.ready)
        app.add_subapp(f"{prefix}/admin/api/v1", api_app(admin))
        app.add_subapp(f"{prefix}/admin", pages_app(admin))
    return app


async def _to_the_page(_: web.Request) -> web.StreamResponse:
    """A person who types the bare address wants the page; relative, behind whatever proxy."""
    raise web.HTTPFound("admin/")
