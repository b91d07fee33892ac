"""An HTTP client for what the gateway itself asks of other servers, bounded in time and bytes.

It follows no redirect, keeps no cookie and unpacks nothing. Proxies come from the environment (HTTPS_PROXY, HTTP_PROXY,
NO_PROXY), except for loopback.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from gateway import SERVER_NAME
from gateway.core.addresses import is_loopback
from gateway.runtime.resolver import SystemResolver
from gateway.runtime.response_limit import TooMuch, limited
from gateway.runtime.settings import BadSetting

MAX_BYTES: Final = 256 * 1024
"""Bytes of an answer; the JWK Sets of large issuers have some 20 KiB."""
TIMEOUT: Final = 10.0
"""Seconds for a whole answer, with the name's resolution and the connection."""
_CONNECTIONS: Final = 32


class Unreachable(Exception):
    """There is no usable answer; the text says why, without the request's URL, body or headers."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read whole; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Reply({self.status}, {len(self.body)} bytes)"


class HttpClient:
    """Sends requests; a context manager, made in a running loop.

    Args:
        ca_file: certificates (PEM) to trust besides the system's.
        timeout: seconds for a whole answer.
        max_bytes: bytes of an answer's body.

    Raises `BadSetting` if `ca_file` cannot be used.
    """

    def __init__(
        self,
        ca_file: Path | None = None,
        *,
        timeout: float = TIMEOUT,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._session = aiohttp.ClientSession(
            # A kept connection may be closed at the moment of a request, and a POST is not sent twice.
            connector=limited(
                aiohttp.TCPConnector(
                    ssl=trusting(ca_file),
                    limit=_CONNECTIONS,
                    force_close=True,
                    resolver=SystemResolver(),
                )
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout),
            auto_decompress=False,
            trust_env=False,  # it would also send credentials from ~/.netrc
            headers={"User-Agent": SERVER_NAME, "Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all connections."""
        await self._session.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request, with `form` as its body. A redirect is an answer like others. Raises `Unreachable`."""
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=form,
                proxy=_proxy_of(url),
                allow_redirects=False,
            ) as response:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise Unreachable("it sent a compressed answer, unasked")
                body = await self._read(response)
                found = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, found, body)
        except (TimeoutError, asyncio.IncompleteReadError):
            raise Unreachable(f"it did not answer within {self._timeout:g} seconds") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(reason_of(error)) from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        while chunk := await response.content.readany():
            body += chunk
            if len(body) > self._max_bytes:
                raise Unreachable(f"its answer has more than {self._max_bytes // 1024} KiB")
        return bytes(body)


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """A client's TLS context that trusts `ca_file` besides the system's certificates. Raises `BadSetting`."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            is_bad = isinstance(error, ssl.SSLError)
            reason = "it has no certificate (PEM)" if is_bad else error.strerror
            raise BadSetting(f"the certificates of {ca_file} cannot be used: {reason}") from error
    return context


def _proxy_of(url: str) -> str | None:
    """The proxy for this URL by the environment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)


def reason_of(error: Exception) -> str:
    """Why a request failed, in words of our own.

    aiohttp's texts may have the URL of a proxy with its password, or quote the answer, which may be of a server that the
    reader may not ask.
    """
    match error:
        case TooMuch():
            return str(error)
        case aiohttp.ClientHttpProxyError():
            return f"the proxy answered with {error.status}"
        case aiohttp.ClientProxyConnectionError():
            return "the proxy cannot be reached"
        case aiohttp.ClientConnectorCertificateError():
            found = error.certificate_error
            why = getattr(found, "verify_message", "") or "it is wrong"
            return f"its certificate is not trusted: {why}"
        case aiohttp.ClientConnectorDNSError():
            return "its host name is not known"
        case aiohttp.ClientSSLError():
            return "TLS failed"
        case aiohttp.ClientConnectorError():
            return f"no connection: {error.os_error.strerror or 'refused'}"
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError():
            return "it broke off its answer"
        case aiohttp.InvalidURL():
            return "its URL cannot be used"
    return "its answer is no HTTP"
