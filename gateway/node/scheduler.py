"""Wakes when a schedule is due, and has its occurrence decided on.

Every node has one; the database decides which node's transaction counts. While no schedule is enabled nothing is read,
except at the start, after an event of a schedule, and after an interruption of the log.

Tested in tests/gateway/node/test_scheduler.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from gateway.core.audit_event import AuditAction, LogEntry
from gateway.core.times import Clock
from gateway.runtime.eventloop import wait_at_most
from gateway.store.engine import StoreUnavailable

LOOK: Final = 30.0
"""Seconds between two looks at the clock, which may have been set."""
_STEP: Final = timedelta(seconds=5)
"""If the clock and the seconds that pass differ by this much more than before, the clock was set."""
_RETRY: Final = 1.0
_WAKING: Final = frozenset(
    {
        AuditAction.CREATE_SCHEDULE,
        AuditAction.CHANGE_SCHEDULE,
        AuditAction.CONFIRM_RESTORE,
    }
)

_log = structlog.get_logger()


class Decider(Protocol):
    """Decides on the occurrences of schedules. Every method raises `StoreUnavailable`."""

    async def earliest(self) -> datetime | None:
        """The earliest occurrence to decide on; None while there is none to come."""

    async def decide_due(self) -> None:
        """Decide on all occurrences that are due."""

    async def realign(self) -> None:
        """Correct the next occurrences after the clock was set, or the time zone database replaced."""


class Scheduler:
    """The task of a node that waits for the next occurrence.

    Args:
        clock: the present.
        monotonic: seconds that pass, unaffected by `clock`.
        held: whether the database is a restored backup that no admin has confirmed: then nothing is decided.
        look: seconds between two looks at the clock.
        retry: seconds until the next attempt while the database is away.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        held: Callable[[], bool],
        look: float = LOOK,
        retry: float = _RETRY,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._held = held
        self._look = look
        self._retry = retry
        self._wake = asyncio.Event()
        self._offset: timedelta | None = None
        """`_clock_offset` when the next occurrences were last corrected; None if they never were."""

    def apply(self, entry: LogEntry) -> None:
        """Look again if this event may have brought an earlier occurrence."""
        if entry.event.action in _WAKING:
            self.refresh()

    def refresh(self) -> None:
        """Look again, for example after an interruption of the log."""
        self._wake.set()

    async def run(self, decider: Decider) -> None:
        """Decide on each occurrence when it is due, until cancelled."""
        while True:
            self._wake.clear()
            if self._held():
                await self._wake.wait()
                continue
            try:
                if self._clock_was_set():
                    await decider.realign()
                    self._offset = self._clock_offset()
                await decider.decide_due()
                earliest = await decider.earliest()
            except StoreUnavailable:
                await asyncio.sleep(self._retry)
                continue
            except Exception:  # noqa: BLE001 - a fault here must not stop the gateway
                _log.exception("scheduler failed")
                await asyncio.sleep(self._look)
                continue
            await self._wait_until(earliest)

    async def _wait_until(self, earliest: datetime | None) -> None:
        """Wait for this occurrence, for an event that may bring an earlier one, or for a step of the clock."""
        if earliest is None:
            await self._wake.wait()
            return
        while not (self._wake.is_set() or self._clock_was_set()):
            left = (earliest - self._clock()).total_seconds()
            if left <= 0:
                return
            await wait_at_most(self._wake, min(left, self._look))

    def _clock_was_set(self) -> bool:
        """Whether the clock was set since the next occurrences were last corrected, or they never were."""
        return self._offset is None or abs(self._clock_offset() - self._offset) > _STEP

    def _clock_offset(self) -> timedelta:
        """How far the clock is ahead of `monotonic`; it changes only if the clock is set."""
        return timedelta(seconds=self._clock().timestamp() - self._monotonic())
