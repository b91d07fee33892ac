from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.protocol import MAX_VALUE
from gateway.core import schedule as module
from gateway.core.audit_event import Via
from gateway.core.cron import Cron
from gateway.core.operation import MAX_AHEAD, NotValid
from gateway.core.schedule import MAX_COUNTED, MAX_REWIND, Schedule, Skipped, SkipReason, Target

NOW = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FREE = Target(allowed=True, registered=True, paused=False, unfinished=False, full=False)


def schedule(now: datetime = NOW, **how: object) -> Schedule:
    asked = {
        "id": "s1",
        "name": "nightly",
        "ice_name": "lab-1",
        "pool": None,
        "params": b"{}",
        "cron": "*/10 * * * *",
        "timezone": "UTC",
        "requested_by": "alice",
        "via": Via.API,
        "createdon": now,
    }
    return Schedule(**(asked | how)).checked(now)


def test_a_request_has_defaults_and_its_next_occurrence():
    new = schedule()
    assert (new.timeout, new.grace, new.enabled, new.last) == (86_400, 600, True, None)
    assert new.next == NOON + 10 * MINUTE
    assert schedule(enabled=False).next is None
    assert schedule(ice_name=None, pool="builders").pool == "builders"


@pytest.mark.parametrize(
    ("field", "how", "reason"),
    [
        ("ice_name", {"ice_name": None}, "is required"),
        ("pool", {"pool": "builders"}, "is only for"),
        ("ice_name", {"ice_name": "../x"}, "characters"),
        ("pool", {"ice_name": None, "pool": ""}, "characters"),
        ("name", {"name": ""}, "1 to 128"),
        ("name", {"name": "n" * 129}, "1 to 128"),
        ("name", {"name": "two\nlines"}, "printable"),
        ("params", {"params": b'"' + b"x" * MAX_VALUE + b'"'}, "at most 1,000,000 bytes"),
        ("params", {"params": b"[" * 200 + b"]" * 200}, "levels"),
        ("timeout", {"timeout": 0}, "1 to 31,622,400"),
        ("timeout", {"timeout": 10**30}, "1 to 31,622,400"),
        ("grace", {"grace": -1}, "1 to 31,622,400"),
        ("cron", {"cron": "0 0 30 2 *"}, "never matches"),
        ("cron", {"cron": "* 2 */31 10 SUN", "timezone": "Australia/Sydney"}, "never matches in"),
        ("timezone", {"timezone": "Mars/Olympus"}, "IANA"),
        ("timezone", {"timezone": "Mars/Olympus", "enabled": False}, "IANA"),
    ],
)
def test_a_field_that_is_not_valid_is_named(field, how, reason):
    with pytest.raises(NotValid, match=reason) as fault:
        schedule(**how)
    assert fault.value.field == field


def test_the_deadline_and_the_key_are_those_of_the_occurrence():
    new = schedule(timeout=90)
    assert new.deadline(NOON) == NOON + timedelta(seconds=90)
    assert new.idempotency_key(NOON) == "schedule:s1:2026-11-29T12:00:00.000000Z"


def test_the_next_five_are_listed():
    assert schedule().upcoming(5) == [NOON + number * 10 * MINUTE for number in range(1, 6)]
    assert schedule(enabled=False).upcoming(5) == []


def test_a_change_of_the_times_finds_the_next_occurrence_anew():
    new = schedule()
    late = new.next + MINUTE
    assert new.changed(late, name="other", grace=5).next == new.next, "that one is still due"
    assert new.changed(late, cron="5 * * * *").next == NOON + HOUR + 5 * MINUTE
    assert new.changed(late, timezone="Asia/Kathmandu").next == NOON + 15 * MINUTE
    off = new.changed(late, enabled=False)
    assert (off.next, off.is_due(late + DAY)) == (None, False)
    # What was due meanwhile is not missed: nobody asked for it.
    assert off.changed(late + HOUR, enabled=True).next == late + HOUR + 9 * MINUTE
    with pytest.raises(NotValid):
        new.changed(late, grace=0)


def test_a_due_occurrence_runs():
    new = schedule()
    assert new.decide(new.next - timedelta(microseconds=1), FREE) is None
    for late in [timedelta(0), timedelta(seconds=9), timedelta(seconds=599)]:
        decision = new.decide(new.next + late, FREE)
        assert (decision.runs, decision.skipped) == (new.next, ())
        assert decision.schedule == replace(new, last=new.next, next=new.next + 10 * MINUTE)
    assert schedule(enabled=False).decide(NOW + DAY, FREE) is None


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"allowed": False, "paused": True}, SkipReason.FORBIDDEN),
        ({"registered": False, "unfinished": True}, SkipReason.WRONG_STATUS),
        ({"paused": True, "unfinished": True}, SkipReason.PAUSED),
        ({"unfinished": True, "full": True}, SkipReason.UNFINISHED),
        ({"full": True}, SkipReason.QUEUE_FULL),
    ],
)
def test_an_obstacle_is_the_reason_of_what_is_left_out(how, reason):
    new = schedule()
    decision = new.decide(new.next, replace(FREE, **how))
    assert (decision.runs, decision.skipped) == (None, (Skipped(new.next, reason),))
    assert decision.schedule.next == new.next + 10 * MINUTE


