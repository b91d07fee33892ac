"""Finds the proxy for the gateway: HTTPS_PROXY and NO_PROXY, or the system's settings.

The client looks before each attempt, because a laptop changes its network. aiohttp could do it, but silently
ignores a proxy that it cannot use, and reads ~/.netrc, too.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.request
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from aiohttp import encode_basic_auth

_PORTS: Final = {"https": 443, "http": 80}


class BadProxy(ValueError):
    """The proxy cannot be used; the text is one line for a person, without its password."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `url` contains no user or password and may be shown."""

    url: str
    authorization: str | None = field(repr=False)
    """The value of `Proxy-Authorization`."""

    @classmethod
    def of(cls, text: str, name: str) -> Proxy:
        """Parse the value of the setting `name`, `[http://][user:password@]host[:port]`. Raises `BadProxy`."""
        unclear = BadProxy(f"{name} is not valid: it must look like http://host:port")
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise unclear from None
        if not host or not text.isprintable() or " " in text:
            raise unclear
        if parts.scheme != "http":
            raise BadProxy(f"{name} names a {parts.scheme} proxy: only http proxies are supported")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if ":" in user:
            raise BadProxy(f"{name} names a user with a colon, which RFC 7617 does not allow")
        return cls(
            f"http://{f'[{host}]' if ':' in host else host}:{port or 80}",
            None if parts.username is None else encode_basic_auth(user, password),
        )


def proxy_for(url: str) -> Proxy | None:
    """The proxy for `url`; None for a direct connection. Raises `BadProxy`."""
    parts = urlsplit(url)
    text = urllib.request.getproxies().get(parts.scheme)
    if not text:
        return None
    environment = urllib.request.getproxies_environment()
    if environment:
        port = parts.port or _PORTS[parts.scheme]
        bypassed = matches_no_proxy(environment.get("no", ""), parts.hostname or "", port)
    else:
        # macOS and Windows have their own proxy settings.
        bypassed = bool(urllib.request.proxy_bypass(parts.netloc))
    return None if bypassed else Proxy.of(text, f"{parts.scheme.upper()}_PROXY")


def matches_no_proxy(no_proxy: str, host: str, port: int) -> bool:
    """Whether an entry of `NO_PROXY`, between commas or spaces, matches this host and port.

    An entry is `*`, a domain (`example`, `.example` and `*.example` all include its subdomains), an address, or
    a network (`10.0.0.0/8`), IPv6 with or without brackets; each may have a port. Names are not resolved. An
    entry that cannot be parsed matches nothing.
    """
    address = _address(host)
    for entry in re.split(r"[\s,]+", no_proxy):
        name, its_port = _split(entry)
        if its_port not in (None, str(port)):
            continue
        if name == "*":
            return True
        found = _is_below(host, name) if address is None else address in (_network(name) or ())
        if found:
            return True
    return False


def _is_below(host: str, domain: str) -> bool:
    domain = domain.lower().removeprefix("*.").strip(".")
    return bool(domain) and f".{host.lower().rstrip('.')}".endswith(f".{domain}")


def _split(entry: str) -> tuple[str, str | None]:
    """Name and port of an entry; an IPv6 address with a port is in brackets."""
    bracketed = re.fullmatch(r"\[([^]]*)\](/\d+)?(?::(\d+))?", entry)
    if bracketed:
        return bracketed[1] + (bracketed[2] or ""), bracketed[3]
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # without the zone (RFC 6874)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network of an entry; a single address is a network of one."""
    try:
        return ipaddress.ip_network(_address(text) or text, strict=False)
    except ValueError:
        return None
