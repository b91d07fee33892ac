"""Signals that come before anybody can act on them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from gateway.runtime.signals import Signals


@pytest.fixture
def signals():
    heard = Signals()
    assert heard.install()
    yield heard
    heard.restore()


def test_a_stop_that_nobody_heard_is_acted_on_later(signals):
    done = []
    signals.on_hang_up(lambda: done.append("hang up"))
    signal.raise_signal(signal.SIGTERM)
    assert signals.stopping
    assert done == []
    signals.on_stop(lambda: done.append("stop"))
    assert done == ["stop"]
    signals.install_interrupt()
    signal.raise_signal(signal.SIGINT)
    assert done == ["stop", "stop"]
    signals.on_stop(None)
    signal.raise_signal(signal.SIGTERM)
    assert done == ["stop", "stop"]


def test_any_number_of_hang_ups_that_nobody_heard_is_one(signals):
    done = []
    for _ in range(3):
        signal.raise_signal(signal.SIGHUP)
    assert not signals.stopping
    signals.on_hang_up(lambda: done.append("hang up"))
    assert done == ["hang up"]
    signals.on_hang_up(None)
    signals.on_hang_up(lambda: done.append("another"))
    assert done == ["hang up"], "it has been acted on"
    signal.raise_signal(signal.SIGHUP)
    assert done == ["hang up", "another"]


def test_at_the_end_no_signal_changes_anything_and_a_test_process_is_left_as_it_was():
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    heard = Signals()
    assert heard.install()
    assert not heard.install(), "it does so already"
    try:
        heard.ignore()
        for number in numbers:
            signal.raise_signal(number)
        assert not heard.stopping
    finally:
        heard.restore()
    assert [signal.getsignal(number) for number in numbers] == before


def test_signals_are_heard_before_anything_that_takes_long_is_loaded():
    loaded = "import sys, gateway.__main__; print({'asyncio', 'click', 'msgspec'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, check=True, text=True
    )
    assert done.stdout == "set()\n"
