from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.ice import Status
from gateway.core.pause import Pause, forbids, pause_fault, standing, wrong_status

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def test_a_pause_holds_until_its_end():
    assert standing(None, NOW) is None
    assert standing(Pause("alice", NOW), NOW + timedelta(days=9999)) is not None
    bounded = Pause("alice", NOW, LATER)
    assert standing(bounded, LATER - timedelta(microseconds=1)) is bounded
    assert standing(bounded, LATER) is None


@pytest.mark.parametrize(
    ("until", "note", "field"),
    [
        (None, "", None),
        (LATER, "lunch\nuntil 2", None),
        (NOW, "", "until"),
        (NOW - timedelta(days=1), "", "until"),
        (None, "x" * 1001, "note"),
        (None, "\x00", "note"),
    ],
)
def test_end_and_note_of_a_pause(until, note, field):
    fault = pause_fault(until, note, NOW)
    assert (None if fault is None else fault.more["field"]) == field


@pytest.mark.parametrize("status", Status)
def test_every_status_but_deregistered_can_be_paused(status):
    refused = wrong_status("lab-1", status)
    wanted = "wrong-status" if status is Status.DEREGISTERED else None
    assert (None if refused is None else refused.code) == wanted


@pytest.mark.parametrize(
    ("paused_by_admin", "by_admin", "code"),
    [(True, False, "forbidden"), (True, True, None), (False, False, None), (False, True, None)],
)
def test_what_an_admin_paused_only_an_admin_changes(paused_by_admin, by_admin, code):
    pause = Pause("someone", NOW, by_admin=paused_by_admin)
    refused = forbids("lab-1", pause, by_admin=by_admin)
    assert (None if refused is None else refused.code) == code
    assert forbids("lab-1", None, by_admin=by_admin) is None
