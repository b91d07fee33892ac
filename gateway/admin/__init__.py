"""The admin's HTTP applications: `api/` for scripts and `pages/` for people, on the same services.

`auth` authenticates callers, `access` decides what they may use and see, `quota` bounds how much each may have open at
once, `event_streams` sends live events, and `openapi` describes the API. `templates/` and `static/` belong to `pages/`.
No rule of the domain lives here.
"""

from __future__ import annotations

import functools

from aiohttp import web

from gateway.admin import openapi
from gateway.admin.access import check_declared, route
from gateway.admin.api import (
    api_tokens,
    audit,
    bulk,
    enrolments,
    events,
    ices,
    nodes,
    operations,
    pools,
    schedules,
    users,
    webhooks,
)
from gateway.admin.auth import require_caller
from gateway.admin.context import CONTEXT, AdminContext
from gateway.admin.pages import pages_app
from gateway.core.roles import Need

__all__ = ["AdminContext", "api_app", "pages_app"]


def api_app(context: AdminContext) -> web.Application:
    """The JSON API; mount it at `/admin/api/v1`, before the pages."""
    app = web.Application(middlewares=[require_caller])
    app[CONTEXT] = context
    app.router.add_routes(_routes())
    check_declared(app)
    return app


@functools.cache
def _routes() -> tuple[web.RouteDef, ...]:
    """The routes, which are defined once for all applications of this process."""
    nouns = (
        *(bulk, ices, operations, pools, schedules, webhooks, events),
        *(users, api_tokens, enrolments, audit, nodes),
    )
    return (
        *(one for noun in nouns for one in noun.routes()),
        route("GET", "/openapi.json", openapi.handle, need=Need.NOTHING),
    )
