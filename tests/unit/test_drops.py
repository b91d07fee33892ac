"""What an action ended, for whoever waits for its answer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from gateway.core.audit_event import GENESIS, Actor, Entry, Event, Via
from gateway.core.revocation import Confirmation, Drop
from gateway.node import revocations
from gateway.node.hub import ClosedSession
from gateway.node.revocations import Revocations
from gateway.store.engine import Appended, StoreUnavailable
from gateway.store.nodes import Dropped

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def entry(seq):
    return Entry(seq, Event(NOW, Actor("root", Via.API, "test"), "deregister", "lab-1", 2), GENESIS)


class LogFollower:
    """Has applied every event up to `position`."""

    def __init__(self, position):
        self.position = position

    async def reached(self, seq):
        if seq > self.position:
            await asyncio.Event().wait()


class Hub:
    """Ends one session with each event but those in `quiet`."""

    quiet = ()

    def apply(self, happened):
        if happened.seq in self.quiet:
            return []
        return [ClosedSession("lab-1", f"s{happened.seq}", 4101)]


@pytest.fixture
def observed():
    return []


@pytest.fixture
def dropping(observed):
    later = NOW + timedelta(milliseconds=12, microseconds=345)
    return Revocations(Hub(), "node-1", lambda: later, observed.append)


def logged(*seqs):
    """What an action has logged."""
    appended = [Appended(entry(seq).event) for seq in seqs]
    for one, seq in zip(appended, seqs, strict=True):
        one.seq = seq
    return appended


class OtherNodes:
    """Other nodes, of which some are late."""

    def __init__(self, late=(), dropped=()):
        self._late = list(late)
        self._dropped = dropped
        self.away = False

    async def behind(self, _):
        if self.away:
            raise StoreUnavailable("the store is away")
        return [self._late.pop()] if self._late else []

    async def dropped(self, _):
        if self.away:
            raise StoreUnavailable("the store is away")
        return self._dropped


def drop(seq):
    return Drop(f"s{seq}", "node-1", 4101, 12.345, "lab-1")


async def test_an_action_is_told_what_its_events_ended_and_nothing_else(dropping, observed):
    dropping._hub.quiet = (2,)
    for seq in (1, 2, 3, 4):
        dropping.apply(entry(seq))
    assert await dropping.confirm(LogFollower(4), logged(1, 2, 3)) == Confirmation(
        [drop(1), drop(3)], []
    )
    assert await dropping.confirm(LogFollower(4), logged(2)) == Confirmation([], [])
    assert await dropping.confirm(LogFollower(0), []) == Confirmation([], [])
    assert observed == [0.012345] * 3


async def test_a_node_that_lags_behind_is_named(dropping, monkeypatch):
    monkeypatch.setattr(revocations, "CONFIRMATION", 0)
    dropping.apply(entry(1))
    assert await dropping.confirm(LogFollower(1), logged(1, 2)) == Confirmation(
        [drop(1)], ["node-1"]
    )


async def test_a_clock_that_was_set_back_gives_no_negative_time(observed):
    dropping = Revocations(Hub(), "node-1", lambda: NOW - timedelta(hours=1), observed.append)
    dropping.apply(entry(1))
    assert observed == [0.0]


async def test_what_was_ended_is_forgotten_after_30_seconds(dropping, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(
        revocations.asyncio, "get_running_loop", lambda: SimpleNamespace(time=lambda: now)
    )
    for seq in range(100):
        now += 1.0
        dropping.apply(entry(seq))
    assert set(dropping._of) == set(range(69, 100))
    assert len(dropping._order) == 31


async def test_other_nodes_are_waited_for_and_what_they_dropped_is_told(dropping):
    far = Dropped("s9", 1, "node-2", "lab-1", 4101)
    dropping._others = OtherNodes(late=["node-2"] * 3, dropped=[far])
    dropping.apply(entry(1))
    found = await dropping.confirm(LogFollower(1), logged(1))
    assert found == Confirmation([drop(1), Drop("s9", "node-2", 4101, 12.345, "lab-1")], [])


async def test_a_node_that_does_not_confirm_is_named(dropping, monkeypatch):
    monkeypatch.setattr(revocations, "CONFIRMATION", 0.05)
    dropping._others = OtherNodes(late=["node-3"] * 1000)
    assert await dropping.confirm(LogFollower(1), logged(1)) == Confirmation([], ["node-3"])


async def test_without_its_store_nobody_is_said_to_have_confirmed(dropping):
    dropping._others = OtherNodes()
    dropping._others.away = True
    assert await dropping.confirm(LogFollower(1), logged(1)) == Confirmation([], ["other nodes"])


async def test_who_is_late_itself_does_not_speak_for_the_others(dropping, monkeypatch):
    monkeypatch.setattr(revocations, "CONFIRMATION", 0.01)
    monkeypatch.setattr(revocations, "_ONE_LOOK", 0.01)
    dropping._others = OtherNodes(late=["node-3"] * 1000)
    found = await dropping.confirm(LogFollower(0), logged(1))
    assert found == Confirmation([], ["node-1", "node-3"])
