"""The sockets of an address: had by nobody else, with room for a fleet."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys

import pytest

from gateway.runtime.sockets import QUEUES, CannotBind, host_port, open_listeners
from tests.support.ice import PATIENCE


def test_nobody_else_has_the_address():
    """Not even a second gateway, which has several sockets of it, too."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(one) for one in open_listeners(["127.0.0.1"], 0)]
        [address] = {one.getsockname() for one in found}
        with pytest.raises(CannotBind, match="in use"):
            open_listeners(["127.0.0.1"], address[1])
        with pytest.raises(OSError, match="in use"):
            socket.create_server(address)
    for one in open_listeners(["127.0.0.1"], address[1]):
        one.close()  # it was let go again


@pytest.mark.skipif(sys.platform != "linux", reason="one socket would get all")
def test_more_may_wait_than_one_queue_holds(monkeypatch):
    """Whoever finds no room is not heard for a second: a fleet that comes back at once has to fit."""
    listen = socket.socket.listen
    # As where net.core.somaxconn is 1.
    monkeypatch.setattr(socket.socket, "listen", lambda one, _: listen(one, 1))
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(one) for one in open_listeners(["127.0.0.1"], 0)]
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(40):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(found[0].getsockname())
            selector.register(one, selectors.EVENT_WRITE)
        connected = 0
        while connected <= 2:  # one more waits in a queue than it is asked to hold
            ready = selector.select(PATIENCE)
            assert ready, (
                f"expected {len(found)} queues to take more than the two that one holds, got {connected}"
            )
            for key, _ in ready:
                selector.unregister(key.fileobj)
            connected += len(ready)


# --- several hosts ---------------------------------------------------------------------------------


def addresses(found):
    return {one.getsockname()[:2] for one in found}


def test_every_host_is_bound_on_one_port_and_an_address_that_two_have_once():
    found = open_listeners(["127.0.0.1", "::1", "localhost"], 0)
    with contextlib.ExitStack() as stack:
        for one in found:
            stack.enter_context(one)
        [port] = {one.getsockname()[1] for one in found}
        assert addresses(found) == {("127.0.0.1", port), ("::1", port)}
        assert len(found) == 2 * QUEUES
        for address in addresses(found):
            stack.enter_context(socket.create_connection(address))


def test_every_address_of_both_families_at_once():
    found = open_listeners(["::", "0.0.0.0"], 0)  # noqa: S104 - that is the point
    with contextlib.ExitStack() as stack:
        for one in found:
            stack.enter_context(one)
        [port] = {one.getsockname()[1] for one in found}
        for host in ("127.0.0.1", "::1"):
            stack.enter_context(socket.create_connection((host, port)))


@pytest.mark.parametrize("other", ["192.0.2.1", "taken", "no such host.invalid"])
def test_all_hosts_are_bound_or_none_and_the_one_that_fails_is_named(other):
    with socket.create_server(("127.0.0.2", 0)) as held:
        host = "127.0.0.2" if other == "taken" else other
        port = held.getsockname()[1]
        with pytest.raises(CannotBind) as refused:
            open_listeners(["127.0.0.1", host], port)
        assert refused.value.host == host
        assert refused.value.strerror
        with socket.create_server(("127.0.0.1", port)):
            pass  # it was let go again


def test_a_place_is_written_as_in_a_url():
    assert host_port("::1", 8440) == "[::1]:8440"
    assert host_port("gateway.example", 8440) == "gateway.example:8440"
