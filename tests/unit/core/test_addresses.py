"""Addresses and networks as they are written."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from gateway.core.addresses import parse_address, parse_network


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:51008", "203.0.113.7"),
        ("2001:DB8::17", "2001:db8::17"),
        ("[2001:db8::17]", "2001:db8::17"),
        ("[2001:db8::17]:47011", "2001:db8::17"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:1", "203.0.113.7"),
        ("[203.0.113.7]:1", "203.0.113.7"),
        ("::ffff:cb00:7107", "203.0.113.7"),
    ],
)
def test_address_is_understood(text, expected):
    assert parse_address(text) == ip_address(expected)
    assert parse_network(text) == ip_network(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "[]:80", "localhost", "unknown", "_hidden", "203.0.113.7:", "203.0.113.7:x"),
        *("203.0.113.7:123456", "203.0.113", "1.2.3.4.5", "[2001:db8::17", "2001:db8::17]:1"),
        *("fe80::1%eth0", "[fe80::1%eth0]:1", "::ffff:1.2.3.4%x", "203.0.113.7 ", "\u0661.2.3.4"),
        *("[" * 10_000, "1" * 10_000, ":" * 10_000),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_address(text):
    assert parse_address(text) is None
    with pytest.raises(ValueError, match=r"\S"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_network_is_understood(text, expected):
    assert parse_network(text) == ip_network(expected)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "::/129", "fe80::%eth0/64", "[::1]/128", "x/8"])
def test_what_is_no_network(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_network(text)
