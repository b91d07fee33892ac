"""What is wrong with the gateway now: asked for by `/readyz` and the metrics, and said in the log.

One line when a fault begins and one when it ends, however many are refused meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.store.engine import Engine

INTERVAL: Final = 0.5
"""Seconds between two looks; a store that has failed is tried again at each."""
IDLE: Final = 20
"""Looks after which a store that seems well is tried, too: nobody may have written meanwhile."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Something without which the gateway is not whole.

    `fault` says what is wrong with it and what to do, or None; `needed` tells whether ICEs can be
    admitted without it, `meant` that somebody wants it so.
    """

    fault: Callable[[], str | None]
    needed: bool = True
    meant: bool = False


class Health:
    """Looks at `checks`, by name, of which one is the engine's."""

    def __init__(self, engine: Engine, checks: Mapping[str, HealthCheck]) -> None:
        self._engine = engine
        self.checks = checks
        self._said: dict[str, str] = {}

    def faults(self, *, needed: bool | None = None) -> dict[str, str]:
        """What is wrong now, by name; of what is `needed`, of what is not, or of all."""
        found = {
            name: check.fault()
            for name, check in self.checks.items()
            if needed in (None, check.needed)
        }
        return {name: text for name, text in found.items() if text is not None}

    @property
    def reason(self) -> str | None:
        """Why ICEs are not admitted; None while they are."""
        # Several may have one cause.
        return ". ".join(dict.fromkeys(self.faults(needed=True).values())) or None

    async def run(self) -> None:
        """Look until cancelled."""
        looks = 0
        while True:
            looks += 1
            self.look()
            if self._engine.fault is not None or looks % IDLE == 0:
                await self._engine.try_out()
            self.look()
            await asyncio.sleep(INTERVAL)

    def look(self) -> None:
        """Say what has begun and what has ended since the last look."""
        now = self.faults()
        for name, text in now.items():
            if name not in self._said:
                say = _log.warning if self.checks[name].meant else _log.error
                say("fault", part=name, reason=text)
        for name in self._said.keys() - now.keys():
            _log.warning("fault over", part=name, reason=self._said[name])
        self._said = now
