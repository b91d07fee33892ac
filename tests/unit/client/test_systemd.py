"""What systemd is told: by datagrams to a socket like its own."""

import asyncio
import os
import socket

import pytest

from client.systemd import ServiceManager


@pytest.fixture
def systemd(tmp_path):
    """The socket that systemd reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(30)
        listener.bind(str(tmp_path / "notify"))
        yield listener


@pytest.fixture
def environ(systemd):
    return {"NOTIFY_SOCKET": systemd.getsockname(), "PATH": "/bin"}


def heard(systemd):
    return systemd.recv(4096).decode()


def test_it_says_how_the_service_is_doing(systemd, environ):
    manager = ServiceManager(environ)
    for act, message in (
        (lambda: manager.status("connected\nREADY=1\x1b[2J"), "STATUS=connected READY=1 [2J"),
        (manager.ready, "READY=1"),
        (manager.stopping, "STOPPING=1"),
    ):
        act()
        assert heard(systemd) == message
    manager.reloading()
    first, second = heard(systemd).split("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")


def test_a_long_status_is_cut(systemd, environ):
    ServiceManager(environ).status("x" * 9999)
    assert len(heard(systemd)) < 600


def test_an_abstract_socket_is_one_too(tmp_path):
    name = f"\0{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(30)
        listener.bind(name)
        ServiceManager({"NOTIFY_SOCKET": f"@{tmp_path}"}).ready()
        assert heard(listener) == "READY=1"


def test_child_processes_are_not_given_the_variables(systemd, environ):
    environ |= {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert ServiceManager(environ).watchdog == 1.0
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_who_is_not_watched_gives_no_sign(more, environ):
    assert ServiceManager(environ | more).watchdog is None


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1234", "notify"])
async def test_without_a_socket_nothing_is_said(address):
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    with manager.watched(asyncio.get_running_loop()):
        manager.ready()
        manager.reloading()
        manager.stopping()


async def test_a_full_socket_holds_nobody_up(systemd, environ):
    manager = ServiceManager(environ)
    for _ in range(2000):  # the kernel keeps some ten
        manager.ready()
    assert heard(systemd) == "READY=1"


async def test_the_loop_gives_signs_while_it_runs_and_none_afterwards(systemd, environ):
    loop = asyncio.get_running_loop()
    systemd.setblocking(False)
    with ServiceManager(environ | {"WATCHDOG_USEC": "2000"}).watched(loop):
        for _ in range(3):
            assert await loop.sock_recv(systemd, 4096) == b"WATCHDOG=1"
    # Whatever is due now has run before this.
    await asyncio.sleep(0)
    while True:
        try:
            systemd.recv(4096)
        except BlockingIOError:
            break
    await asyncio.sleep(0.01)
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)