def test_of_several_missed_the_newest_runs():
    new = schedule()
    decision = new.decide(new.next + 25 * MINUTE, FREE)
    assert decision.runs == new.next + 20 * MINUTE
    assert decision.skipped == (Skipped(new.next, SkipReason.MISSED, 2),)
    decision = new.decide(new.next + 25 * MINUTE, replace(FREE, paused=True))
    newest = Skipped(new.next + 20 * MINUTE, SkipReason.PAUSED)
    assert decision.skipped == (Skipped(new.next, SkipReason.MISSED, 2), newest)


def test_what_is_missed_for_longer_than_its_grace_is_left_out():
    new = schedule(cron="0 * * * *")
    at_last = new.decide(new.next + timedelta(seconds=600), FREE)
    too_late = new.decide(new.next + timedelta(seconds=600.1), replace(FREE, paused=True))
    assert at_last.runs == new.next
    assert too_late.runs is None
    assert too_late.skipped == (Skipped(new.next, SkipReason.MISSED),)
    assert too_late.schedule.next == new.next + HOUR


def test_what_is_due_after_its_deadline_is_missed():
    new = schedule(timeout=60, grace=600)
    decision = new.decide(new.next + MINUTE, FREE)
    assert (decision.runs, decision.skipped) == (None, (Skipped(new.next, SkipReason.MISSED),))


def test_a_year_of_missed_minutes_is_one_entry_and_few_steps(monkeypatch):
    asked = []
    real = Cron.next_after
    new = schedule(cron="* * * * *")
    monkeypatch.setattr(Cron, "next_after", lambda self, at: asked.append(at) or real(self, at))
    for grace in [600, 366 * 86_400]:
        decision = replace(new, grace=grace).decide(NOW + 365 * DAY, FREE)
        assert decision.runs == NOON + 365 * DAY
        assert decision.skipped == (Skipped(new.next, SkipReason.MISSED, MAX_COUNTED),)
        assert decision.schedule.next == NOON + 365 * DAY + MINUTE
    assert len(asked) < 2 * (MAX_COUNTED + 50)


def test_a_clock_that_is_set_back_brings_nothing_again():
    ran = schedule(cron="0 * * * *").decide(NOON + HOUR, FREE).schedule
    back = NOON + HOUR - 10 * MINUTE
    assert ran.decide(back, FREE) is None
    assert ran.realigned(back) is None
    off = ran.changed(back, enabled=False)
    assert off.changed(back, enabled=True).next == NOON + 2 * HOUR


def test_a_clock_that_was_far_ahead_does_not_stop_the_schedule():
    """For a minute the clock said that it was 2036; without a correction nothing would run until then."""
    ahead = schedule(cron="0 * * * *").decide(NOW + 3652 * DAY, FREE).schedule
    assert ahead.next > NOW + 3650 * DAY
    assert ahead.realigned(NOW + MINUTE).next == NOON + HOUR


def test_the_next_occurrence_follows_the_time_zone_database():
    """Berlin has left summer time since the occurrence was found."""
    stale = replace(schedule(cron="0 9 * * *", timezone="Europe/Berlin"), next=NOON + 19 * HOUR)
    assert stale.realigned(NOW).next == NOON + 20 * HOUR
    assert stale.realigned(NOW).realigned(NOW) is None
    assert schedule(enabled=False).realigned(NOW) is None
    assert stale.realigned(stale.next) is None, "it is due"


STEPS = st.lists(
    st.one_of(
        st.integers(1, 120),  # seconds that pass between two looks
        st.integers(3_000, 200_000),  # an outage, or a clock that is set forward
        st.integers(-86_000, -1),  # a clock that is set back
    ),
    max_size=30,
)
CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "30 2 * * *", "0 */2 * * *", "15,45 1-4 * * *"]
)
BERLIN = datetime(2026, 10, 24, 20, tzinfo=UTC)
"""Four hours before the clocks there are set back."""


@given(CRONS, STEPS, st.integers(1, 4_000))
def test_whatever_the_clock_does_each_occurrence_is_decided_on_once(cron, steps, grace):
    one = schedule(BERLIN, cron=cron, timezone="Europe/Berlin", grace=grace)
    times = Cron.parse(cron, "Europe/Berlin")
    now, ran = BERLIN, []
    for seconds in steps:
        now += timedelta(seconds=seconds)
        if one.last is not None and one.last > now + MAX_REWIND:
            break  # then the clock is taken to have been wrong
        one = one.realigned(now) or one
        decision = one.decide(now, FREE)
        if decision is None:
            continue
        if decision.runs is not None:
            assert timedelta(0) <= now - decision.runs <= timedelta(seconds=grace)
            assert times.next_after(decision.runs - timedelta(microseconds=1)) == decision.runs
            ran.append(decision.runs)
        assert one.last is None or one.last < decision.schedule.last <= now
        one = decision.schedule
        assert one.next == times.next_after(now)
    assert ran == sorted(set(ran))


def test_the_longest_timeout_is_that_of_an_operation():
    assert timedelta(seconds=module.MAX_SECONDS) == MAX_AHEAD
