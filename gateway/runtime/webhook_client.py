"""Posts a message to a receiver that an admin named: one attempt, no redirects, only to addresses that are allowed.

The check is made for the address of each socket before it connects, so that no answer of a name server can come between
check and connection. The body of an answer is never read.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import (
    AddrInfoType,
    ClientError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver
from yarl import URL

from gateway import __version__
from gateway.core.addresses import Network
from gateway.core.text import printable
from gateway.core.webhook import ANSWER_TIME, target_fault
from gateway.runtime.http_client import reason_of
from gateway.runtime.resolver import SystemResolver
from gateway.runtime.response_limit import limited

_OK: Final = range(200, 300)
_MAX_ERROR: Final = 200
_MAX_HEADERS: Final = 64
_MAX_FIELD: Final = 4096
_HEADERS: Final = {
    "Content-Type": "application/json",
    "User-Agent": f"ice-gateway/{__version__}",
    "Accept": "*/*",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt: the status of the answer, or why there was none."""

    status: int | None
    error: str | None
    elapsed_ms: int

    @property
    def taken(self) -> bool:
        """Whether the receiver has the message."""
        return self.error is None


class WebhookClient:
    """Posts messages.

    Args:
        allowed: networks that are not public and may be dialled all the same.
        resolver: looks host names up; None for `SystemResolver`.
    """

    def __init__(
        self, allowed: Sequence[Network] = (), resolver: AbstractResolver | None = None
    ) -> None:
        self.allowed = allowed
        self._resolver = resolver or SystemResolver()

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        seconds: float = ANSWER_TIME,
    ) -> Outcome:
        """Post a body and wait at most `seconds` for the status; never raises for what the receiver does."""
        began = time.monotonic()

        def outcome(status: int | None, error: str | None) -> Outcome:
            return Outcome(status, error, round((time.monotonic() - began) * 1000))

        try:
            async with asyncio.timeout(seconds), self._session(URL(url)) as session:
                answer = await session.post(
                    url, data=body, headers={**_HEADERS, **headers}, allow_redirects=False
                )
                status = answer.status
                answer.close()
        except TimeoutError:
            return outcome(None, f"no answer within {seconds:.0f} s")
        except (ClientError, OSError, ValueError) as error:
            return outcome(None, printable(reason_of(error)[:_MAX_ERROR]))
        return outcome(status, None if status in _OK else f"answered {status}")

    def _session(self, url: URL) -> ClientSession:
        """A session for one message: a connection that was kept might be closed by the receiver meanwhile."""
        loopback_only = url.scheme == "http"

        def checked_socket(address: AddrInfoType) -> socket.socket:
            family, kind, protocol, _, place = address
            fault = target_fault(str(place[0]), self.allowed, loopback_only=loopback_only)
            if fault is not None:
                raise PermissionError(errno.EPERM, fault)
            return socket.socket(family, kind, protocol)

        return ClientSession(
            connector=limited(
                TCPConnector(
                    force_close=True,
                    use_dns_cache=False,
                    resolver=self._resolver,
                    socket_factory=checked_socket,
                )
            ),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
            max_headers=_MAX_HEADERS,
        )
