"""One WebSocket handshake with the gateway, which yields a connection or a refusal.

A middleware of aiohttp adds the credentials and reads answers other than 101. Source: docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, hdrs

from client import __version__, protocol
from client.backoff import Refused
from client.dialer import Dialer
from client.environment import Waits
from client.errors import one_line, unreachable
from client.proxies import BadProxy, proxy_for

_BODY_LIMIT: Final = 64 * 1024
_BODY_TIMEOUT: Final = 5.0
_CLOSE_TIMEOUT: Final = 1.0
_LOOPBACK: Final = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_6: Final = ipaddress.IPv6Address("::1")

WebSocket = aiohttp.ClientWebSocketResponse


class BadAddress(ValueError):
    """The gateway URL is not valid; the text is one line for a person."""


class PlainHttp(BadAddress):
    """The gateway URL would send the token unencrypted."""


class BadCertificateFile(ValueError):
    """The CA file cannot be used; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The gateway's URL for ICEs: the client connects to `url` and signs it (`htu`)."""

    url: str
    plain: bool
    loopback: bool

    @classmethod
    def of(cls, base: str, *, insecure: bool = False) -> Endpoint:
        """The endpoint under the gateway's base URL, `https://host[:port][/prefix]`.

        Raises `BadAddress`, or `PlainHttp` for `http` beyond loopback unless `insecure`.
        """
        try:
            parts = urlsplit(base)
            port = parts.port
        except ValueError as error:
            raise BadAddress(f"the gateway's URL is not valid: {error}") from None
        if not base.isascii() or not base.isprintable() or " " in base:
            raise BadAddress("the gateway's URL has characters that a URL cannot have")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise BadAddress("the gateway's URL must look like https://host[:port][/prefix]")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise BadAddress("the gateway's URL must not have a user, a query or a fragment")
        path = parts.path.rstrip("/")
        if path.endswith(protocol.PATH):
            raise BadAddress(f"give the gateway's base URL, without {protocol.PATH}")
        endpoint = cls(
            f"{parts.scheme}://{parts.netloc}{path}{protocol.PATH}",
            plain=parts.scheme == "http",
            loopback=_is_loopback(parts.hostname),
        )
        if endpoint.exposed and not insecure:
            raise PlainHttp(
                "over plain http anyone on the network path could read the token: use https, or --insecure"
                " in a network where that does not matter"
            )
        return endpoint

    @property
    def exposed(self) -> bool:
        """Whether the token would leave this machine unencrypted."""
        return self.plain and not self.loopback


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    # `is_loopback` covers more addresses in newer versions of Python.
    return address in _LOOPBACK if address.version == 4 else address == _LOOPBACK_6  # noqa: PLR2004


def tls(ca_file: Path | None) -> ssl.SSLContext:
    """Trust the system's certificates, and those in `ca_file` as well. Raises `BadCertificateFile`."""
    context = ssl.create_default_context()
    try:
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:
        raise BadCertificateFile(f"{ca_file} holds no PEM certificate") from None
    except OSError as error:
        raise BadCertificateFile(f"{ca_file} cannot be read: {error.strerror}") from None
    return context


# --- refusals ----------------------------------------------------------------------------------


class _Problem(msgspec.Struct):
    """The members of the gateway's `application/problem+json` (RFC 9457)."""

    code: str
    retry: bool
    title: str = ""
    detail: str = ""


class _HandshakeRefused(Exception):
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
            body = await _bounded_body(response)
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


async def _bounded_body(response: ClientResponse) -> bytes:
    body = b""
    while chunk := await response.content.read(_BODY_LIMIT):
        body += chunk
        if len(body) > _BODY_LIMIT:
            raise ValueError("too long for a problem")
    return body


# --- the connector -----------------------------------------------------------------------------


class Connector:
    """The HTTP session for an endpoint; an async context manager.

    Args:
        endpoint: where to connect.
        ca_file: certificates to trust besides the system's. Both are read again for each attempt.
        credentials: returns new values of `Authorization` and `DPoP` for each request.
        now: Unix time, for Retry-After.
        waits: how long a handshake, and a silent address, may take.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ca_file: Path | None,
        credentials: Callable[[], tuple[str, str]],
        *,
        now: Callable[[], float],
        waits: Waits,
    ) -> None:
        self._endpoint = endpoint
        self._ca_file = ca_file
        self._credentials = credentials
        self._now = now
        self._timeout = waits.handshake
        self._dialer = Dialer(waits.silence)
        self._session = aiohttp.ClientSession(
            connector=self._dialer.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=waits.handshake),
            headers={hdrs.USER_AGENT: f"ice-client/{__version__}"},
            middlewares=(self._authorize,),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def connect(self) -> WebSocket | Refused:
        """Make one handshake; every failure is a `Refused`."""
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
                connect = functools.partial(
                    self._session.ws_connect,
                    self._endpoint.url,
                    ssl=context,
                    proxy=through,
                    proxy_headers={hdrs.PROXY_AUTHORIZATION: authorization}
                    if authorization
                    else None,
                    protocols=(protocol.SUBPROTOCOL,),
                    compress=0,
                    # aiohttp refuses a message of exactly the limit.
                    max_msg_size=protocol.MAX_MESSAGE + 1,
                    # The client must see pings: they show that the gateway is alive.
                    autoping=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT),
                )
                socket = await self._dialer.connect(connect)
        except _HandshakeRefused as answer:
            return answer.refused
        except BadCertificateFile as problem:
            return Refused("ca-file-unusable", one_line(str(problem)), answered=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            where = urlsplit(self._endpoint.url).netloc
            return unreachable(error, where, plain=self._endpoint.plain, proxy=through)
        if socket.protocol != protocol.SUBPROTOCOL:
            await hang_up(socket, aiohttp.WSCloseCode.PROTOCOL_ERROR)
            return Refused(
                "not-a-gateway",
                "The WebSocket server there does not speak ice.v1: correct the URL.",
            )
        return socket

    async def _authorize(
        self, request: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        """Add the credentials, and raise for any answer but a 101.

        A middleware, because aiohttp repeats a request by itself when the peer hangs up, and each needs a
        new proof; and because `ws_connect` would follow redirects.
        """
        authorization, proof = self._credentials()
        request.headers[hdrs.AUTHORIZATION] = authorization
        request.headers["DPoP"] = proof
        response = await handler(request)
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return response
        try:
            raise _HandshakeRefused(await _refusal(response, self._now()))
        finally:
            response.close()


async def hang_up(socket: WebSocket, code: int) -> None:
    """Send a close frame and wait briefly for the peer's; a peer that no longer reads cannot block it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * _CLOSE_TIMEOUT):
            await socket.close(code=code)
