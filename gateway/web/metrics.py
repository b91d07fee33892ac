"""The metrics for Prometheus, served on a separate listener.

Tested in tests/gateway/node/test_session.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import structlog
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from client.protocol import CLOSINGS, CloseCode, EnrolmentCode, RefusalCode
from gateway.core.ice import IceType
from gateway.node.node import Node
from gateway.runtime.eventloop import listen_reason
from gateway.runtime.standard_streams import lost_lines
from gateway.services.login_failures import FailureReason
from gateway.web.connection import DEFAULT_TIMEOUTS, Timeouts
from gateway.web.operation_metrics import BacklogMetrics, OperationMetrics
from gateway.web.server import Runner

_log = structlog.get_logger()
_PRIVATE = 3000  # RFC 6455 section 7.4.2
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The gateway's metrics, in their own registry (not the global one)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge = functools.partial(Gauge, registry=self.registry)
        counter = functools.partial(Counter, registry=self.registry)
        histogram = functools.partial(Histogram, buckets=_FAST, registry=self.registry)
        self.sessions = gauge("ice_gateway_sessions", "Open sessions", ["ice_type"])
        self.admissions = counter("ice_gateway_admissions", "Admitted handshakes", ["ice_type"])
        self.refusals = counter("ice_gateway_refusals", "Refused handshakes", ["code"])
        self.token_look_ups = counter(
            "ice_gateway_token_look_ups",
            "Tokens of retired keys that were looked up by their hash",
            ["found"],
        )
        self.refused_credentials = counter(
            "ice_gateway_refused_credentials", "Refused logins and API tokens", ["why"]
        )
        self.enrolments = counter("ice_gateway_enrolments", "Tokens given to machines that enrol")
        self.refused_enrolments = counter(
            "ice_gateway_refused_enrolments", "Refused enrolments", ["code"]
        )
        self.closures = counter("ice_gateway_closures", "Sessions ended", ["code"])
        self.connections_shed = counter(
            "ice_gateway_connections_shed",
            "Connections without a session that were closed because file handles ran short",
        )
        self.admission_seconds = histogram(
            "ice_gateway_admission_seconds", "From the handshake's headers to the welcome"
        )
        self.duplicates_found = counter(
            "ice_gateway_duplicates", "Events about two running copies of one ICE"
        )
        self.ignored_logs = counter(
            "ice_gateway_operation_logs_ignored",
            "Texts that ICEs logged of an operation and that were not kept",
            ["why"],
        )
        self.webhook_messages = counter(
            "ice_gateway_webhook_messages",
            "Attempts to send a message to a webhook, and messages that were set aside",
            ["outcome"],
        )
        self.webhooks_failing = gauge(
            "ice_gateway_webhooks_failing",
            "Webhooks to which this node sends and whose next message was not taken yet",
        )
        self.drop_seconds = histogram(
            "ice_gateway_drop_seconds",
            "From the start of an action to the close frame of the session it ended",
        )
        self.tail_lag_seconds = gauge(
            "ice_gateway_tail_lag_seconds", "Age of the newest event when it was applied here"
        )
        self.tail_current = gauge(
            "ice_gateway_tail_current", "1 while this node knows every committed change"
        )
        self.fault = gauge(
            "ice_gateway_fault",
            "1 while something is wrong with this part; /readyz and the log say what",
            ["part"],
        )
        self.lease_seconds = gauge(
            "ice_gateway_lease_seconds",
            "Until this node's lease expires unless it is renewed; infinite without other nodes",
        )
        known: dict[Counter, Iterable[object]] = {
            self.refusals: RefusalCode,
            self.token_look_ups: ("yes", "no"),
            self.refused_credentials: FailureReason,
            self.refused_enrolments: EnrolmentCode,
            self.closures: (
                1000,
                1006,
                *CloseCode,
            ),  # also those that a peer or a broken connection makes
            self.ignored_logs: ("too-long", "too-many"),
            self.webhook_messages: ("taken", "failed", "set-aside"),
        }
        for one, values in known.items():
            for value in values:
                # From the start, since `increase` does not see how a series begins.
                one.labels(value)
        self.operations = OperationMetrics(self.registry)
        self.backlog: BacklogMetrics | None = None
        # See `node.Meters`.
        self.sent_operation = self.operations.sent_operation
        self.ended_operation = self.operations.ended_operation
        self.dropped = self.drop_seconds.observe
        self.applied = self.tail_lag_seconds.set
        self.duplicates = self.duplicates_found.inc
        self._sessions = {one: self.sessions.labels(one) for one in IceType}
        self._admissions = {one: self.admissions.labels(one) for one in IceType}
        self.registry.register(_LostLines())
        # Memory, CPU and file handles, under the names that common dashboards use.
        ProcessCollector(registry=self.registry)

    def admitted(self, ice_type: IceType) -> None:
        """See `node.Meters`."""
        self._sessions[ice_type].inc()
        self._admissions[ice_type].inc()

    def looked_up(self, found: bool) -> None:  # noqa: FBT001 - a callback's argument
        """See `node.Meters`."""
        self.token_look_ups.labels("yes" if found else "no").inc()

    def ended(self, ice_type: IceType, code: int) -> None:
        """See `node.Meters`."""
        self._sessions[ice_type].dec()
        # A peer may choose among two thousand private codes; count them in one series.
        private = code >= _PRIVATE and code not in CLOSINGS
        self.closures.labels("other" if private else str(code)).inc()

    def delivered(self, outcome: str) -> None:
        """See `node.Meters`."""
        self.webhook_messages.labels(outcome).inc()

    def log_ignored(self, why: str) -> None:
        """See `node.Meters`."""
        self.ignored_logs.labels(why).inc()

    def credentials_refused(self, why: str) -> None:
        """Count a refused login or API token."""
        self.refused_credentials.labels(why).inc()

    def watch(self, node: Node, backlog: BacklogMetrics) -> None:
        """Report at each scrape the backlog, whether the node knows every change, its lease, and its faults."""
        self.backlog = backlog
        self.registry.register(backlog)
        self.lease_seconds.set_function(lambda: node.lease.left)
        self.tail_current.set_function(lambda: float(node.log.current))
        self.webhooks_failing.set_function(
            lambda: sum(one.failing is not None for one in node.webhook_sender.webhooks)
        )
        for part, check in node.health.checks.items():
            self.fault.labels(part).set_function(_gauge_of(check.fault))

    async def expose(
        self, address: tuple[str, int] | None, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> web.AppRunner | None:
        """Serve /metrics on `address`; log a warning if it cannot be listened on."""
        if address is None:
            return None

        async def page(_: web.Request) -> web.Response:
            if self.backlog is not None:
                await self.backlog.refresh()
            return web.Response(
                body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
            )

        app = web.Application()
        app.router.add_get("/metrics", page)
        runner = Runner(app, shutdown_timeout=1.0, timeouts=timeouts, doors=1)
        try:
            await runner.listen(*address)
        except OSError as error:
            _log.warning(
                "metrics not served",
                listen=address,
                reason=f"{listen_reason(error)}; see metrics.listen",
            )
            await runner.cleanup()
            return None
        return runner


class _LostLines(Collector):
    """Lines that the process could not log, as counted by its streams."""

    def collect(self) -> Iterable[Metric]:
        name = "ice_gateway_log_lines_lost"
        yield CounterMetricFamily(name, "Lines lost by stderr or stdout", lost_lines())


def _gauge_of(fault: Callable[[], str | None]) -> Callable[[], float]:
    return lambda: float(fault() is not None)
