"""The composition root: opens the store and the keys, makes the node and the services, and listens.

Tested in tests/gateway/cli/test_serve.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp.abc import AbstractResolver

from client.protocol import PATH
from gateway.admin import AdminContext, api_app, pages_app
from gateway.admin.event_streams import EventStreams, StreamLimits
from gateway.core.text import printable
from gateway.core.times import Clock, utc_now
from gateway.node.membership import NodeIdentity
from gateway.node.node import Node, NodeLimits
from gateway.runtime.eventloop import (
    cancel_and_wait,
    listen_error,
    supervise,
    suppress_handle_errors,
)
from gateway.runtime.http_client import TIMEOUT, HttpClient
from gateway.runtime.settings import Settings
from gateway.runtime.sockets import open_listeners
from gateway.runtime.sso_settings import sso_settings
from gateway.runtime.tls import Tls
from gateway.runtime.webhook_client import WebhookClient
from gateway.services.issuer import Issuer, read_client_secret
from gateway.services.passwords import Passwords
from gateway.services.services import Services
from gateway.services.sso import SsoService
from gateway.services.webhook_outbox import WebhookOutbox
from gateway.store.engine import Engine
from gateway.store.enrolments import Enrolments
from gateway.store.events import Events
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.open import open_store
from gateway.store.operation_logs import OperationLogs
from gateway.store.operations import Operations
from gateway.store.pools import Pools
from gateway.store.schedules import Schedules
from gateway.store.tables import needs_keys
from gateway.store.waits import backlog
from gateway.store.webhooks import Webhooks
from gateway.web.connection import Timeouts
from gateway.web.enrolment_endpoint import EnrolmentEndpoint
from gateway.web.ice_endpoint import IceEndpoint
from gateway.web.load_shedding import LoadShedding
from gateway.web.metrics import Metrics
from gateway.web.operation_metrics import EXAMINED, GROUPS, BacklogMetrics
from gateway.web.probes import Probes
from gateway.web.routes import application
from gateway.web.server import DOORS, Runner
from gateway.web.websocket import Limits

LINGER: Final = 0.5
"""Seconds for which a stopping gateway still answers handshakes, with `draining`; see `run_gateway`."""
_FINISH: Final = 3.0
"""Seconds for open requests to finish after a SIGTERM; aiohttp waits twice as long for some."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is no setting, because no operator needs another; tests do."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    websocket: Limits = field(default_factory=Limits)
    node: NodeLimits = field(default_factory=NodeLimits)
    streams: StreamLimits = field(default_factory=StreamLimits)
    resolver: AbstractResolver | None = None
    """Looks up the receivers of webhooks; None for the system's."""
    issuer_timeout: float = TIMEOUT
    """Seconds for an answer of the issuer."""


