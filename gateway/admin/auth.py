"""Who calls: the API token of a user. What they may do stands in `roles`."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.admin.parts import CALLER, PARTS
from gateway.errors import problem
from gateway.event import Actor, Via
from gateway.respond import client_address, problem_response
from gateway.roles import Caller
from gateway.secret import Secret

PUBLIC = "public"
"""The name of the one route that needs no credentials."""
_SCHEME = "bearer "


@web.middleware
async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let nobody in without an API token, whatever they ask for; only the API's description is open."""
    if request.match_info.route.name != PUBLIC:
        caller = await recognise(request)
        if caller is None:
            response = problem_response(problem("unauthenticated"))
            response.headers["WWW-Authenticate"] = "Bearer"  # RFC 6750 section 3
            return response
        request[CALLER] = caller
    return await handler(request)


async def recognise(request: web.Request) -> Caller | None:
    """The caller whose credentials the request brings, if they are good now."""
    values = request.headers.getall("Authorization", [])
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        return None
    token = values[0][len(_SCHEME) :].strip()
    if not token.isascii():  # RFC 6750 section 2.1; bytes that are not UTF-8 could not be hashed
        return None
    return await request.config_dict[PARTS].accounts.recognise(Secret(token))


def actor(request: web.Request) -> Actor:
    """The caller as the audit log names them."""
    trusted = request.config_dict[PARTS].trusted_proxies
    return Actor(request[CALLER].user, Via.API, client_address(request, trusted))
