"""The paths that the gateway answers, and what answers each.

Tested in tests/gateway/admin/test_api.py and tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from client.protocol import PATH
from gateway.web.probes import Probes
from gateway.web.responses import MAX_BODY


def application(
    prefixes: Iterable[str],
    ice: Handler,
    enrolments: Callable[[str], Iterable[web.RouteDef]],
    probes: Probes,
    subapps: Callable[[], Mapping[str, web.Application]],
) -> web.Application:
    """The application of a gateway.

    Args:
        prefixes: paths under which every route is repeated.
        ice: answers the handshake of an ICE.
        enrolments: makes the routes of machines that enrol, below a prefix.
        probes: answers /healthz and /readyz.
        subapps: makes new sub-applications by path, the more specific paths first.
    """
    app = web.Application(client_max_size=MAX_BODY)
    for prefix in prefixes:
        app.router.add_get(prefix + PATH, ice, allow_head=False)
        app.router.add_routes(enrolments(prefix))
        app.router.add_get(f"{prefix}/", _redirect_to_page)
        app.router.add_get(f"{prefix}/healthz", probes.alive)
        app.router.add_get(f"{prefix}/readyz", probes.ready)
        for path, subapp in subapps().items():
            app.add_subapp(prefix + path, subapp)
    return app


async def _redirect_to_page(_: web.Request) -> web.StreamResponse:
    """Redirect a person who types the bare address to the page; a relative URL works behind any proxy."""
    raise web.HTTPFound("admin/")
