"""Two copies of an ICE are found by their instances, and nothing else is taken for two copies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.duplicates import (
    EVENT_EVERY,
    MAX_SUPERSEDED,
    WINDOW,
    Copy,
    Duplicate,
    event_is_due,
    follow,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)


def copy(instance, address="192.0.2.1", hostname="desk"):
    return Copy(instance, address, hostname)


def found(hellos):
    """The numbers of the hellos, each an instance and minutes after `NOW`, at which two copies are found."""
    history, numbers = None, []
    for number, (instance, at) in enumerate(hellos):
        history, duplicate = follow(history, copy(instance), NOW + timedelta(minutes=at))
        if duplicate is not None:
            numbers.append(number)
        assert len(history.superseded) <= MAX_SUPERSEDED
        assert history.newest.instance not in history.superseded
    return numbers


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        # Two copies take the session from each other.
        ("abab", [3]),
        ("ababa", [3, 4]),
        ("aabbaabb", [6]),
        # Three do.
        ("abcabc", [4, 5]),
        # A copy comes back twice, between it others were started.
        ("abaca", [4]),
        # One return may be a virtual machine that was set back.
        ("aba", []),
        ("abac", []),
        # A laptop changes networks.
        ("aaaa", []),
        # A client restarts quickly, or a container gets another name.
        ("abcdefghijk", []),
        ("aabbccdd", []),
    ],
)
def test_two_copies_are_found_at_the_second_return(instances, expected):
    assert found([(instance, number) for number, instance in enumerate(instances)]) == expected


def test_two_returns_count_within_the_window_alone():
    window = WINDOW / timedelta(minutes=1)
    assert found([("a", 0), ("b", 1), ("a", 2), ("b", 2 + window)]) == [3]
    assert found([("a", 0), ("b", 1), ("a", 2), ("b", 2.1 + window)]) == []
    assert found([("a", 0), ("b", 1), ("a", 2), ("b", 2.1 + window), ("a", 3 + window)]) == [4]
    # However long ago the copy was superseded.
    assert found([("a", 0), ("b", 1), ("a", 9_000), ("b", 9_001)]) == [3]


def test_a_clock_that_is_set_back_hides_nothing():
    assert found([("a", 0), ("b", 1), ("a", 2), ("b", -5)]) == [3]


def test_both_copies_are_named_as_they_were_last_known():
    history, _ = follow(None, copy("a"), NOW)
    history, _ = follow(history, copy("b"), NOW)
    history, _ = follow(history, copy("a", "192.0.2.8", "lent"), NOW)
    history, _ = follow(history, copy("a", "192.0.2.9", "lent"), NOW)
    history, duplicate = follow(history, copy("b", "192.0.2.2", None), NOW)
    assert duplicate == Duplicate(copy("b", "192.0.2.2", None), copy("a", "192.0.2.9", "lent"))


def test_an_event_a_day_is_due():
    assert event_is_due(None, NOW)
    assert not event_is_due(NOW, NOW + EVENT_EVERY - timedelta(seconds=1))
    assert event_is_due(NOW, NOW + EVENT_EVERY)
    assert event_is_due(NOW, NOW - EVENT_EVERY), "the clock was set back by a day"


def by_reading_all(hellos):
    """The rule by the whole sequence, without a bounded memory."""
    returns, numbers = [], []
    for number, (instance, at) in enumerate(hellos):
        earlier = [each for each, _ in hellos[:number]]
        if instance in earlier and earlier[-1] != instance:
            if returns and at - returns[-1] <= WINDOW / timedelta(minutes=1):
                numbers.append(number)
            returns.append(at)
    return numbers


gaps = st.integers(0, 20)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), gaps), max_size=40))
def test_few_instances_are_found_as_if_everything_were_remembered(steps):
    at, hellos = 0, []
    for instance, gap in steps:
        at += gap
        hellos.append((instance, at))
    assert found(hellos) == by_reading_all(hellos)


@given(st.lists(st.tuples(st.booleans(), gaps), max_size=60))
def test_a_client_that_restarts_and_reconnects_is_never_two(steps):
    """Each start is a new instance; each may connect again any number of times."""
    at, instance, hellos = 0, 0, []
    for restarts, gap in steps:
        at += gap
        instance += restarts
        hellos.append((str(instance), at))
    assert found(hellos) == []


@given(st.lists(st.tuples(st.integers(0, 1_000_000), gaps), max_size=200))
def test_memory_is_bounded_whatever_arrives(steps):
    found([(str(instance), gap) for instance, gap in steps])
