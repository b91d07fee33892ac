"""IP addresses and networks as proxies, sockets and people write them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
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


# IPv6 networks whose addresses name an IPv4 address, and its place counted in bits from the right.
_EMBEDDING: Final = (
    (_MAPPED, 0),
    (IPv6Network("64:ff9b::/96"), 0),  # RFC 6052: NAT64
    (IPv6Network("2002::/16"), 80),  # RFC 3056: 6to4
)
# Not global, though `is_global` of some versions of Python says so.
_NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # RFC 1122: this host
            "100.64.0.0/10",  # RFC 6598: CGNAT
            "192.0.0.0/24",  # RFC 6890
            "192.88.99.0/24",  # RFC 7526: 6to4 relays
            "198.18.0.0/15",  # RFC 2544
            "::/96",  # RFC 4291: unspecified, loopback, and the former IPv4-compatible ones
            "64:ff9b:1::/48",  # RFC 8215: NAT64 of a site
            "100::/64",  # RFC 6666
            "2001::/23",  # RFC 2928: Teredo, ORCHID and other protocols
            "2001:db8::/32",  # RFC 3849
            "fec0::/10",  # RFC 3879: site-local
        ),
    )
)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet (IANA's special-purpose registries; RFC 6890).

    Of an address that embeds an IPv4 address, that one counts, since a packet may arrive there.
    """
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def may_be_dialled(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether the gateway may connect to it on behalf of an admin: it is public, or in an allowed network."""
    inner = _embedded(address)
    named = address if inner is None else inner
    return is_public(named) or any(
        named in network for network in allowed if network.version == named.version
    )


def _embedded(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    for network, shift in _EMBEDDING:
        if address in network:
            return IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return None
