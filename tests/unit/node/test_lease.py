"""Leases by a node's own clock, and whether peers renew theirs."""

from __future__ import annotations

import pytest

from gateway.node.lease import Lease, Peers
from gateway.runtime.clocks import SharedClock
from gateway.store.nodes import Renewal


class Now:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def now():
    return Now()


def test_a_lease_counts_from_when_the_node_knew(now):
    lease = Lease(30.0, now)
    assert not lease.valid
    lease.renew(990.0)
    lease.renew(980.0)  # an answer that came late
    assert lease.valid
    assert lease.left == 1020.0 - now.now
    now.now = 1020.0
    assert not lease.valid


def test_a_shared_clock_goes_on_from_what_it_was_told(now):
    clock = SharedClock(now)
    clock.set(7.0)
    now.now += 5
    assert clock() == 12.0


A, B = Renewal("a", 1, 30.0), Renewal("b", 1, 10.0)


def test_a_peer_has_vanished_when_it_has_not_renewed_its_lease_for_as_long_as_that_lasts(now):
    peers = Peers(now)
    assert peers.vanished([A, B]) == []
    now.now += 10.0
    assert peers.vanished([A, B]) == []
    now.now += 0.1
    assert peers.vanished([A, B]) == [B]
    now.now += 20.0
    assert peers.vanished([A, B]) == [A, B]


def test_a_peer_that_renews_its_lease_counts_from_then_on(now):
    peers = Peers(now)
    peers.vanished([A])
    now.now += 29.0
    renewed = A._replace(renewals=2)
    assert peers.vanished([renewed]) == []
    now.now += 30.0
    assert peers.vanished([renewed]) == []
    now.now += 0.1
    assert peers.vanished([renewed]) == [renewed]


def test_how_long_nobody_looked_does_not_count(now):
    """A node that was suspended sees what its peers did meanwhile before it judges them."""
    peers = Peers(now)
    now.now += 3600.0
    assert peers.vanished([A]) == []


def test_a_peer_that_left_is_forgotten(now):
    peers = Peers(now)
    peers.vanished([A])
    peers.vanished([])
    now.now += 31.0
    assert peers.vanished([A]) == []
