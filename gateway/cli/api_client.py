"""Calls the admin API of a gateway elsewhere: URL, API token, certificates, and what may go wrong on the way.

Tested in tests/gateway/cli/test_url.py.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from gateway import SERVER_NAME, __version__
from gateway.cli.admin_port import AnswerLost, Query, Refused
from gateway.core.addresses import is_loopback
from gateway.core.problems import problem
from gateway.core.secret import Secret
from gateway.services.schemas import ProblemDocument

R = TypeVar("R")
_API: Final = "/admin/api/v1"
_MAX_TOKEN_FILE: Final = 4096
_MAX_ANSWER: Final = 256 * 1024 * 1024
"""Bytes of an answer, or of one event of a stream."""
_CONNECT_TIMEOUT: Final = 10.0
_TIMEOUT: Final = 120.0
"""Seconds for an answer; the longest ones act on 10,000 ICEs."""
_SILENCE: Final = 60.0
"""Seconds without a byte after which a stream has ended; the gateway sends one every 15 s."""
_UNAUTHENTICATED: Final = 401
_REDIRECTS: Final = range(300, 400)


class BadUrl(ValueError):
    """The text is one line for a person."""


class PlainHttp(BadUrl):
    """The URL would send the API token unencrypted."""


class BadFile(ValueError):
    """A file that a person must correct; the text is one line."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a gateway; `base` is its URL without the path of the API."""

    base: str
    token_file: Path
    token: Secret
    ca_file: Path | None = None

    @classmethod
    def of(cls, url: str, token_file: Path, ca_file: Path | None, *, insecure: bool) -> Self:
        """Read what the options name. Raises `BadUrl`, `PlainHttp` and `BadFile`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadUrl(f"the gateway's URL is not valid: {error}") from None
        if not url.isascii() or not url.isprintable() or " " in url:
            raise BadUrl("the gateway's URL has characters that a URL cannot have")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise BadUrl("the gateway's URL must look like https://host[:port][/prefix]")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise BadUrl("the gateway's URL must not have a user, a query or a fragment")
        if parts.scheme == "http" and not insecure and not is_loopback(parts.hostname):
            raise PlainHttp(
                "over plain http anyone on the network path could read the API token: use https, or --insecure"
                " in a network where that does not matter"
            )
        path = parts.path.rstrip("/").removesuffix(_API)
        base = f"{parts.scheme}://{parts.netloc}{path}"
        return cls(base, token_file, _token_in(token_file), ca_file)

    @property
    def is_readable_by_all(self) -> bool:
        """Whether every user of this machine can read the token."""
        try:
            mode = self.token_file.stat().st_mode
        except OSError:
            return False
        return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)

    def tls(self) -> ssl.SSLContext:
        """Trust the system's certificates, and those in the CA file as well. Raises `BadFile`."""
        context = ssl.create_default_context()
        try:
            if self.ca_file is not None:
                context.load_verify_locations(cafile=self.ca_file)
        except ssl.SSLError:
            raise BadFile(f"{self.ca_file} holds no PEM certificate") from None
        except OSError as error:
            raise BadFile(f"{self.ca_file} cannot be read: {error.strerror}") from None
        return context

    def proxy(self) -> str | None:
        """The proxy that the environment names for this URL."""
        # aiohttp could look for it, but reads ~/.netrc, too.
        parts = urlsplit(self.base)
        host = parts.hostname or ""
        if is_loopback(host) or urllib.request.proxy_bypass(parts.netloc):
            return None
        return urllib.request.getproxies().get(parts.scheme)


