"""Routes that declare who may use them."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from aiohttp import web

from gateway.admin.access import check_declared, route
from gateway.admin.auth import declared_need
from gateway.admin.context import CALLER
from gateway.core.roles import Caller, Need, Role
from gateway.web.responses import RequestRefused


async def handle(_):
    return web.Response()


def test_route_has_to_declare_who_may_use_it():
    with pytest.raises(TypeError, match="need"):
        route("GET", "/x", handle)
    with pytest.raises(TypeError, match="finds none"):
        route("GET", "/x", handle, need=Need.OPERATE)


@pytest.mark.parametrize("add", ["add_get", "add_post"])
def test_app_with_another_route_is_refused(add):
    app = web.Application()
    app.router.add_routes([route("GET", "/good", handle, need=Need.NOTHING)])
    check_declared(app)
    getattr(app.router, add)("/bad", handle)
    with pytest.raises(TypeError, match="/bad"):
        check_declared(app)


async def test_caller_is_checked_after_what_was_sent_and_before_the_handler():
    done = []

    def step(name, *returned):
        async def run(request, *given):
            done.append((name, given))
            return returned

        return run

    listed = SimpleNamespace(ice=Mock())
    made = route(
        "POST",
        "/x",
        step("handler"),
        need=Need.ACT,
        reads=step("reads", "body"),
        finds=step("finds", listed, "more"),
    )
    assert declared_need(made.handler) is Need.ACT
    with pytest.raises(RequestRefused) as refused:
        await made.handler({CALLER: Caller("eve", Role.AUDITOR)})
    assert refused.value.problem.code == "forbidden"
    before = [("reads", ()), ("finds", ())]
    assert done == before
    done.clear()
    await made.handler({CALLER: Caller("root", Role.ADMIN)})
    assert done == [*before, ("handler", ("body", listed, "more"))]
