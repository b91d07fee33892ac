"""What strangers cause cannot fill the disk with log lines."""

from __future__ import annotations

import pytest
import structlog

from gateway.logs import LINES_A_MINUTE, STRANGERS, Sparing


def said(sparing, **line):
    try:
        return sparing(None, "info", line)
    except structlog.DropEvent:
        return None


@pytest.mark.parametrize("event", STRANGERS)
def test_lines_of_strangers_are_bounded_and_the_rest_is_counted(event):
    now = [0.0]
    sparing = Sparing(lambda: now[0])
    lines = [said(sparing, event=event, address="192.0.2.1") for _ in range(LINES_A_MINUTE + 50)]
    assert lines.count(None) == 50
    assert lines[0] == {"event": event, "address": "192.0.2.1"}
    now[0] = 60.0
    assert said(sparing, event=event) == {"event": event, "unsaid": 50}
    assert said(sparing, event=event) == {"event": event}


def test_what_names_an_ice_and_what_else_happens_is_always_said():
    sparing = Sparing(lambda: 0.0)
    for _ in range(LINES_A_MINUTE + 1):
        said(sparing, event="refused", ice=None)
    for line in ({"event": "refused", "ice": "lab-1"}, {"event": "admitted", "ice": "lab-1"}):
        assert [said(sparing, **line)] * (LINES_A_MINUTE + 1) == [line] * (LINES_A_MINUTE + 1)
    assert said(sparing, event="refused", ice=None) is None
