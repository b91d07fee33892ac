"""What is wrong is said once, asked for at any time, and tried again until it is over."""

from __future__ import annotations

import asyncio
import errno
import os
import resource

import pytest

from gateway.node.health import Health, HealthCheck
from gateway.node.heartbeat import Heartbeat
from gateway.runtime import fd_limits
from gateway.runtime.eventloop import suppress_handle_errors
from gateway.runtime.fd_limits import shortage


class Store:
    """An engine that is well again after a number of attempts."""

    def __init__(self, attempts=0):
        self.attempts = attempts
        self.tried = 0

    @property
    def fault(self):
        return "the disk is full" if self.tried < self.attempts else None

    async def try_out(self):
        self.tried += 1


@pytest.fixture
def looking(monkeypatch):
    """Run vitals for a number of looks, without the time between them."""

    async def run(looked, count):
        slept = 0

        async def sleep(_):
            nonlocal slept
            slept += 1
            if slept == count:
                raise asyncio.CancelledError

        monkeypatch.setattr(asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await looked.run()

    return run


async def test_a_fault_is_said_when_it_begins_and_when_it_ends(looking, said):
    store = Store(attempts=5)
    await looking(Health(store, {"store": HealthCheck(lambda: store.fault)}), 10)
    assert said == [
        {"part": "store", "reason": reason, "event": event, "log_level": level}
        for event, level in (("fault", "error"), ("fault over", "warning"))
        for reason in ["the disk is full"]
    ]
    assert store.tried == 5, "a store that is well again need not be tried"


async def test_a_store_that_nobody_uses_is_tried_now_and_then(looking):
    store = Store()
    await looking(Health(store, {}, probe_every=5), 20)
    assert store.tried == 4


async def test_a_fault_between_two_looks_is_said_nevertheless(looking, said):
    store = Store(attempts=1)
    await looking(Health(store, {"store": HealthCheck(lambda: store.fault)}), 1)
    assert [line["event"] for line in said] == ["fault", "fault over"]


def test_faults_are_told_by_what_is_needed():
    looked = Health(
        Store(),
        {
            "store": HealthCheck(lambda: None),
            "keys": HealthCheck(lambda: "no file", required=False),
            "handles": HealthCheck(lambda: "too few"),
        },
    )
    assert looked.faults() == {"keys": "no file", "handles": "too few"}
    assert looked.faults(required_only=True) == {"handles": "too few"}


# --- file handles --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "lowest", "short"),
    [
        (1024, 959, False),
        (1024, 960, True),
        (1024, 1023, True),
        (80, 59, False),
        (80, 60, True),
        (resource.RLIM_INFINITY, 10**6, False),
    ],
)
def test_some_handles_are_kept_free(monkeypatch, limit, lowest, short):
    monkeypatch.setattr(fd_limits.resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(fd_limits.os, "open", lambda *_: lowest)
    monkeypatch.setattr(fd_limits.os, "close", lambda _: None)
    found = shortage()
    assert (found is not None) is short
    assert not short or (str(limit) in found and "raise the limit" in found)


def test_no_handle_at_all_is_a_shortage(monkeypatch):
    def full(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(fd_limits.os, "open", full)
    assert "Too many open files" in shortage()


async def test_asyncio_does_not_flood_the_log_for_want_of_handles():
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: said.append(context["message"]))
    with suppress_handle_errors(loop):
        for message in ("socket.accept() out of system resource", "a mistake of ours"):
            loop.call_exception_handler({"message": message})
    loop.call_exception_handler({"message": "later"})
    loop.set_exception_handler(None)
    assert said == ["a mistake of ours", "later"]


# --- loop time -----------------------------------------------------------------------------------


class Quiet:
    """A session that was last heard at `heard`."""

    def __init__(self, heard):
        self.transport = self
        self.heard = heard
        self.ping_due = 0.0
        self.closed = None
        self.pings = 0

    def ping(self):
        self.pings += 1

    def close(self, code):
        self.closed = code


def test_the_silent_are_dropped_and_the_others_are_not():
    silent, heard = Quiet(0.0), Quiet(31.0)
    heartbeat = Heartbeat([silent, heard], 30.0)
    for now in range(1, 61):
        heartbeat.sweep(float(now))
    assert (silent.closed, heard.closed) == (4203, None)


def test_who_falls_silent_between_two_pings_is_dropped_in_time():
    """Not only at the next ping, which may be a whole heartbeat later."""
    session = Quiet(0.0)
    session.ping_due = 15.0
    heartbeat = Heartbeat([session], 30.0)
    heartbeat.sweep(15.0)
    session.heard = 16.0
    dropped = []
    for now in range(16, 100):
        heartbeat.sweep(float(now))
        if session.closed is not None:
            dropped.append(now)
    assert dropped[0] == 16 + 60
    assert session.pings == 3


def test_nobody_is_dropped_because_the_gateway_slept():
    """A machine that was stopped for an hour has asked nobody, and read nothing."""
    session = Quiet(20.0)
    heartbeat = Heartbeat([session], 30.0)
    heartbeat.sweep(25.0)
    pings = session.pings
    heartbeat.sweep(3625.0)
    assert session.closed is None, "it was the gateway that was silent"
    assert session.pings == pings + 1, "it was expected to be asked"
    heartbeat.sweep(3654.0)
    assert session.closed is None, "it has a heartbeat's time to answer"
    heartbeat.sweep(3655.0)
    assert session.closed == 4203, "who has not answered by then is silent"
