"""A network that can be as bad as wished: namespaces of the kernel, and a switch between them in a thread.

Each place is a network namespace with a TUN device; the switch passes the IPv4 packets from one to another, and loses,
delays or throttles them by the addresses, in one direction or both. It needs root, Linux and /dev/net/tun. Nothing of
it outlives the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_TUN = Path("/dev/net/tun")
_WAIT = 0.2
_TCP = 6
_QUEUE = 32
"""Packets that wait at a throttled line; further ones are lost."""


@dataclass(frozen=True)
class Condition:
    """How one direction between two addresses is: seconds of delay, the part that is lost, or all of it.

    `rate` is in bytes of payload a second: bare acknowledgements pass.
    """

    delay: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    cut: bool = False


GOOD = Condition()


class _Packet(NamedTuple):
    """A packet on its way; `number` keeps the order."""

    at: float
    number: int
    target: int
    data: bytes
    throttled: bool


class _Flow(NamedTuple):
    """One direction of a TCP connection."""

    source: str
    source_port: int
    target: str
    target_port: int


def missing() -> str | None:
    """What this machine lacks for such a network, in a sentence; None if nothing."""
    if sys.platform != "linux":
        return "a bad network needs Linux"
    if os.geteuid() != 0:
        return "a bad network needs root, for its network namespaces"
    if not _TUN.exists():
        return f"a bad network needs {_TUN}"
    try:
        with contextlib.closing(Place("10.254.254.254")):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return (
            f"a bad network needs namespaces and TUN devices, which this machine refuses: {error}"
        )


def enter(namespace: str) -> None:
    """Move this thread, and all that it starts, into the namespace of this path."""
    handle = os.open(namespace, os.O_RDONLY)
    try:
        _system("setns", handle, _CLONE_NEWNET)
    finally:
        os.close(handle)


def _system(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Place:
    """A namespace with a TUN device that has these addresses; connections begin at the first."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.tun, self._namespace = _in_thread(self._make)

    @property
    def path(self) -> str:
        """The namespace, for `enter` in any process while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something there; the processes that it starts stay there."""

        def there() -> T:
            enter(self.path)
            return work(*arguments)

        return _in_thread(there)

    def close(self) -> None:
        os.close(self.tun)
        os.close(self._namespace)

    def _make(self) -> tuple[int, int]:
        _system("unshare", _CLONE_NEWNET)
        tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN_NO_PI))
            commands = [f"addr add {address}/24 dev tun0" for address in self.addresses]
            for command in (*commands, "link set tun0 up", "link set lo up"):
                subprocess.run(["ip", *command.split()], check=True)  # noqa: S607 - where it is differs
        except BaseException:
            os.close(tun)
            raise
        return tun, os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _in_thread(work: Callable[[], T]) -> T:
    """Do something in a thread of its own, since only that thread changes its namespace."""
    done: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return done[0]


class Network:
    """The switch. Conditions are set at any time, and hold for the packets that come after."""

    def __init__(self, places: list[Place], chance: random.Random) -> None:
        self.fates: Counter[str] = Counter()
        """Packets by what became of them."""
        self._places = {address: place.tun for place in places for address in place.addresses}
        self._tuns = [place.tun for place in places]
        self._chance = chance
        self._lock = threading.Lock()
        self._conditions: dict[tuple[str, str], Condition] = {}
        self._free: dict[tuple[str, str], float] = {}
        """When a throttled line has sent what waits."""
        self._flows: dict[_Flow, bool] = {}
        """The TCP flows that were seen, and whether they are forgotten."""
        self._queue: list[_Packet] = []
        self._numbers = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def set(self, source: str, target: str, condition: Condition) -> None:
        """Change one direction."""
        with self._lock:
            self._conditions[source, target] = condition

    def forget(self, one: str, other: str) -> None:
        """Lose whatever comes on the TCP connections that two addresses have now, for ever."""
        with self._lock:
            for flow in self._flows:
                if {flow.source, flow.target} == {one, other}:
                    self._flows[flow] = True

    def heal(self) -> None:
        """Make all lines good; what waits at a throttled one is lost, what is delayed still comes."""
        with self._lock:
            self._conditions.clear()
            self._free.clear()
            self.fates["throttled"] += sum(packet.throttled for packet in self._queue)
            self._queue = [packet for packet in self._queue if not packet.throttled]
            heapq.heapify(self._queue)

    def stop(self) -> None:
        self._stopping = True
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            with self._lock:
                self._deliver()
                until = self._queue[0].at if self._queue else time.monotonic() + _WAIT
            wait = min(_WAIT, max(0.0, until - time.monotonic()))
            for tun in select.select(self._tuns, [], [], wait)[0]:
                with contextlib.suppress(BlockingIOError):
                    data = os.read(tun, 65536)
                    with self._lock:
                        self._take(data)

    def _deliver(self) -> None:
        while self._queue and self._queue[0].at <= time.monotonic():
            packet = heapq.heappop(self._queue)
            with contextlib.suppress(OSError):  # a full device loses it
                os.write(packet.target, packet.data)

    def _take(self, data: bytes) -> None:
        if len(data) < 20 or data[0] >> 4 != 4:
            return
        source, target = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        device = self._places.get(target)
        if device is None:
            return
        condition = self._conditions.get((source, target), GOOD)
        payload = len(data) - 20
        if data[9] == _TCP:
            header = (data[0] & 15) * 4
            source_port, target_port = struct.unpack_from("!HH", data, header)
            payload = len(data) - header - (data[header + 12] >> 4) * 4
            if self._flows.setdefault(_Flow(source, source_port, target, target_port), False):
                self.fates["forgotten"] += 1
                return
        if condition.cut or self._chance.random() < condition.loss:
            self.fates["cut" if condition.cut else "lost"] += 1
            return
        now = time.monotonic()
        at, throttled = now + condition.delay, bool(condition.rate and payload)
        if throttled:
            if sum(packet.throttled for packet in self._queue) >= _QUEUE:
                self.fates["throttled"] += 1
                return
            at = max(at, self._free.get((source, target), 0.0)) + payload / condition.rate
            self._free[source, target] = at
        self.fates["delayed" if at > now else "passed"] += 1
        heapq.heappush(self._queue, _Packet(at, next(self._numbers), device, data, throttled))


@contextlib.contextmanager
def network(
    chance: random.Random, *places: tuple[str, ...]
) -> Iterator[tuple[Network, list[Place]]]:
    """Places by their addresses, joined by good lines."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(Place(*addresses))) for addresses in places]
        joined = Network(made, chance)
        stack.callback(joined.stop)
        yield joined, made
