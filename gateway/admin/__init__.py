"""The admin HTTP sub-apps: `api/` for scripts, `pages/` for people, one use case behind both.

`auth` says who calls, `stream` carries live events, `openapi` describes the API.
"""

from __future__ import annotations

from aiohttp import web

from gateway.admin import openapi
from gateway.admin.access import check_declared, route
from gateway.admin.api import events, ices, operations
from gateway.admin.auth import authenticated
from gateway.admin.context import PARTS, AdminContext
from gateway.admin.pages import pages_app
from gateway.core.roles import Need

__all__ = ["AdminContext", "api_app", "pages_app"]


def api_app(parts: AdminContext) -> web.Application:
    """The JSON API; mount it at `/admin/api/v1`, before the pages."""
    app = web.Application(middlewares=[authenticated])
    app[PARTS] = parts
    app.router.add_routes(ices.routes())
    app.router.add_routes(operations.routes())
    app.router.add_routes(events.routes())
    app.router.add_routes([route("GET", "/openapi.json", openapi.handle, need=Need.NOTHING)])
    check_declared(app)
    return app
