"""The admin HTTP sub-app: `api/` for scripts, one use case behind each call.

`auth` says who calls, `stream` carries live events, `openapi` describes it all.
"""

from __future__ import annotations

from aiohttp import web

from gateway.admin import openapi
from gateway.admin.api import events, ices
from gateway.admin.auth import PUBLIC, authenticated
from gateway.admin.parts import PARTS, AdminParts

__all__ = ["AdminParts", "admin_app"]

API = "/api/v1"


def admin_app(parts: AdminParts) -> web.Application:
    """The sub-app; mount it at `/admin`."""
    app = web.Application(middlewares=[authenticated])
    app[PARTS] = parts
    app.router.add_routes(ices.routes(API))
    app.router.add_routes(events.routes(API))
    app.router.add_get(f"{API}/openapi.json", openapi.handle, name=PUBLIC)
    return app
