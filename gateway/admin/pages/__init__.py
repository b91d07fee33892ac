"""The admin's pages: HTML from Jinja templates, updated by htmx; a module for each noun.

A browser requests a whole page; htmx then requests fragments of it (HX-Request), which have the same
status as the API's answer.
"""

from __future__ import annotations

import functools

from aiohttp import web

from gateway.admin.access import check_declared, route
from gateway.admin.context import CONTEXT, AdminContext
from gateway.admin.pages.api_tokens import routes as api_tokens
from gateway.admin.pages.audit import routes as audit
from gateway.admin.pages.base import configure, handle_errors, redirect_to_root, require_login
from gateway.admin.pages.bulk import routes as bulk
from gateway.admin.pages.enrolment import routes as enrolment
from gateway.admin.pages.enrolment_keys import routes as enrolment_keys
from gateway.admin.pages.fleet import routes as fleet
from gateway.admin.pages.fleet_operations import routes as fleet_operations
from gateway.admin.pages.guide import routes as guide
from gateway.admin.pages.ice import routes as one_ice
from gateway.admin.pages.ices import routes as ices
from gateway.admin.pages.login import routes as login
from gateway.admin.pages.me import routes as me
from gateway.admin.pages.nodes import routes as nodes
from gateway.admin.pages.operations import routes as operations
from gateway.admin.pages.pausing import routes as pausing
from gateway.admin.pages.pools import routes as pools
from gateway.admin.pages.schedules import routes as schedules
from gateway.admin.pages.sso import routes as sso
from gateway.admin.pages.static import routes as static
from gateway.admin.pages.users import routes as users
from gateway.admin.pages.webhooks import routes as webhooks
from gateway.core.roles import Need

__all__ = ["pages_app"]


def pages_app(context: AdminContext) -> web.Application:
    """The pages; mount them at `/admin`."""
    app = web.Application(middlewares=[handle_errors, require_login])
    app[CONTEXT] = context
    configure(app)
    app.router.add_routes(_routes())
    check_declared(app)
    return app


@functools.cache
def _routes() -> tuple[web.RouteDef, ...]:
    """The routes, which are defined once for all applications of this process."""
    nouns = (
        login,
        sso,
        ices,
        bulk,
        fleet,
        one_ice,
        pausing,
        operations,
        fleet_operations,
        schedules,
        pools,
        enrolment,
        enrolment_keys,
        users,
        api_tokens,
        webhooks,
        me,
        audit,
        nodes,
        guide,
        static,
    )
    return (
        route("GET", "", redirect_to_root, need=Need.NOTHING),
        *(one for routes in nouns for one in routes()),
    )
