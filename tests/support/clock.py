"""The clocks that tests move."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from gateway.core.times import utc_now


class StandingClock:
    """A clock that stands until a test sets it (`now`), or lets time pass."""

    def __init__(self) -> None:
        self.now = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
        self.passed = 0.0
        """Seconds."""

    def __call__(self) -> datetime:
        return self.now + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        """Seconds that have passed, whatever the clock was set to."""
        return self.passed

    def skip(self, **time: float) -> None:
        """Let time pass; arguments as those of `timedelta`."""
        self.passed += timedelta(**time).total_seconds()

    def unix(self, offset: float = 0.0) -> float:
        """The present in seconds since 1970, or so many seconds later."""
        return self().timestamp() + offset


class RunningClock:
    """A clock that goes as the machine's does, and is ahead of it."""

    def __init__(self, begin: datetime | None = None) -> None:
        """It begins at the present where no other time is given."""
        self.ahead = timedelta() if begin is None else begin - utc_now()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead

    def monotonic(self) -> float:
        """Seconds that pass, with those that were skipped."""
        return time.monotonic() + self.ahead.total_seconds()

    def skip(self, **time: float) -> None:
        """Let time pass; arguments as those of `timedelta`."""
        self.ahead += timedelta(**time)

    def at(self, seconds: float) -> str:
        """The time so many seconds from now, as the API takes it."""
        return (self() + timedelta(seconds=seconds)).isoformat()


class FastClock:
    """A clock that goes `pace` times as fast since `began`, in seconds since 1970; the same in each process."""

    def __init__(self, began: float, pace: float) -> None:
        self._began = began
        self._pace = pace

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.unix(), UTC)

    def unix(self) -> float:
        """The present in seconds since 1970."""
        return self._began + self._pace * (time.time() - self._began)
