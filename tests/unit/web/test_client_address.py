"""Where a request comes from."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.addresses import parse_network
from gateway.web.client_address import client_address


@dataclass
class Request:
    remote: str | None
    headers: CIMultiDictProxy[str]


@pytest.mark.parametrize(
    ("peer", "trusted", "address"),
    [
        ("127.0.0.1", ["127.0.0.1"], "203.0.113.7"),
        ("::ffff:127.0.0.1", ["127.0.0.1"], "203.0.113.7"),
        ("::ffff:127.0.0.1", ["::ffff:127.0.0.1"], "203.0.113.7"),
        ("::ffff:127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("198.51.100.9", ["127.0.0.1"], "198.51.100.9"),
        ("::1", ["::1"], "203.0.113.7"),
        ("fe80::1%eth0", ["fe80::/10"], "fe80::1%eth0"),
        (None, ["127.0.0.1"], "unknown"),
    ],
)
def test_proxy_is_known_by_whatever_its_socket_says(peer, trusted, address):
    headers = CIMultiDictProxy(CIMultiDict({"X-Forwarded-For": "203.0.113.7:51008"}))
    assert client_address(Request(peer, headers), [*map(parse_network, trusted)]) == address
