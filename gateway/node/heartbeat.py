"""One sweep pings every session and drops the silent: no timer per connection."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable
from typing import Final

from client.protocol import CloseCode
from gateway.node.session import Session

_STEPS: Final = 20
"""Sweeps per heartbeat: pings are spread, and a silent session is dropped at most a step late."""
SILENT: Final = 2
"""Heartbeats of silence after which a session is dropped."""


class Heartbeat:
    """Pings each of `sessions` every `interval` seconds."""

    def __init__(self, sessions: Iterable[Session], interval: float) -> None:
        self.interval = interval
        self._sessions = sessions
        self._swept = math.inf
        self._awake = -math.inf

    def schedule(self, session: Session) -> None:
        """Give a new session its place, so that a storm of them is not pinged all at once."""
        now = asyncio.get_running_loop().time()
        session.ping_due = now + self.interval * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self.interval / _STEPS)
            self.sweep(asyncio.get_running_loop().time())

    def sweep(self, now: float) -> None:
        """Ping who is due at `now` (the loop's time), drop who was silent for too long."""
        if now - self._swept >= self.interval:
            # It was the gateway that slept (a stopped machine, say): nobody was asked, or heard.
            self._awake = now
        self._swept = now
        for session in self._sessions:
            heard = max(session.transport.heard, self._awake - self.interval)
            if now - heard >= SILENT * self.interval:
                session.close(CloseCode.HEARTBEAT_TIMEOUT)
            elif now >= session.ping_due:
                session.ping_due = now + self.interval
                session.transport.ping()
