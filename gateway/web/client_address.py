"""Where a request comes from: the peer, or the client for which a trusted proxy speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from gateway.core.addresses import Address, Network, parse_address
from gateway.web.upgrade import Upgrade

Networks = Sequence[Network]
MAX_HOPS: Final = 32
"""Maximum addresses of X-Forwarded-For that are read."""


def client_address(request: web.BaseRequest | Upgrade, trusted: Networks) -> str:
    """The address of the client: the peer's, or the one that trusted proxies report.

    At most `MAX_HOPS` addresses of X-Forwarded-For are read from the right; the first that is not a trusted proxy
    is the client. IPv4-mapped addresses, which dual-stack sockets report, count as IPv4.
    """
    peer = request.remote or "unknown"
    if not trusted and ":" not in peer:
        return peer  # the system writes an IPv4 address in one way; to parse it takes 4 µs
    client = parse_address(peer)
    if client is None:
        return peer
    if _is_in(client, trusted):
        header = ",".join(request.headers.getall("X-Forwarded-For", ()))
        for hop in reversed(header.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            address = parse_address(hop.strip())
            if address is None:
                if hop.strip():
                    break
                continue
            client = address
            if not _is_in(client, trusted):
                break
    return str(client)


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
