"""The requests of an ICE, each with a proof of its key, and the gateway's refusals.

A middleware of aiohttp adds the credentials and reads the answers that are refusals. `handshake` and `enrolment`
make the requests. Source: docs/protocol.md.

Tested in tests/client/test_client_handshake.py and tests/client/test_client_backoff.py.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
from collections.abc import Callable, Container, Coroutine, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, hdrs

from client import __version__, protocol
from client.backoff import Refused
from client.dialer import Dialer
from client.endpoint import BadCertificateFile, Endpoint, tls
from client.environment import Waits
from client.errors import one_line, unreachable
from client.proxies import BadProxy, proxy_for

_BODY_LIMIT: Final = 64 * 1024
_BODY_TIMEOUT: Final = 5.0

_T = TypeVar("_T")

# --- refusals ----------------------------------------------------------------------------------


class _Problem(msgspec.Struct):
    """The members of the gateway's `application/problem+json` (RFC 9457)."""

    code: str
    retry: bool
    title: str = ""
    detail: str = ""


class _RequestRefused(Exception):
    """Carries a refusal out of aiohttp."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.code)
        self.refused = refused


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by `Retry-After` (RFC 9110 section 10.2.3); None without it, 0 if it is unreadable."""
    text = headers.get(hdrs.RETRY_AFTER)
    if text is None:
        return None
    if text.isascii() and text.isdecimal():
        return float(text)
    when, date = _http_date(text), _http_date(headers.get(hdrs.DATE, ""))
    if when is None:
        return 0.0
    # The time comes from the server's clock, which `Date` gives; the local clock may be wrong.
    return max(when - (now if date is None else date), 0.0)


def _http_date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


async def _refusal(response: ClientResponse, now: float) -> Refused:
    after = retry_after(response.headers, now)
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await bounded_body(response)
        problem = msgspec.json.decode(body, type=_Problem)
    except (aiohttp.ClientError, OSError, ValueError, RecursionError):
        if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
            sentence = "The server answered with a redirect, which the client does not follow: correct the gateway's URL."
        else:
            sentence = f"Something other than the gateway answered HTTP {response.status}: check the URL and any proxies in between."
        return Refused(f"http-{response.status}", sentence, retry_after=after)
    known = protocol.REFUSALS.get(problem.code)
    sentence = one_line(problem.detail or (known.detail if known else problem.title))
    wants_nonce = known is protocol.RefusalCode.USE_DPOP_NONCE
    return Refused(
        one_line(problem.code),
        sentence or f"HTTP {response.status}",
        problem.retry,
        after,
        response.headers.get("DPoP-Nonce") if wants_nonce else None,
    )


async def bounded_body(response: ClientResponse) -> bytes:
    """The body of an answer. Raises ValueError for one that is longer than any of the gateway's."""
    body = b""
    while chunk := await response.content.read(_BODY_LIMIT):
        body += chunk
        if len(body) > _BODY_LIMIT:
            raise ValueError("too long for an answer of the gateway")
    return body


# --- the session -------------------------------------------------------------------------------


class GatewaySession:
    """The HTTP session for an endpoint; an async context manager.

    Args:
        endpoint: where to connect.
        ca_file: certificates to trust besides the system's. Both are read again for each attempt.
        credentials: returns new values of `Authorization` and `DPoP` for each request.
        expected: the statuses of answers that are no refusals.
        now: Unix time, for Retry-After.
        waits: how long a request, and a silent address, may take.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ca_file: Path | None,
        credentials: Callable[[], tuple[str, str]],
        *,
        expected: Container[int],
        now: Callable[[], float],
        waits: Waits,
    ) -> None:
        self._endpoint = endpoint
        self._ca_file = ca_file
        self._credentials = credentials
        self._expected = expected
        self._now = now
        self._timeout = waits.handshake
        self._dialer = Dialer(waits.silence)
        self.http = aiohttp.ClientSession(
            connector=self._dialer.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=waits.handshake),
            headers={hdrs.USER_AGENT: f"ice-client/{__version__}"},
            middlewares=(self._authorize,),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    async def send(self, request: Callable[..., Coroutine[Any, Any, _T]]) -> _T | Refused:
        """Await `request(ssl=, proxy=, proxy_headers=)`, a request by `http`; every failure is a `Refused`."""
        # A proxy would see the token of a plain connection within this machine.
        try:
            proxy = None if self._endpoint.loopback else proxy_for(self._endpoint.url)
        except BadProxy as problem:
            return Refused("proxy-unusable", str(problem), answered=False)
        through = proxy.url if proxy else None
        authorization = proxy and proxy.authorization
        try:
            async with asyncio.timeout(self._timeout):
                # In a thread, because reading the system's certificates takes 50 ms.
                context = (
                    True if self._endpoint.plain else await asyncio.to_thread(tls, self._ca_file)
                )
                prepared = functools.partial(
                    request,
                    ssl=context,
                    proxy=through,
                    proxy_headers={hdrs.PROXY_AUTHORIZATION: authorization}
                    if authorization
                    else None,
                )
                return await self._dialer.connect(prepared)
        except _RequestRefused as answer:
            return answer.refused
        except BadCertificateFile as problem:
            return Refused("ca-file-unusable", one_line(str(problem)), answered=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            where = urlsplit(self._endpoint.url).netloc
            return unreachable(error, where, plain=self._endpoint.plain, proxy=through)

    async def _authorize(
        self, request: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        """Add the credentials, and raise for any answer that is not expected.

        A middleware, because aiohttp repeats a request by itself when the peer hangs up, and each needs a
        new proof; and because `ws_connect` would follow redirects.
        """
        authorization, proof = self._credentials()
        request.headers[hdrs.AUTHORIZATION] = authorization
        request.headers["DPoP"] = proof
        response = await handler(request)
        if response.status in self._expected:
            return response
        try:
            raise _RequestRefused(await _refusal(response, self._now()))
        finally:
            response.close()