def _token_in(file: Path) -> Secret:
    """The first line of the file. Raises `BadFile`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_TOKEN_FILE)
    except OSError as error:
        raise BadFile(f"the token file {file} cannot be read: {error.strerror}") from None
    text = data.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].strip().decode(errors="replace")
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise BadFile(f"the token file {file} holds no API token on its first line")
    return Secret(text)


def path_of(*segments: str) -> str:
    """A path of the API; every name is one segment. Raises `Refused` for a name that cannot be one."""
    for segment in segments:
        if segment in ("", ".", ".."):
            missing = problem("not-registered" if segments[0] == "ices" else "not-found")
            raise Refused(missing.code, missing.detail)
    try:
        return "".join(f"/{quote(segment, safe='')}" for segment in segments)
    except UnicodeEncodeError:  # Python decodes invalid arguments to surrogates
        raise Refused("invalid", "an argument is not UTF-8") from None


class StreamEvent(NamedTuple):
    """An event of a stream; `id` is empty if it has none."""

    name: str
    data: bytes
    id: str


class ApiClient:
    """One caller of the API. Every method raises `Refused`."""

    def __init__(self, access: Access, session: aiohttp.ClientSession) -> None:
        self._access = access
        self._session = session
        self._proxy = access.proxy()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, access: Access) -> AsyncIterator[Self]:
        """Connections to the gateway, closed at the end. Raises `BadFile`."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=access.tls()),
            headers={
                "Authorization": f"Bearer {access.token.reveal()}",
                "User-Agent": f"{SERVER_NAME}/{__version__}",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            yield cls(access, session)

    async def call(
        self,
        method: str,
        path: str,
        answer: type[R],
        body: object = None,
        *,
        query: Query = (),
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - passed to aiohttp
    ) -> R:
        """Call the API and decode its answer, which comes within `timeout` seconds."""
        data = await self._bytes(method, path, body, query, timeout)
        try:
            return msgspec.json.decode(data, type=answer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Refused(
                "not-understood",
                f"{self._access.base} gave an answer that version {__version__} does not understand: is its gateway of"
                " another version?",
            ) from None

    async def send(self, method: str, path: str, body: object = None) -> None:
        """Call the API; the answer is not read."""
        await self._bytes(method, path, body, (), _TIMEOUT)

    async def _bytes(
        self, method: str, path: str, body: object, query: Query, total: float
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=total, sock_connect=_CONNECT_TIMEOUT)
        with self._failures():
            async with self._request(method, path, body, query, limits) as response:
                data = await _read(response)
        self._refuse(response, data)
        return data

    async def download(
        self, path: str, query: Query, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[bytes]:
        """The parts of an answer of any length."""
        limits = aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT, sock_read=_SILENCE)
        with self._failures():
            async with self._request("GET", path, None, query, limits, headers=headers) as response:
                if not response.ok:
                    self._refuse(response, await _read(response))
                async for part in response.content.iter_any():
                    yield part

    async def events(self, path: str, *, after: str = "") -> AsyncIterator[StreamEvent]:
        """The events of a stream, until it ends; those after the event with the id `after`."""
        lines: list[bytes] = []
        rest = bytearray()
        async for part in self.download(path, (), {"Last-Event-ID": after} if after else None):
            rest += part
            *ended, last = bytes(rest).replace(b"\r\n", b"\n").split(b"\n")
            rest = bytearray(last)
            if len(rest) > _MAX_ANSWER:
                raise self._too_long()
            for line in ended:
                if line:
                    lines.append(line)
                    continue
                event = _event(lines)
                lines = []
                if event is not None:
                    yield event

    def _request(
        self,
        method: str,
        path: str,
        body: object,
        query: Query,
        limits: aiohttp.ClientTimeout,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        address = f"{self._access.base}{_API}{path}{'?' if query else ''}{urlencode(query)}"
        return self._session.request(
            method,
            URL(address, encoded=True),
            data=None if body is None else msgspec.json.encode(body),
            headers=headers if body is None else {"Content-Type": "application/json"},
            proxy=self._proxy,
            allow_redirects=False,  # the token is for this gateway alone
            timeout=limits,
        )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Say in a line what went wrong before, or instead of, an answer."""
        base = self._access.base
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or "not trusted"
            raise Refused(
                "unreachable", f"the certificate of {base} is not accepted: {reason}"
            ) from None
        except aiohttp.ClientConnectorError as error:
            reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error)
            raise Refused("unreachable", f"cannot connect to {base}: {reason}") from None
        except aiohttp.ConnectionTimeoutError:
            raise Refused("unreachable", f"cannot connect to {base}: it does not answer") from None
        except aiohttp.ClientHttpProxyError as error:
            raise Refused(
                "unreachable", f"cannot connect to {base}: the proxy answered {error.status}"
            ) from None
        except aiohttp.InvalidURL:
            raise Refused("unreachable", f"{base}, or the proxy for it, is no valid URL") from None
        except TimeoutError:
            raise AnswerLost(f"{base} took too long to answer") from None
        except (aiohttp.ClientError, OSError):
            raise AnswerLost(f"the connection to {base} ended before the answer") from None

    def _refuse(self, response: aiohttp.ClientResponse, data: bytes) -> None:
        """Raise `Refused` if the answer is a refusal."""
        if response.ok and response.status not in _REDIRECTS:
            return
        try:
            refused = msgspec.json.decode(data, type=ProblemDocument)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Refused(
                "not-understood",
                f"{self._access.base} answered {response.status} and not as a gateway does: is the URL right, and what"
                " stands before the gateway?",
            ) from None
        if response.status == _UNAUTHENTICATED:
            raise Refused(
                refused.code,
                f"{self._access.base} refuses the API token in {self._access.token_file}: it is unknown, expired or"
                " revoked, or its user is disabled",
            )
        raise Refused(refused.code, refused.detail)

    def _too_long(self) -> Refused:
        return Refused("not-understood", f"{self._access.base} gave an answer that is too long")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > _MAX_ANSWER:
            raise Refused("not-understood", "the answer is too long")
    return bytes(data)


def _event(lines: list[bytes]) -> StreamEvent | None:
    """The event of these lines (WHATWG HTML standard, section 9.2); None for a comment."""
    name, place, data = "message", "", []
    for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode(errors="replace")
        elif field == b"data":
            data.append(value)
        elif field == b"id":
            place = value.decode(errors="replace")
    return StreamEvent(name, b"\n".join(data), place) if data else None
