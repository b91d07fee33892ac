"""Many ICEs in one process, which obeys lines of JSON on stdin and answers on stdout.

    python -m tests.scale.generator '{"first": 0, "count": 1000, "sources": ["127.0.1.1"], "ports": [8441]}'

One epoll, no task or object of a library for each connection: the gateways share the machine with it. A proof is signed
at the moment of its handshake, since it is good for a minute and once. As a balancer by the number of connections
would, it sends an ICE to the node with the fewest of its own; one that refuses connections gets none for a second.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.backoff import Stopped
from gateway.core.dpop import Jwk, thumbprint_of
from gateway.runtime.fd_limits import raise_limit
from tests.scale.agent import (
    IDLE,
    LEAVING,
    OPEN,
    OPENING,
    STOPPED,
    WELCOMED,
    Admitted,
    Agent,
    Rejected,
    leaving,
)

_HANDSHAKE = 30.0
_SILENCE = 60.0
"""Two heartbeats without anything: the ICE comes anew."""
_AWAY = (5.0, 15.0)
"""Seconds for which one that goes by itself stays away."""
_SWEEP = 2.0
_NODE_DOWN = 1.0
_BIND_ADDRESS_NO_PORT = 24
_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
Command = dict[str, Any]


class Generator:
    """ICEs `first` to `first + count`, from these addresses to these ports."""

    def __init__(self, first: int, count: int, sources: list[str], ports: list[int]) -> None:
        self.agents = [Agent(first + number) for number in range(count)]
        self._first = first
        self._sources = sources
        self._ports = ports
        self._load = [0] * len(ports)
        self._down = [0.0] * len(ports)
        self._poll = select.epoll()
        self._by_fd: dict[int, Agent] = {}
        self._due: list[tuple[float, int]] = []
        """When which agents come, by their place."""
        self._waiting: list[int] = []
        """Agents whose time has come while `at_once` others were in a handshake."""
        self._at_once = 1 << 30
        self._in_flight = 0
        self._churn = 0.0
        self._churned = 0.0
        self._next = 0
        self.connected = 0
        self._report = Figures()
        self._swept = 0.0
        self._ended = False

    def run(self, read: Callable[[], list[Command]], write: Callable[[Any], None]) -> None:
        """Obey until `end` comes."""
        self._write = write
        self._poll.register(0, select.EPOLLIN)
        while not self._ended:
            now = time.monotonic()
            due = self._due[0][0] - now if self._due else 1.0
            pause = max(0.0, min(due, 0.05 if self._churn else 1.0))
            for fd, events in self._poll.poll(pause, 512):
                if fd == 0:
                    for command in read():
                        self._obey(command)
                elif (agent := self._by_fd.get(fd)) is not None:
                    self._step(agent, events)
            self._advance(time.monotonic())

    def _obey(self, command: Command) -> None:
        match command.pop("do"):
            case "tokens":
                tokens = Path(command["file"]).read_text().split()
                for agent, token in zip(self.agents, tokens, strict=True):
                    agent.token = token
                self._write({"done": "tokens"})
            case "connect":
                self._at_once = command["at_once"]
                now = time.monotonic()
                self._due = [(now, place) for place in range(len(self.agents))]
            case "churn":
                self._churn, self._churned = command["per_s"], time.monotonic()
            case "break":
                self._at_once = 1 << 30
                self._break()
            case "report":
                self._write({"done": "report", **self._figures()})
            case "end":
                self._ended = True
            case other:
                raise ValueError(f"unknown command {other!r}")

    def _figures(self) -> dict[str, Any]:
        figures, self._report = self._report, Figures()
        stopped = sum(agent.state == STOPPED for agent in self.agents)
        return {**vars(figures), "connected": self.connected, "stopped": stopped}

    def _advance(self, now: float) -> None:
        """Let those come whose time it is, those go who take turns, and those end who wait in vain."""
        while self._due and self._due[0][0] <= now:
            self._waiting.append(heapq.heappop(self._due)[1])
        room = self._at_once - self._in_flight
        for place in self._waiting[: max(0, room)]:
            self._dial(self.agents[place], now)
        del self._waiting[: max(0, room)]
        while self._churn and self._churned + 1 / self._churn <= now:
            self._churned += 1 / self._churn
            self._next = (self._next + 7919) % len(self.agents)
            agent = self.agents[self._next]
            if agent.state == OPEN:
                agent.state = LEAVING
                self._send(agent, leaving())
                self._report.went += 1
        if now >= self._swept + _SWEEP:
            self._swept = now
            for agent in [*self._by_fd.values()]:
                if agent.state in (OPENING, WELCOMED) and now - agent.since > _HANDSHAKE:
                    self._report.errors["handshake timeout"] += 1
                    self._lose(agent, now)
                elif agent.state in (OPEN, LEAVING) and now - agent.heard > _SILENCE:
                    self._report.errors["silence"] += 1
                    self._lose(agent, now)

    def _dial(self, agent: Agent, now: float) -> None:
        if agent.state != IDLE:
            return
        up = [node for node, until in enumerate(self._down) if until <= now]
        agent.node = min(up or range(len(self._ports)), key=self._load.__getitem__)
        agent.since = agent.heard = now
        agent.state = OPENING
        dialled = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The port is chosen at the connect, where it need only differ for one destination.
        dialled.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        dialled.bind((self._sources[agent.number % len(self._sources)], 0))
        dialled.connect_ex(("127.0.0.1", self._ports[agent.node]))
        agent.fd = dialled.detach()
        self._by_fd[agent.fd] = agent
        self._load[agent.node] += 1
        self._in_flight += 1
        self._poll.register(agent.fd, select.EPOLLOUT | _READ)

    def _step(self, agent: Agent, events: int) -> None:
        now = time.monotonic()
        if agent.state == OPENING and events & select.EPOLLOUT and not events & select.EPOLLERR:
            self._poll.modify(agent.fd, _READ)
            self._send(agent, agent.request())
            if not events & select.EPOLLIN:
                return
        data = self._read(agent, now)
        if data is None:
            return
        if not data:
            self._lose(agent, now)
            return
        answer, outcome = agent.received(data, now)
        if answer:
            self._send(agent, answer)
        if isinstance(outcome, Admitted):
            self._admitted(agent, now)
        elif isinstance(outcome, Rejected):
            self._rejected(agent, outcome, now)
        if events & select.EPOLLRDHUP and agent.fd >= 0:
            self._lose(agent, now)

    def _read(self, agent: Agent, now: float) -> bytes | None:
        """What came; nothing at the end of the stream, None if there is none yet. Why a handshake ended is counted."""
        try:
            data = os.read(agent.fd, 65536)
            why = "end of stream in a handshake"
        except BlockingIOError:
            return None
        except OSError as error:
            data, why = b"", type(error).__name__
            if isinstance(error, ConnectionRefusedError):
                self._down[agent.node] = now + _NODE_DOWN
        if not data and agent.state in (OPENING, WELCOMED):
            self._report.errors[why] += 1
        return data

    def _send(self, agent: Agent, data: bytes) -> None:
        """All of it fits into the socket's buffer: an ICE sends some hundred bytes, and then waits."""
        try:
            sent = os.write(agent.fd, data)
        except OSError:
            return  # reading says what became of the connection
        if sent != len(data):
            raise RuntimeError(f"{sent} of {len(data)} bytes went into a socket's buffer")

    def _admitted(self, agent: Agent, now: float) -> None:
        self._in_flight -= 1
        self.connected += 1
        agent.opened = now
        self._report.admitted += 1
        self._report.last_admitted = now
        self._report.latencies.append(round(now - agent.since, 4))
        if agent.left:
            self._report.absences.append(round(now - agent.left, 3))
            agent.left = 0.0

    def _rejected(self, agent: Agent, rejected: Rejected, now: float) -> None:
        self._report.refused[rejected.code] += 1
        self._release(agent)
        self._again(agent, agent.refused(rejected), now)

    def _lose(self, agent: Agent, now: float) -> None:
        """The connection is over."""
        before = agent.state
        self._release(agent)
        if before in (OPENING, WELCOMED):
            rejected = Rejected("unreachable", None, retry=True)
            self._again(agent, agent.refused(rejected), now)
            return
        if before == LEAVING and agent.close_code in (1000, 1006):
            agent.left = 0.0
            self._again(agent, random.uniform(*_AWAY), now)
            return
        self._report.closed[str(agent.close_code)] += 1
        agent.left = agent.left or now
        wait = agent.closed(now)
        if isinstance(wait, Stopped):
            self._write({"ended": agent.number, "code": agent.close_code, "at": agent.left})
        self._again(agent, wait, now)

    def _release(self, agent: Agent) -> None:
        if agent.state in (OPENING, WELCOMED):
            self._in_flight -= 1
        else:
            self.connected -= 1
        self._load[agent.node] -= 1
        del self._by_fd[agent.fd]
        os.close(agent.fd)
        agent.fd = -1
        agent.buffer = b""
        agent.state = IDLE

    def _again(self, agent: Agent, wait: float | Stopped, now: float) -> None:
        agent.close_code, agent.close_reason = 1006, ""
        if isinstance(wait, Stopped):
            agent.state = STOPPED
            return
        heapq.heappush(self._due, (now + wait, agent.number - self._first))

    def _break(self) -> None:
        """Reset every connection, as when a network goes away."""
        now = time.monotonic()
        for agent in [*self._by_fd.values()]:
            with socket.socket(fileno=os.dup(agent.fd)) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            self._lose(agent, now)


class Figures:
    """What has happened since the last report."""

    def __init__(self) -> None:
        self.admitted = 0
        self.went = 0
        self.last_admitted = 0.0
        """By `time.monotonic`."""
        self.refused: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies: list[float] = []
        """Seconds from the connect to the welcome."""
        self.absences: list[float] = []
        """Seconds from the end of a session to the next welcome, but of those that went by themselves."""


def thumbprint(agent: Agent) -> str:
    """As the gateway keeps it of a registered ICE."""
    return thumbprint_of(Jwk(**agent.jwk))


def main() -> None:
    given = json.loads(sys.argv[1])
    raise_limit()
    partial = b""

    def read() -> list[Command]:
        nonlocal partial
        data = os.read(0, 65536)
        if not data:
            sys.exit("nobody is there any more")
        *lines, partial = (partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def write(message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    thumbprints = Path(given.pop("thumbprints"))
    generator = Generator(**given)
    thumbprints.write_text("\n".join(map(thumbprint, generator.agents)))
    write({"done": "keys"})
    generator.run(read, write)


if __name__ == "__main__":
    main()
