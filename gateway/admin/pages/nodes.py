"""The page of nodes, the gateways of one database: list, drain and resume them.

Tested in tests/cluster/test_node_pages.py.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.admin.pages.base import form, notice, render, render_table
from gateway.core.audit_event import Via
from gateway.core.problems import problem
from gateway.core.roles import Need

CHANGED: Final = "nodes-changed"
"""The event on which the page reloads the table."""


def routes() -> list[web.RouteDef]:
    """The routes of `/nodes`."""
    return [
        route("GET", "/nodes", page, need=Need.SEE_ALL),
        route("GET", "/nodes/{name}/{action:drain|resume}", confirm, need=Need.ACT),
        route("POST", "/nodes/{name}/{action:drain|resume}", act, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or only its table if htmx asks for that."""
    context = {"title": "Nodes", "found": await admin_context(request).services.nodes.all()}
    return render_table(request, "nodes", context)


async def confirm(request: web.Request) -> web.StreamResponse:
    """Ask before draining or resuming a node."""
    found = await admin_context(request).services.nodes.all()
    named = next((one for one in found if one.name == request.match_info["name"]), None)
    node = unwrap(named or problem("not-found", "There is no such node any longer."))
    context = {
        "node": node,
        "action": request.match_info["action"],
        "others": any(one.state == "serves" for one in found if one is not node),
    }
    return render(request, "node_ask.html", context)


async def act(request: web.Request) -> web.StreamResponse:
    """Drain or resume a node."""
    force = (await form(request)).get("force") == "true"
    name, draining = request.match_info["name"], request.match_info["action"] == "drain"
    done = unwrap(
        await admin_context(request).services.nodes.set_draining(
            actor(request, Via.PAGE), name, draining=draining, force=force
        )
    )
    if not draining:
        sentence = "It admits ICEs from now on."
    elif done.others:
        sentence = "It asks its ICEs to reconnect to the other nodes within seconds."
    else:
        sentence = "No other node serves: its ICEs wait until one resumes."
    heading = f"{name} is drained" if draining else f"{name} serves again"
    return notice(request, heading, sentence, changed=CHANGED)
