"""An action's answer: which sessions it ended, and which nodes have not confirmed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.audit_event import GENESIS, Actor, Event, LogEntry, Via
from gateway.core.revocation import Confirmation, Drop
from gateway.node.hub import ClosedSession
from gateway.node.revocations import Revocations
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import AppendedEvent, StoreUnavailable
from gateway.store.nodes import Dropped

NOW = datetime(2026, 11, 22, tzinfo=UTC)
LATER = NOW + timedelta(milliseconds=12, microseconds=345)


def entry(seq):
    return LogEntry(
        seq, Event(NOW, Actor("root", Via.API, "test"), "deregister", "lab-1", 2), GENESIS
    )


class Log:
    """Has applied every event up to `position`."""

    position = 1

    async def wait_for_event(self, seq):
        if seq > self.position:
            await asyncio.Event().wait()


class Hub:
    """Ends one session with each event but those in `quiet`."""

    quiet = ()

    def apply(self, happened):
        if happened.seq in self.quiet:
            return []
        return [ClosedSession("lab-1", f"s{happened.seq}", 4101)]


class Nodes:
    """Other nodes, of which some are late."""

    def __init__(self, late=(), dropped=(), away=False):
        self._late = list(late)
        self._dropped = dropped
        self._away = away

    async def behind(self, *_):
        if self._away:
            raise StoreUnavailable("the store is away")
        return [self._late.pop()] if self._late else []

    async def dropped(self, *_):
        if self._away:
            raise StoreUnavailable("the store is away")
        return self._dropped


class Stage:
    """This node's part, and its collaborators."""

    def __init__(self, others=None, now=LATER, timeout=5.0):
        self.hub, self.log, self.observed = Hub(), Log(), []
        self.revocations = Revocations(
            self.hub,
            self.log,
            node="node-1",
            clock=lambda: now,
            observe=self.observed.append,
            acknowledgements=None if others is None else Acknowledgements(others, lambda: now),
            timeout=timeout,
        )

    def apply(self, *seqs):
        for seq in seqs:
            self.revocations.apply(entry(seq))

    async def confirm(self, *seqs):
        """The answer to an action that has logged these."""
        appended = [AppendedEvent(entry(seq).event) for seq in seqs]
        for one, seq in zip(appended, seqs, strict=True):
            one.seq = seq
        return await self.revocations.confirm(appended)


def drop(seq):
    return Drop(f"s{seq}", "node-1", 4101, 12.345, "lab-1")


async def test_an_action_is_told_what_its_events_ended_and_nothing_else():
    stage = Stage()
    stage.hub.quiet, stage.log.position = (2,), 4
    stage.apply(1, 2, 3, 4)
    assert await stage.confirm(1, 2, 3) == Confirmation([drop(1), drop(3)], [])
    assert await stage.confirm(2) == Confirmation([], [])
    assert await stage.confirm() == Confirmation([], [])
    assert stage.observed == [0.012345] * 3


async def test_a_node_that_lags_behind_is_named():
    stage = Stage(timeout=0)
    stage.apply(1)
    assert await stage.confirm(1, 2) == Confirmation([drop(1)], ["node-1"])


async def test_a_clock_that_was_set_back_gives_no_negative_time():
    stage = Stage(now=NOW - timedelta(hours=1))
    stage.apply(1)
    assert stage.observed == [0.0]


async def test_what_was_ended_is_forgotten_after_30_seconds(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now, raising=False)
    stage = Stage()
    stage.log.position = 100
    stage.apply(1)
    now += 29.0
    assert await stage.confirm(1) == Confirmation([drop(1)], [])
    now += 2.0
    stage.apply(2)
    assert await stage.confirm(1, 2) == Confirmation([drop(2)], [])


async def test_other_nodes_are_waited_for_and_what_they_dropped_is_told():
    far = Dropped("s9", 1, "node-2", "lab-1", 4101)
    stage = Stage(Nodes(late=["node-2"] * 3, dropped=[far]))
    stage.apply(1)
    elsewhere = Drop("s9", "node-2", 4101, 12.345, "lab-1")
    assert await stage.confirm(1) == Confirmation([drop(1), elsewhere], [])


async def test_a_node_that_does_not_confirm_is_named():
    stage = Stage(Nodes(late=["node-3"] * 1000), timeout=0.05)
    assert await stage.confirm(1) == Confirmation([], ["node-3"])


async def test_without_its_store_nobody_is_said_to_have_confirmed():
    stage = Stage(Nodes(away=True))
    assert await stage.confirm(1) == Confirmation([], ["other nodes"])


async def test_who_is_late_itself_does_not_speak_for_the_others():
    """The others are asked once at the least, although no time is left."""
    stage = Stage(Nodes(late=["node-3"] * 1000), timeout=0.01)
    stage.log.position = 0
    assert (await stage.confirm(1)).unconfirmed == ["node-1", "node-3"]


@pytest.mark.parametrize("late", [0, 3])
async def test_a_command_waits_for_the_nodes_of_its_database(late):
    far = Dropped("s9", 1, "node-2", "lab-1", 4101)
    asking = Acknowledgements(Nodes(late=["node-2"] * late, dropped=[far]), lambda: LATER)
    one = AppendedEvent(entry(1).event)
    one.seq = 1
    elsewhere = Drop("s9", "node-2", 4101, 12.345, "lab-1")
    assert await asking.confirm([one]) == Confirmation([elsewhere], [])
