"""Times as text, and times that may be missing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.core import times

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON, "2026-11-22T12:00:00.000000Z"),
        (NOON + timedelta(microseconds=1), "2026-11-22T12:00:00.000001Z"),
        (
            datetime(2026, 11, 22, 17, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            "2026-11-22T12:00:00.000000Z",
        ),
    ],
)
def test_a_time_is_written_in_utc_and_read_back(moment, text):
    assert times.to_text(moment) == text
    assert times.from_text(text) == moment
    assert times.from_text(text).utcoffset() == timedelta(0)


def test_a_missing_time_stays_missing():
    assert times.to_text_or_none(None) is None
    assert times.from_text_or_none(None) is None
    assert times.from_text_or_none(times.to_text_or_none(NOON)) == NOON


def test_0_seconds_later_is_never():
    assert times.later(NOON, 0) is None
    assert times.later(NOON, 90.5) == NOON + timedelta(seconds=90, milliseconds=500)


def test_the_present_is_aware():
    assert times.utc_now().utcoffset() == timedelta(0)
