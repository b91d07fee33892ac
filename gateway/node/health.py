"""The present faults of the gateway, for `/readyz`, the metrics and the log.

The log gets one line when a fault begins and one when it ends, no matter how many ICEs are refused meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.store.engine import Engine

INTERVAL: Final = 0.5
"""Seconds between two checks; each tries a failed store again."""
PROBE_EVERY: Final = 20
"""After so many checks a store without a fault is tried, too: it may have failed without any write."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Something that the gateway depends on.

    Args:
        fault: says what is wrong and what to do; None while nothing is.
        required: no ICE is admitted during a fault.
        intended: an admin caused the fault on purpose.
    """

    fault: Callable[[], str | None]
    required: bool = True
    intended: bool = False


class Health:
    """Evaluates `checks`, by name, and retries the engine."""

    def __init__(
        self, engine: Engine, checks: Mapping[str, HealthCheck], probe_every: int = PROBE_EVERY
    ) -> None:
        self._engine = engine
        self._probe_every = probe_every
        self.checks = checks
        self._logged: dict[str, str] = {}

    def faults(self, *, required_only: bool = False) -> dict[str, str]:
        """The present faults by the name of their check."""
        found = {
            name: check.fault()
            for name, check in self.checks.items()
            if check.required or not required_only
        }
        return {name: text for name, text in found.items() if text is not None}

    @property
    def reason(self) -> str | None:
        """Why ICEs are not admitted; None while they are."""
        # One cause may fail several checks with the same text.
        return ". ".join(dict.fromkeys(self.faults(required_only=True).values())) or None

    async def run(self) -> None:
        """Check until cancelled."""
        checks = 0
        while True:
            checks += 1
            self.log_changes()
            if self._engine.fault is not None or checks % self._probe_every == 0:
                await self._engine.try_out()
                self.log_changes()
            await asyncio.sleep(INTERVAL)

    def log_changes(self) -> None:
        """Log the faults that began or ended since the last call."""
        now = self.faults()
        for name, text in now.items():
            if name not in self._logged:
                log = _log.warning if self.checks[name].intended else _log.error
                log("fault", part=name, reason=text)
        for name in self._logged.keys() - now.keys():
            _log.warning("fault over", part=name, reason=self._logged[name])
        self._logged = now
