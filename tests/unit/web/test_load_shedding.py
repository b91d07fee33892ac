"""Which connections give way when file handles run short."""

from __future__ import annotations

import resource

import pytest
import structlog

from gateway.web.load_shedding import MARGIN, LoadShedding

LIMIT = 1024


class Connection:
    """Remembers that it was cut."""

    def __init__(self, name):
        self.name = name
        self.authenticated = False
        self.is_cut = False

    def __repr__(self):
        return self.name

    def abort(self):
        self.is_cut = True


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    """A process with few handles."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (LIMIT, LIMIT))


class Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def counted():
    return []


@pytest.fixture
def shedding(counted, time):
    return LoadShedding(counted.append, time)


def many(shedding, count, prefix="stranger"):
    connections = [Connection(f"{prefix}-{number}") for number in range(count)]
    for connection in connections:
        shedding.accepted(connection, 100)
    return connections


def test_strangers_give_way_oldest_first(shedding, counted):
    first, second, third = many(shedding, 3)
    assert shedding.shed() == 1
    assert (first.is_cut, second.is_cut, third.is_cut) == (True, False, False)
    assert shedding.shed(5) == 2
    assert shedding.shed() == 0
    assert sum(counted) == 3


def test_whoever_waits_gives_way_before_whoever_is_served(shedding):
    slow, idle = many(shedding, 2)
    shedding.served(slow)
    shedding.shed()
    assert (idle.is_cut, slow.is_cut) == (True, False)
    shedding.shed()
    assert slow.is_cut


def test_a_known_caller_gives_way_last_and_never_while_served(shedding):
    admin, stranger = many(shedding, 2)
    shedding.served(admin)
    shedding.mark_authenticated(admin)
    assert shedding.shed(5) == 1
    assert (admin.is_cut, stranger.is_cut) == (False, True)
    shedding.idle(admin)
    [other] = many(shedding, 1)
    shedding.shed()
    assert (admin.is_cut, other.is_cut) == (False, True)
    shedding.shed()
    assert admin.is_cut


def test_the_next_request_of_a_known_caller_has_to_be_authenticated_again(shedding):
    [admin] = many(shedding, 1)
    shedding.served(admin)
    shedding.mark_authenticated(admin)
    shedding.idle(admin)
    shedding.served(admin)
    assert shedding.shed() == 1
    assert admin.is_cut


def test_what_is_closed_or_an_ice_is_not_cut(shedding):
    gone, left = many(shedding, 2)
    shedding.forget(gone)
    assert shedding.shed(5) == 1
    assert (gone.is_cut, left.is_cut) == (False, True)


@pytest.mark.parametrize(
    ("handle", "cut"), [(LIMIT - MARGIN - 1, 0), (LIMIT - MARGIN, 2), (LIMIT - 1, 2)]
)
def test_a_new_connection_has_others_give_way_where_handles_run_short(shedding, handle, cut):
    before = many(shedding, 100)
    new = Connection("new")
    shedding.accepted(new, handle)
    assert [one.is_cut for one in before] == [True] * cut + [False] * (100 - cut)
    assert not new.is_cut


def test_a_few_connections_do_not_give_way(shedding):
    """What holds the handles is something else then."""
    before = many(shedding, 3)
    shedding.accepted(Connection("new"), LIMIT - 1)
    assert not any(one.is_cut for one in before)


def test_a_flood_is_one_line_a_minute(shedding, time):
    many(shedding, 100)
    with structlog.testing.capture_logs() as lines:
        for _ in range(10):
            shedding.shed()
        time.now = 61.0
        shedding.shed()
    assert [line["count"] for line in lines] == [1, 10]
