"""Webhook URLs: whatever URL is accepted, and whatever its name resolves to, no refused address is dialled.

The first byte of an input says which networks an admin allows. The next one says how many addresses the name has, of
five or seventeen bytes each; the rest is the URL. Nothing is connected to: the loop only notes what is dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.core.operation import NotValid
from gateway.core.webhook import check_url
from gateway.runtime.webhook_client import WebhookClient
from tests.fuzz.target import Target, require

_ALLOWED = (
    (),
    (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")),
    (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/64")),
)
# Apart from the product's: what is certainly not for everybody.
_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
            *("::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
        ),
    )
)
_EMBEDDED = ((96, "::ffff:0:0"), (96, "::"), (96, "64:ff9b::"))


class _Loop(asyncio.SelectorEventLoop):
    """Notes what is dialled, and connects to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.dialled: list[str] = []

    async def sock_connect(self, _: socket.socket, address: Any) -> None:
        self.dialled.append(address[0])
        raise ConnectionRefusedError("noted")


class _Names(AbstractResolver):
    """Resolves every name to the same addresses, and notes the names."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if not self._addresses:
            raise OSError("there is no such name")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


def post(url: str, allowed: Any, addresses: list[str]) -> tuple[list[str], list[str], str | None]:
    """What is dialled for a URL, which names are asked for, and why it failed. Raises `NotValid`."""
    check_url(url, allowed)
    names = _Names(addresses)
    with contextlib.closing(_Loop()) as loop:
        outcome = loop.run_until_complete(WebhookClient(allowed, names).post(url, {}, b"{}"))
    return loop.dialled, names.asked, outcome.error


def check(data: bytes, product: Any) -> None:
    """See the module."""
    allowed = _ALLOWED[data[0] % len(_ALLOWED)] if data else ()
    addresses, rest = _addresses(data[1:])
    url = rest.decode("latin-1")
    try:
        dialled, asked, error = product(url, allowed, addresses)
    except NotValid as refused:
        require(refused.field == "url", f"{refused.field}")
        require(0 < len(str(refused)) < 300, f"{len(str(refused))} characters of reason")
        return
    parts = urlsplit(url)
    require(parts.scheme in ("http", "https"), f"{url!r}")
    require(url.isascii() and url.isprintable() and "@" not in parts.netloc, f"{url!r}")
    for text in dialled:
        address = ipaddress.ip_address(text)
        require(not _is_refused(address, allowed), f"{address} was dialled for {url!r}")
        if parts.scheme == "http":
            require(address.is_loopback, f"{address} was dialled by plain http for {url!r}")
    for name in asked:
        # Both parsers of a URL have to read the same host in it.
        host = (parts.hostname or "").lower().rstrip(".")
        require(name.rstrip(".") == host, f"{name} for {url!r}")
    if dialled and not asked:
        require(dialled == [_address_in(parts.hostname)], f"{dialled} for {url!r}")
    require(error is not None and error.isprintable() and len(error) <= 800, f"{error!r}")


def _address_in(host: str | None) -> str | None:
    """The address that a host is; None if it is a name."""
    try:
        return str(ipaddress.ip_address(host or ""))
    except ValueError:
        return None


def _addresses(data: bytes) -> tuple[list[str], bytes]:
    count, data = (data[0] % 4, data[1:]) if data else (0, b"")
    found = []
    for _ in range(count):
        size = 16 if data[:1] and data[0] % 2 else 4
        raw, data = data[1 : 1 + size], data[1 + size :]
        if len(raw) == size:
            found.append(str(ipaddress.ip_address(raw)))
    return found, data


def _is_refused(address: Any, allowed: Any) -> bool:
    for bits, prefix in _EMBEDDED:
        network = ipaddress.ip_network(f"{prefix}/{bits}")
        if address.version == 6 and address in network and int(address) & 0xFFFFFFFF > 1:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.version == 6 and address in ipaddress.ip_network("2002::/16"):
        address = ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    if any(address in network for network in allowed if network.version == address.version):
        return False
    return any(address in network for network in _REFUSED if network.version == address.version)


_PUBLIC = b"\1\0\x08\x08\x08\x08"
TARGET = Target(
    post,
    check,
    (
        b"\0" + _PUBLIC + b"https://hooks.example/in?x=1",
        b"\0\1\0\x7f\0\0\1https://hooks.example:8443/",
        b"\0\2\0\x08\x08\x08\x08\0\x0a\0\0\1https://hooks.example/",
        b"\0\1\1" + ipaddress.ip_address("::ffff:10.0.0.1").packed + b"https://hooks.example",
        b"\0\1\1" + ipaddress.ip_address("2002:a00:1::").packed + b"https://hooks.example",
        b"\0\1\1" + ipaddress.ip_address("2606:4700::1").packed + b"https://hooks.example",
        b"\1\1\0\x7f\0\0\1http://localhost:9000/in",
        b"\1\0http://127.0.0.1/",
        b"\2\1\0\x0a\1\0\1https://inner.example/",
        b"\0\0https://8.8.8.8/",
        b"\0\0https://[2606:4700::1]/",
        b"\0\0https://[::ffff:7f00:1]/",
        b"\0\0https://[fe80::1%25eth0]/",
        *(
            b"\0" + _PUBLIC + b"https://" + host
            for host in (b"127.1", b"0x7f.1", b"2130706433", b"017700000001")
        ),
        b"\0" + _PUBLIC + b"https://a@b.example/",
        b"\0" + _PUBLIC + b"https://a.example\\@b.example/",
        b"\0" + _PUBLIC + b"https://xn--a.example:0/#x",
        b"\0" + _PUBLIC + b"https://A.Example.:443//x/../%2e%2e",
        b"\0" + _PUBLIC + b"ftp://a",
        b"\0" + _PUBLIC + b"https://[",
    ),
    (
        b"https://",
        b"http://",
        b"localhost",
        b"127.0.0.1",
        b"[::1]",
        b"%31",
        b"\\",
        b"@",
        b"#",
        b"xn--",
        b":443",
    ),
    max_bytes=2200,
    base_ms=60.0,
)