DEFAULT_TUNING: Final = Tuning()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway; `failed` gets an error when one of its parts dies."""

    settings: Settings
    engine: Engine
    node: Node
    services: Services
    endpoint: IceEndpoint
    admin: AdminContext
    runner: Runner
    url: str
    tls: Tls | None
    failed: asyncio.Future[None]


@contextlib.asynccontextmanager
async def run_gateway(
    settings: Settings,
    *,
    clock: Clock = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    linger: float = 0.0,
    passwords: Passwords | None = None,
    doors: int = DOORS,
    tuning: Tuning = DEFAULT_TUNING,
) -> AsyncIterator[Gateway]:
    """Start a gateway; drain and stop it on exit.

    Args:
        settings: checked settings; port 0 takes any free port.
        clock: the present; an operator may set it at any time.
        monotonic: seconds that pass, unaffected by `clock`.
        linger: minimum seconds for which a stopping gateway answers handshakes with `draining`.
        passwords: hashes and checks the admins' passwords.
        doors: handles that listen at each socket.
        tuning: the limits that are no settings.

    Raises:
        BadSetting, StoreRefused, StoreUnavailable, KeyFileUnusable: it cannot start; the text says
            what to change.
    """
    for warning in settings.check_exposure():
        _log.warning(warning)
    tls = Tls.from_settings(settings)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(suppress_handle_errors(loop))
        name = settings.node_name or printable(socket.gethostname())
        engine = await stack.enter_async_context(open_store(settings.database_url, node=name))
        keys = await _load_keys(settings, engine)
        metrics = Metrics()
        node = Node(
            settings,
            engine=engine,
            keys=keys,
            identity=NodeIdentity(name, settings.shown_url),
            meters=metrics,
            clock=clock,
            monotonic=monotonic,
            limits=tuning.node,
        )
        webhook_client = WebhookClient(settings.webhooks_allow, tuning.resolver)
        services = Services.of(
            settings,
            engine=engine,
            keys=keys,
            clock=clock,
            confirmer=node.revocations,
            refused=metrics.credentials_refused,
            cancelled=metrics.ended_operation,
            decided=metrics.operations.decided_occurrence,
            passwords=passwords,
            webhook_client=webhook_client,
        )
        sso = await stack.enter_async_context(
            _single_sign_on(
                settings, tuning, engine=engine, keys=keys, clock=clock, services=services
            )
        )
        streams = EventStreams(tuning.streams)
        node.subscribe(streams.publish)
        node.presence.subscribe(streams.publish_news)
        read = functools.partial(backlog, engine.fetch, examined=EXAMINED, groups=GROUPS)
        unfinished = BacklogMetrics(read, clock)
        stack.push_async_callback(unfinished.close)
        metrics.watch(node, unfinished)
        failed: asyncio.Future[None] = loop.create_future()
        await stack.enter_async_context(node.running(failed))
        outbox = WebhookOutbox(
            engine=engine,
            keys=keys,
            clock=clock,
            client=webhook_client,
            instance=node.instance,
            away_after=settings.notices_away_after,
        )
        for part, work in (
            ("login failures", services.logins.failures.run()),
            ("scheduler", node.scheduler.run(services.schedules)),
            ("webhook sender", node.webhook_sender.run(outbox)),
        ):
            stack.push_async_callback(cancel_and_wait, supervise(work, part, failed))
        metrics_runner = await metrics.expose(settings.metrics_listen, tuning.timeouts)
        if metrics_runner is not None:
            stack.push_async_callback(metrics_runner.cleanup)
        load_shedding = LoadShedding(metrics.connections_shed.inc, monotonic)
        endpoint = IceEndpoint(settings, node, metrics, load_shedding, tuning.websocket)
        admin = AdminContext(
            engine=engine,
            services=services,
            node=node,
            streams=streams,
            ices=IceListing(engine, settings.expectations),
            events=Events(engine.fetch),
            operations=Operations(engine.fetch),
            operation_logs=OperationLogs(engine.fetch, settings.operations_log_kept),
            enrolments=Enrolments(engine),
            pools=Pools(engine.fetch),
            schedules=Schedules(engine.fetch),
            webhooks=Webhooks(engine.fetch),
            clock=clock,
            trusted_proxies=settings.server_trusted_proxies,
            public_urls=settings.server_public_url,
            sso=sso,
        )
        app = application(
            settings.prefixes,
            endpoint.handle,
            EnrolmentEndpoint(settings, node, services.enrolments, metrics).routes,
            Probes(node),
            lambda: {"/admin/api/v1": api_app(admin), "/admin": pages_app(admin)},
        )
        runner = Runner(
            app,
            load_shedding,
            shutdown_timeout=_FINISH,
            timeouts=tuning.timeouts,
            keepalive=settings.server_keepalive,
            doors=doors,
            upgrades={prefix + PATH: endpoint.admit for prefix in settings.prefixes}.get,
            headers={} if settings.hsts is None else {"Strict-Transport-Security": settings.hsts},
        )
        stack.push_async_callback(runner.cleanup)
        try:
            sockets = open_listeners(settings.server_host, settings.server_port)
            await runner.listen_on(sockets, tls.context if tls is not None else None)
        except OSError as error:
            raise listen_error(settings, error) from error
        try:
            url = runner.url(tls=tls is not None)
            yield Gateway(
                settings, engine, node, services, endpoint, admin, runner, url, tls, failed
            )
        finally:
            streams.close()
            until = loop.time() + linger
            await node.drain(tuning.websocket.close_timeout + 1)
            await asyncio.sleep(max(0.0, until - loop.time()))


@contextlib.asynccontextmanager
async def _single_sign_on(
    settings: Settings,
    tuning: Tuning,
    *,
    engine: Engine,
    keys: KeyStore,
    clock: Clock,
    services: Services,
) -> AsyncIterator[SsoService | None]:
    """Logins at the issuer of the settings; None without one. Raises `BadSetting`."""
    found = sso_settings(settings)
    if found is None:
        yield None
        return
    read_client_secret(found.client_secret_file)
    async with HttpClient(found.ca_file, timeout=tuning.issuer_timeout) as http:
        yield SsoService(
            Issuer(found, http), engine=engine, keys=keys, clock=clock, logins=services.logins
        )


async def _load_keys(settings: Settings, engine: Engine) -> KeyStore:
    keys = KeyStore(settings.key_file)
    if not keys.load() and await needs_keys(engine.fetch):
        raise KeyFileUnusable(
            f"the key file {settings.key_file} is missing; without it the gateway opens no token"
            " of its ICEs and knows none of its enrolment keys and webhooks: restore it from a backup"
        )
    return keys
