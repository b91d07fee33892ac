"""The metrics of operations and of schedules.

What a node does it counts itself. What waits is in the table, which a scrape reads at most once in some seconds.

Tested in tests/gateway/web/test_operation_metrics.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.core.operation import UNFINISHED, Operation, State, Waits
from gateway.core.schedule import Occurrence, SkipReason
from gateway.core.times import Clock
from gateway.runtime.eventloop import cancel_and_wait
from gateway.store.engine import StoreUnavailable
from gateway.store.waits import Backlog, Waiting

EXAMINED: Final = 500
"""Due operations of which a reading finds out why they wait."""
GROUPS: Final = 20
"""Groups of a pool's operations that a reading looks at; each takes some 40 ms in a pool of 10,000 ICEs."""
FRESH: Final = 10.0
_SHARE: Final = 20
"""A reading that took long is shown this many times as long, so that readings take a twentieth of the time at most."""
PATIENCE: Final = 2.0
_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_SENT_NEXT: Final = "nothing"
_REQUESTED: Final = "requested"
_NOT_EXAMINED: Final = "not-examined"

_log = structlog.get_logger()


class OperationMetrics:
    """Counts what this node does with operations; see `node.operation_meters`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter(
            "ice_gateway_operations_ended",
            "Operations that this node ended, or that its page or API cancelled",
            ["state"],
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "ice_gateway_operation_wait_seconds",
            "From the request of an operation, or its run_at, until it was sent to an ICE",
            buckets=_SECONDS,
            registry=registry,
        )
        self.run_seconds = Histogram(
            "ice_gateway_operation_run_seconds",
            "From the sending of an operation until its ICE reported its end",
            buckets=_SECONDS,
            registry=registry,
        )
        self.occurrences = Counter(
            "ice_gateway_schedule_occurrences",
            "Occurrences of schedules that this node decided on: requested, or why they were left out",
            ["outcome"],
            registry=registry,
        )
        # Each from the start, since `increase` does not see how a series begins.
        for state in State:
            if state not in UNFINISHED:
                self.ended.labels(state.value)
        for outcome in (_REQUESTED, *SkipReason):
            self.occurrences.labels(outcome)

    def sent_operation(self, operation: Operation) -> None:
        """See `node.operation_meters`."""
        self.wait_seconds.observe(_between(operation.run_at or operation.created, operation.sent))

    def ended_operation(self, operation: Operation) -> None:
        """See `node.operation_meters`."""
        self.ended.labels(operation.state.value).inc()
        if operation.state in (State.SUCCEEDED, State.FAILED):
            self.run_seconds.observe(_between(operation.sent, operation.finished))

    def decided_occurrence(self, occurrence: Occurrence) -> None:
        """Count what became of an occurrence of a schedule, or of several that were missed."""
        self.occurrences.labels(occurrence.skipped or _REQUESTED).inc(occurrence.count)


def _between(start: datetime | None, end: datetime | None) -> float:
    """Seconds; several nodes may differ about the time."""
    return 0.0 if start is None or end is None else max(0.0, (end - start).total_seconds())


class BacklogMetrics(Collector):
    """Gauges of the unfinished operations of all ICEs and pools. While they cannot be read, there are none.

    Args:
        read: reads the backlog as it is at a time.
        clock: the present.
        fresh: seconds for which a reading is shown before the next scrape reads again.
        patience: seconds that a scrape waits for a reading; then it shows the last one.
    """

    def __init__(
        self,
        read: Callable[[datetime], Awaitable[Backlog]],
        clock: Clock,
        *,
        fresh: float = FRESH,
        patience: float = PATIENCE,
    ) -> None:
        self._read = read
        self._clock = clock
        self._fresh = fresh
        self._patience = patience
        self._backlog: Backlog | None = None
        self._reading: asyncio.Task[None] | None = None
        self._fresh_until = -float("inf")

    async def refresh(self) -> None:
        """Read again if the last reading is old, but wait for a bounded time."""
        if self._reading is None:
            if asyncio.get_running_loop().time() < self._fresh_until:
                return
            self._reading = asyncio.create_task(self._refresh(), name="backlog of the metrics")
        await asyncio.wait({self._reading}, timeout=self._patience)

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            await cancel_and_wait(self._reading)

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            self._backlog = await self._read(self._clock())
        except StoreUnavailable:
            self._backlog = None
        except Exception:  # noqa: BLE001 - the other metrics are shown
            _log.exception("backlog of the metrics not read")
            self._backlog = None
        finally:
            now = loop.time()
            self._fresh_until = now + max(self._fresh, _SHARE * (now - start))
            self._reading = None

    def collect(self) -> Iterable[Metric]:
        """The last reading."""
        everywhere = "; every node of a database says the same, so take the maximum"
        running = GaugeMetricFamily(
            "ice_gateway_operations_running", f"Operations that ICEs were sent{everywhere}"
        )
        queued = GaugeMetricFamily(
            "ice_gateway_operations_queued",
            f"Queued operations, by what they wait for{everywhere}",
            labels=["waits"],
        )
        longest = GaugeMetricFamily(
            "ice_gateway_operations_longest_wait_seconds",
            f"How long the oldest queued operation has been due, by what it waits for{everywhere}",
            labels=["waits"],
        )
        if self._backlog is not None:
            self._fill(self._backlog, running, queued, longest)
        return running, queued, longest

    def _fill(
        self,
        found: Backlog,
        running: GaugeMetricFamily,
        queued: GaugeMetricFamily,
        longest: GaugeMetricFamily,
    ) -> None:
        now = self._clock()
        running.add_metric([], found.running)
        queued.add_metric([Waits.RUN_AT], found.not_due)
        queued.add_metric([_NOT_EXAMINED], found.not_examined)
        for why in (None, *Waits):
            if why is not Waits.RUN_AT:
                label, waiting = why or _SENT_NEXT, found.due.get(why, Waiting(0, now))
                queued.add_metric([label], waiting.count)
                longest.add_metric([label], _between(waiting.since, now))
