"""Addresses and networks as they are written."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from gateway.core.addresses import is_public, may_be_dialled, parse_address, parse_network


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


PUBLIC = ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    *("127.0.0.1", "10.1.1.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1"),  # noqa: S104 - refused, not bound
    *("::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "2001::1"),
    # what embeds an IPv4 address
    *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::7f00:1", "64:ff9b:1::808:808"),
]


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_of_the_internet_may_be_dialled(text):
    assert is_public(ip_address(text))
    assert may_be_dialled(ip_address(text), [])


@pytest.mark.parametrize("text", PRIVATE)
def test_other_addresses_may_not_unless_their_network_is_named(text):
    assert not is_public(ip_address(text))
    assert not may_be_dialled(ip_address(text), [ip_network("203.0.113.0/24")])
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    assert may_be_dialled(ip_address(text), everything)


def test_a_network_of_ipv4_is_meant_however_the_address_is_written():
    allowed = [ip_network("10.0.0.0/8")]
    for text in ("10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"):
        assert may_be_dialled(ip_address(text), allowed)
    assert not may_be_dialled(ip_address("192.168.0.1"), allowed)
