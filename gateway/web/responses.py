"""Problem documents as responses, bodies, and where a request came from: what every handler shares."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDictProxy

from gateway.core.addresses import Address, Network, parse_address
from gateway.core.problems import Problem, problem
from gateway.store.engine import OutcomeUnknown, StoreUnavailable

MAX_BODY: Final = 1024 * 1024
"""Bytes of a request's body at the most."""
BODY_TIMEOUT: Final = 10.0
"""Seconds for a body to arrive."""
MAX_SEGMENTS: Final = 64
"""Segments of a path. aiohttp's router takes 25 ms for the 8,000 that a request's first line has room for."""
MAX_HOPS: Final = 32
"""Addresses of X-Forwarded-For that are looked at."""
Networks = Sequence[Network]
_log = structlog.get_logger()


DATA_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of what is no page: nothing keeps it, and no browser takes it for a page."""


def problem_response(refused: Problem) -> web.Response:
    """An RFC 9457 document; nothing of it may be cached."""
    return web.Response(
        status=refused.status,
        body=msgspec.json.encode(refused.document()),
        content_type="application/problem+json",
        headers={**DATA_HEADERS, **refused.headers},
    )


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON answer; nothing of it may be cached."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(value),
        content_type="application/json",
        headers={**DATA_HEADERS, **(headers or {})},
    )


_BY_STATUS = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    417: "expectation-failed",
}


class RequestRefused(Exception):
    """Carries a problem out of a handler; `problems` makes it the answer."""

    def __init__(self, refused: Problem) -> None:
        super().__init__(refused.code)
        self.problem = refused


async def read_body(request: web.Request, at_most: int = MAX_BODY) -> bytes:
    """The body, of so many bytes at the most. Raises `RequestRefused`."""
    too_large = problem("too-large", f"Send {at_most // 1024} KiB at the most.")
    if (request.content_length or 0) > at_most:
        raise RequestRefused(too_large)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > at_most:
                    raise RequestRefused(too_large)
    except TimeoutError:
        raise RequestRefused(problem("timeout")) from None
    except web.RequestPayloadError:  # chunks that cannot be decoded
        raise RequestRefused(problem("bad-request")) from None
    return bytes(body)


def screen(request: web.Request) -> Problem | None:
    """The refusal of a request that would cost aiohttp too much, or that it fails at."""
    if request.rel_url.raw_path.count("/") > MAX_SEGMENTS:
        return problem("not-found")
    # aiohttp quotes any other expectation, and raises where that is not UTF-8.
    if request.headers.get("Expect", "100-continue").lower() != "100-continue":
        return problem("expectation-failed")
    return None


async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document; what was not expected is logged and named `internal`."""
    try:
        return await handler(request)
    except RequestRefused as refusal:
        return problem_response(refusal.problem)
    except web.HTTPException as error:
        if error.status < 400:  # noqa: PLR2004 - a redirect
            raise
        code = _BY_STATUS.get(error.status, "bad-request")
        response = problem_response(replace(problem(code), status=error.status))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except StoreUnavailable as error:
        return problem_response(store_problem(request, error))
    except ConnectionError:
        raise  # the client has gone
    except Exception:  # noqa: BLE001 - the last line before the client
        _log.exception("unexpected error", method=request.method, path=request.rel_url.raw_path)
        return problem_response(problem("internal"))


def store_problem(request: web.Request, error: StoreUnavailable) -> Problem:
    """What to tell whoever asked for something that the store has failed to do."""
    # What it is stands in the log once, as a fault; this is only who was concerned.
    _log.info("store unavailable", reason=str(error), path=request.rel_url.raw_path)
    detail = None
    if isinstance(error, OutcomeUnknown):
        detail = (
            "It is not known whether this was done: look before you try again."
            " /readyz and the gateway's log say why."
        )
    return replace(problem("store-unavailable", detail), headers={"Retry-After": "2"})


class Asked(Protocol):
    """Whatever has come from a client, with headers."""

    @property
    def remote(self) -> str | None:
        """The peer's address."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Its headers."""


def client_address(request: Asked, trusted: Networks) -> str:
    """The address of the client: the peer's, or what trusted proxies say of whom they stand for.

    X-Forwarded-For is read from the right, `MAX_HOPS` of it; the first address that is no trusted proxy is the
    client. IPv4-mapped addresses are IPv4: a socket for both families has such peers.
    """
    peer = request.remote or "unknown"
    client = parse_address(peer)
    if client is None:
        return peer
    if _among(client, trusted):
        header = ",".join(request.headers.getall("X-Forwarded-For", ()))
        for hop in reversed(header.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            address = parse_address(hop.strip())
            if address is None:
                if hop.strip():
                    break
                continue
            client = address
            if not _among(client, trusted):
                break
    return str(client)


def _among(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
