"""Responses, request bodies and client addresses: what all handlers share."""

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
"""Maximum bytes of a request's body."""
BODY_TIMEOUT: Final = 10.0
"""Seconds within which a body must arrive."""
MAX_SEGMENTS: Final = 64
"""Maximum segments of a path. aiohttp's router takes 25 ms for the 8,000 that fit in a request line."""
MAX_HOPS: Final = 32
"""Maximum addresses of X-Forwarded-For that are read."""
Networks = Sequence[Network]
DATA_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of responses that are not pages: they forbid caching and rendering as a page."""
_log = structlog.get_logger()


def problem_response(refused: Problem) -> web.Response:
    """An RFC 9457 problem document, not cacheable."""
    return web.Response(
        status=refused.status,
        body=msgspec.json.encode(refused.document()),
        content_type="application/problem+json",
        headers={**DATA_HEADERS, **refused.headers},
    )


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON response, not cacheable."""
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
    """Carries a problem out of a handler; `answer_errors` responds with it."""

    def __init__(self, refused: Problem) -> None:
        super().__init__(refused.code)
        self.problem = refused


async def read_body(request: web.Request, at_most: int = MAX_BODY) -> bytes:
    """Read a body of at most `at_most` bytes. Raises `RequestRefused`."""
    too_large = problem("too-large", f"Send at most {at_most // 1024} KiB.")
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


def precheck(request: web.Request) -> Problem | None:
    """The refusal of a request that would cost aiohttp too much, or make it fail; else None."""
    if request.rel_url.raw_path.count("/") > MAX_SEGMENTS:
        return problem("not-found")
    # aiohttp quotes any other expectation in its response, and raises if it is not UTF-8.
    if request.headers.get("Expect", "100-continue").lower() != "100-continue":
        return problem("expectation-failed")
    return None


async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document; log an unexpected one and respond with `internal`."""
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
        raise  # the client has disconnected
    except Exception:  # noqa: BLE001 - the last line before the client
        _log.exception("unexpected error", method=request.method, path=request.rel_url.raw_path)
        return problem_response(problem("internal"))


def store_problem(request: web.Request, error: StoreUnavailable) -> Problem:
    """The problem for a request that failed because of the store."""
    # Health logs the fault itself, once; this line names an affected request.
    _log.info("store unavailable", reason=str(error), path=request.rel_url.raw_path)
    detail = None
    if isinstance(error, OutcomeUnknown):
        detail = (
            "It is not known whether this was done: look before you try again."
            " /readyz and the gateway's log say why."
        )
    return replace(problem("store-unavailable", detail), headers={"Retry-After": "2"})


class HasHeaders(Protocol):
    """A request or an upgrade."""

    @property
    def remote(self) -> str | None:
        """The peer's address."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers."""


def client_address(request: HasHeaders, trusted: Networks) -> str:
    """The address of the client: the peer's, or the one that trusted proxies report.

    At most `MAX_HOPS` addresses of X-Forwarded-For are read from the right; the first that is not a trusted proxy
    is the client. IPv4-mapped addresses, which dual-stack sockets report, count as IPv4.
    """
    peer = request.remote or "unknown"
    client = parse_address(peer)
    if client is None:
        return peer
    if _is_in(client, trusted):
        header = ",".join(request.headers.getall("X-Forwarded-For", ()))
        for hop in reversed(header.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            address = parse_address(hop.strip())
            if address is None:
                if hop.strip():
                    break
                continue
            client = address
            if not _is_in(client, trusted):
                break
    return str(client)


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
