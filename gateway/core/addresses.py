"""IP addresses and networks as proxies, sockets and people write them. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2
_WITH_PORT: Final = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<four>[0-9.]+))(?::[0-9]{1,5})?")


def parse_address(text: str) -> Address | None:
    """Parse an address; brackets and a port are dropped, IPv4-mapped becomes IPv4. None if it is no address.

    An address with a zone (`fe80::1%eth0`) is rejected: a zone can be any text and has meaning on one machine only.
    """
    found = _WITH_PORT.fullmatch(text)
    if found:
        text = found["six"] or found["four"] or ""
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(host: str) -> bool:
    """Whether this name or address of a host is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_network(text: str) -> Network:
    """Parse a network in CIDR notation, or a single address as in `parse_address`. Raises `ValueError`."""
    address = parse_address(text)
    if address is not None:
        return ip_network(address)
    if "%" in text:
        raise ValueError(text)
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = IPv4Address(int(network.network_address) & 0xFFFF_FFFF)
        return IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network
