"""The gateways that serve one database: how each is; to let one drain, or resume."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.auth import actor
from gateway.admin.pages.base import form, parts, render, render_table
from gateway.core.audit_event import Via
from gateway.core.problems import Problem, problem
from gateway.core.roles import Need
from gateway.web.responses import RequestRefused

CHANGED: Final = "nodes-changed"
"""Tells the page's script that the table is to be asked for again."""


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    return [
        route("GET", "/nodes", page, need=Need.SEE_ALL),
        route("GET", "/nodes/{name}/{action:drain|resume}", confirm, need=Need.ACT),
        route("POST", "/nodes/{name}/{action:drain|resume}", act, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The whole page, or the table alone where htmx asks for it."""
    context = {"title": "Nodes", "found": await parts(request).services.nodes.all()}
    return render_table(request, "nodes", context)


async def confirm(request: web.Request) -> web.StreamResponse:
    """Say what it does, before it is done."""
    found = await parts(request).services.nodes.all()
    node = next((one for one in found if one.name == request.match_info["name"]), None)
    if node is None:
        raise RequestRefused(problem("not-found", "There is no such node any more."))
    context = {
        "node": node,
        "action": request.match_info["action"],
        "others": any(one.state == "serves" for one in found if one is not node),
    }
    return render(request, "node_ask.html", context)


async def act(request: web.Request) -> web.StreamResponse:
    """Let a node drain, or resume."""
    await form(request)
    name, draining = request.match_info["name"], request.match_info["action"] == "drain"
    done = await parts(request).services.nodes.set_draining(
        actor(request, Via.PAGE), name, draining=draining
    )
    if isinstance(done, Problem):
        raise RequestRefused(done)
    heading = f"{name} is drained" if draining else f"{name} serves again"
    if not draining:
        said = "It admits ICEs from now on."
    elif done.others:
        said = "Its ICEs are told to come back within seconds, to the other nodes."
    else:
        said = "No other node serves: its ICEs wait until one resumes."
    return render(request, "told.html", {"heading": heading, "said": [said]}, tell={CHANGED: {}})
