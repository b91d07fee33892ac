"""Attempts per address within a moving window."""

from __future__ import annotations

import pytest

from gateway.core.rate_limit import RateLimiter


def test_the_limit_holds_within_a_window_that_moves():
    counted = RateLimiter(3, 60.0)
    assert [counted.count("10.0.0.1", now) for now in (0, 10, 20)] == [0, 0, 0]
    assert counted.count("10.0.0.1", 25) == 35, "there is room when the first is 60 s old"
    assert counted.count("10.0.0.1", 59.5) == 0.5
    assert counted.count("10.0.0.1", 60) == 0, "what was refused has not counted"
    assert counted.count("10.0.0.1", 61) == 9
    assert counted.count("10.0.0.1", 70) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),  # RFC 6177: a customer has a /64
        ("2001:db8::1", "2001:DB8:0:0::1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        # RFC 4291 section 2.5.5.2: what a dual-stack proxy calls an IPv4 client
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("unknown", "10.0.0.1", False),
        ("not:an:address", "not:another", False),
    ],
)
def test_what_counts_as_one_source(one, other, same):
    counted = RateLimiter(1, 60.0)
    assert counted.count(one, 0) == 0
    assert (counted.count(other, 1) > 0) is same


def test_memory_is_bounded_and_the_quietest_source_goes_first():
    counted = RateLimiter(1, 60.0, max_sources=3)
    for source in ("a", "b", "c"):
        counted.count(source, 0)
    assert counted.count("a", 1) > 0
    for number in range(2):
        counted.count(f"new {number}", 2)
    assert len(counted) == 3
    assert counted.count("a", 3) > 0, "a was heard of a moment ago"
    assert counted.count("b", 3) == 0, "b was forgotten"
