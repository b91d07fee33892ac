"""The gateway's URLs, and the certificates that a client trusts.

Tested in tests/client/test_client_handshake.py.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from client import protocol
from client.exceptions import InvalidValue

_LOOPBACK: Final = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_6: Final = ipaddress.IPv6Address("::1")


class BadAddress(InvalidValue):
    """The gateway URL is not valid; the text is one line for a person."""


class PlainHttp(BadAddress):
    """The gateway URL would send the token unencrypted."""


class BadCertificateFile(InvalidValue):
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
