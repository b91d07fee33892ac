"""Which proxy lies between this machine and the gateway: HTTPS_PROXY and NO_PROXY, or the system's settings.

Asked before every attempt, for a laptop changes its network. aiohttp would do it by itself, but
passes by a proxy that it cannot use without a word, and reads ~/.netrc along with it.
"""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from aiohttp import encode_basic_auth

_ENVIRONMENT: Final = {"https": "HTTPS_PROXY", "http": "HTTP_PROXY"}


class BadProxy(ValueError):
    """A proxy that cannot be used; one line for a person, without its password."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `url` is without user and password, and may be shown."""

    url: str
    authorization: str | None = field(repr=False)
    """The value of `Proxy-Authorization`."""

    @classmethod
    def of(cls, text: str, name: str) -> Proxy:
        """The proxy that the setting `name` holds, `[http://][user:password@]host[:port]`. Raises `BadProxy`."""
        unclear = BadProxy(f"{name} cannot be understood: it must look like http://host:port")
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise unclear from None
        if not host or not text.isprintable() or " " in text:
            raise unclear
        if parts.scheme != "http":
            raise BadProxy(
                f"{name} names a proxy of the kind {parts.scheme}: only http can be used"
            )
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if ":" in user:
            raise BadProxy(f"{name} names a user with a colon, which RFC 7617 does not allow")
        return cls(
            f"http://{f'[{host}]' if ':' in host else host}:{port or 80}",
            None if parts.username is None else encode_basic_auth(user, password),
        )


def proxy_for(url: str) -> Proxy | None:
    """The proxy to go through to `url`; None if it is reached directly. Raises `BadProxy`."""
    parts = urlsplit(url)
    text = urllib.request.getproxies().get(parts.scheme)
    if not text or urllib.request.proxy_bypass(parts.netloc):
        return None
    return Proxy.of(text, _ENVIRONMENT[parts.scheme])
