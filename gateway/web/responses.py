"""Responses and request bodies: what all handlers share.

Tested in tests/gateway/admin/test_api.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.core.problems import Problem, problem
from gateway.store.engine import OutcomeUnknown, StoreUnavailable

MAX_BODY: Final = 1024 * 1024
"""Maximum bytes of a request's body."""
BODY_TIMEOUT: web.RequestKey[float] = web.RequestKey("body_timeout", float)
"""Seconds within which the body of a request must arrive; the server sets it."""
MAX_SEGMENTS: Final = 64
"""Maximum segments of a path. aiohttp's router takes 25 ms for the 8,000 that fit in a request line."""
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


def no_content() -> web.Response:
    """204, not cacheable."""
    return web.Response(status=204, headers={"Cache-Control": "no-store"})


_WRITE_TIMEOUT: Final = 30.0
"""Seconds for a client to read the next part of a long answer."""


class CutOff(Exception):
    """The rest of a long answer is not sent."""


async def send_parts(
    request: web.Request, headers: dict[str, str], parts: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send a long answer part by part; it is cut off if the client does not read, or `parts` cannot be read."""
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        async for part in parts:
            async with asyncio.timeout(_WRITE_TIMEOUT):
                await response.write(part)
        await response.write_eof()
    except (StoreUnavailable, TimeoutError, CutOff):
        # The status was sent, so only an aborted connection shows that the answer is incomplete.
        if request.transport is not None:
            request.transport.abort()
    return response


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
        if request.content.is_eof():  # it came with the head: no timer is needed
            body += request.content.read_nowait()
        else:
            async with asyncio.timeout(request[BODY_TIMEOUT]):
                while len(body) <= at_most and (chunk := await request.content.readany()):
                    body += chunk
    except TimeoutError:
        raise RequestRefused(problem("timeout")) from None
    except web.RequestPayloadError:  # chunks that cannot be decoded
        raise RequestRefused(problem("bad-request")) from None
    if len(body) > at_most:
        raise RequestRefused(too_large)
    return bytes(body)


def precheck(request: web.Request) -> Problem | None:
    """The refusal of a request that would cost aiohttp too much or make it fail; otherwise None."""
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
    except Exception as error:  # noqa: BLE001 - the last line before the client
        return problem_response(problem_of(request, error))


def problem_of(request: web.Request, error: Exception) -> Problem:
    """The problem of a request that failed with `error`; logs an unexpected error.

    Raises `error` again if it is a redirect or means that the client has disconnected.
    """
    match error:
        case RequestRefused():
            return error.problem
        case web.HTTPException() if error.status >= 400:  # noqa: PLR2004 - no redirect
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            refused = problem(_BY_STATUS.get(error.status, "bad-request"))
            return replace(refused, status=error.status, headers=allow)
        case StoreUnavailable():
            return store_problem(request, error)
        case web.HTTPException() | ConnectionError():
            raise error
    _log.exception("unexpected error", method=request.method, path=request.rel_url.raw_path)
    return problem("internal")


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
