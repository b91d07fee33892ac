"""Pings all sessions and drops silent ones in one sweep, without a timer per connection.

Tested in tests/unit/node/test_health.py and tests/gateway/node/test_session.py.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable
from typing import Final

from client.protocol import CloseCode
from gateway.node.session import Session

_STEPS: Final = 20
"""Sweeps per heartbeat: they spread the pings, and a silent session is dropped at most one sweep late."""
SILENT: Final = 2
"""Heartbeats of silence after which a session is dropped."""


class Heartbeat:
    """Pings each of `sessions` every `interval` seconds."""

    def __init__(self, sessions: Iterable[Session], interval: float) -> None:
        self.interval = interval
        self._sessions = sessions
        self._last_sweep = math.inf
        self._resumed = -math.inf

    def schedule(self, session: Session) -> None:
        """Set the first ping of a new session, at a random time so that many new ones are spread."""
        now = asyncio.get_running_loop().time()
        session.ping_due = now + self.interval * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self.interval / _STEPS)
            self.sweep(asyncio.get_running_loop().time())

    def sweep(self, now: float) -> None:
        """Ping the sessions that are due at `now` (the loop's time), and drop silent ones."""
        if now - self._last_sweep >= self.interval:
            # The gateway itself slept, for example on a suspended machine, and could neither ping nor receive.
            self._resumed = now
        self._last_sweep = now
        for session in self._sessions:
            # Few sessions are due in one sweep: this is the only check of the others.
            if now < session.ping_due:
                continue
            silent_at = max(session.transport.heard, self._resumed - self.interval) + (
                SILENT * self.interval
            )
            if now >= silent_at:
                session.close(CloseCode.HEARTBEAT_TIMEOUT)
            else:
                session.ping_due = min(now + self.interval, silent_at)
                session.transport.ping()
