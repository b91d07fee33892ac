"""What a gateway's process runs with."""

from __future__ import annotations

import gc
import resource
import sys

import pytest

from gateway.runtime import eventloop
from gateway.runtime.fd_limits import OVERHEAD, is_among_the_last


@pytest.fixture
def limit(monkeypatch):
    def set_to(number):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (number, number))

    return set_to


@pytest.mark.parametrize(
    ("handles", "enough"),
    [(1000 + OVERHEAD, True), (1000 + OVERHEAD - 1, False), (resource.RLIM_INFINITY, True)],
)
def test_fewer_handles_than_connections_are_told(limit, handles, enough):
    limit(handles)
    told = eventloop.too_few_handles(1000)
    assert (told is None) is enough
    if told is not None:
        assert "ice.max_connections is 1,000" in told
        assert f"{handles:,} file handles" in told


def test_what_it_runs_with(limit):
    limit(20_000)
    assert "20,000 file handles" in eventloop.describe()
    limit(resource.RLIM_INFINITY)
    assert "any number of file handles" in eventloop.describe()
    assert "Python 3." in eventloop.describe()


@pytest.mark.parametrize(("handle", "last"), [(935, False), (936, True), (999, True)])
def test_the_last_handles_are_kept_free(limit, handle, last):
    limit(1000)
    assert is_among_the_last(handle) is last
    limit(resource.RLIM_INFINITY)
    assert not is_among_the_last(handle)


def test_it_runs_with_a_collector_for_many_long_lived_objects(monkeypatch):
    set_to = []
    monkeypatch.setattr(gc, "set_threshold", lambda *numbers: set_to.append(numbers))
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    ran = []

    async def work():
        ran.append(True)

    eventloop.run(work())
    assert ran == [True]
    assert set_to == [(50_000, 50, 100)]
