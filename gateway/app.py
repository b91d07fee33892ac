"""The composition root: the only place that knows everything. Wires the parts and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from client.protocol import PATH
from gateway.admin import AdminContext
from gateway.admin.event_streams import EventStreams
from gateway.core.audit_event import Entry
from gateway.core.codes import AuditAction
from gateway.core.replay import Nonces
from gateway.core.text import printable
from gateway.core.times import Clock, utc_now
from gateway.node.admission import Admission
from gateway.node.dispatcher import Dispatcher
from gateway.node.expiry import OperationExpiry
from gateway.node.health import Health, HealthCheck
from gateway.node.heartbeat import Heartbeat
from gateway.node.hub import Hub
from gateway.node.lease import Lease
from gateway.node.log_follower import LogFollower
from gateway.node.membership import AWAITED, Membership, NodeIdentity, OtherNodes, new_self
from gateway.node.presence import Presence
from gateway.node.progress import ProgressWriter
from gateway.node.restore_hold import RestoreHold
from gateway.node.revocations import Revocations
from gateway.node.session import Session
from gateway.node.waiters import Waiters
from gateway.runtime.clocks import SharedClock
from gateway.runtime.eventloop import calm, cannot_listen, ended, supervise
from gateway.runtime.fd_limits import shortage
from gateway.runtime.settings import BadSetting, Settings
from gateway.runtime.sockets import listening, place
from gateway.runtime.tls import Tls
from gateway.services.accounts import AccountService
from gateway.services.audit import Audit
from gateway.services.login_failures import LoginFailures
from gateway.services.logins import LoginService
from gateway.services.nodes import NodeService
from gateway.services.operation_requests import OperationService
from gateway.services.passwords import Passwords
from gateway.services.provisioning import Provisioning
from gateway.store.engine import Engine
from gateway.store.entry_loader import EntryLoader
from gateway.store.events import Events
from gateway.store.ices import Ices
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.nodes import forget_all
from gateway.store.open import open_store
from gateway.store.operations import Operations
from gateway.store.sessions import Happenings
from gateway.web.ice_endpoint import IceEndpoint
from gateway.web.load_shedding import LoadShedding
from gateway.web.metrics import Metrics
from gateway.web.probes import Probes
from gateway.web.server import Runner
from gateway.web_application import web_application

_KEY_ACTIONS: Final = frozenset(
    {AuditAction.ROTATE_KEYS, AuditAction.PROMOTE_KEY, AuditAction.RETIRE_KEY}
)
"""After each of these a running gateway reads the key file again."""
_NODE_ACTIONS: Final = frozenset({AuditAction.DRAIN_NODE, AuditAction.RESUME_NODE})
"""After each of these a node asks at once what it is to do."""
_FINISH = 3.0
"""Seconds for the requests in hand to finish after a SIGTERM; aiohttp waits twice as long for some."""

LINGER: Final = 0.5
"""Seconds for which a gateway that stops still answers handshakes, with `draining`; see `run_gateway`."""
_PAUSED = "an admin has drained this node: `ice-gateway nodes resume {}` lets it go on"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that runs; `failed` is done with an error if a part of it died."""

    settings: Settings
    engine: Engine
    hub: Hub[Session]
    tail: LogFollower
    hold: RestoreHold
    endpoint: IceEndpoint
    provisioning: Provisioning
    accounts: AccountService
    vitals: Health
    url: str
    tls: Tls | None
    failed: asyncio.Future[None]

    def reload(self) -> None:
        """Read certificate and key again; where they cannot be used the old ones stay."""
        if self.tls is None:
            _log.info("nothing to read again: this gateway speaks no TLS")
            return
        try:
            self.tls.renew()
        except BadSetting as error:
            _log.error("the certificate is not renewed, the old one stays", reason=str(error))
        else:
            _log.info("the certificate is renewed")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What `_assemble` wires together: the HTTP application, and the work that runs beside it."""

    app: web.Application
    admin: AdminContext
    endpoint: IceEndpoint
    presence: Presence
    heartbeat: Heartbeat
    metrics: Metrics
    vitals: Health
    dispatch: Dispatcher
    progress: ProgressWriter
    clerk: OperationExpiry
    membership: Membership | None


@contextlib.asynccontextmanager
async def run_gateway(
    settings: Settings,
    *,
    clock: Clock = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    linger: float = 0.0,
) -> AsyncIterator[Gateway]:
    """Start a gateway; on leaving it drains and stops.

    Args:
        settings: checked settings; port 0 takes any free one.
        clock: the present; it may be set at any time.
        monotonic: seconds that pass, whatever the clock says.
        linger: seconds for which handshakes are answered `draining` at the least.

    Raises:
        BadSetting, StoreRefused, StoreUnavailable, KeyFileUnusable: it cannot start; the text says
            what to change.
    """
    for warning in settings.check_exposure():
        _log.warning(warning)
    tls = Tls.of(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(calm(asyncio.get_running_loop()))
        name = settings.node_name or printable(socket.gethostname())
        engine = await stack.enter_async_context(open_store(settings.database_url, node=name))
        keys = KeyStore(settings.key_file)
        if not keys.load() and await Ices(engine).any():
            raise KeyFileUnusable(
                f"the key file {settings.key_file} is missing, and without it no token of the"
                " provisioned ICEs opens: put it back from a backup"
            )
        me = new_self(name, _told_url(settings))
        parts = _assemble(
            settings,
            engine=engine,
            keys=keys,
            nonce_key=_nonce_key(keys, engine),
            me=me,
            clock=clock,
            monotonic=monotonic,
        )
        await parts.admin.tail.start()
        if parts.membership is not None:
            stack.push_async_callback(parts.membership.leave)  # what is cancelled may have joined
            await parts.membership.join()
            # The others copy it from here.
            keys.for_sealing(may_create=True)
        else:
            await engine.write(forget_all)
        await parts.presence.start()
        await parts.admin.hold.start()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for name, work in (
            ("tail", parts.admin.tail.run()),
            ("presence", parts.presence.run()),
            ("heartbeat", parts.heartbeat.run()),
            ("vitals", parts.vitals.run()),
            ("progress", parts.progress.run()),
            ("clerk", parts.clerk.run()),
            ("login failures", parts.admin.logins.failures.run()),
            *(() if parts.membership is None else (("membership", parts.membership.run()),)),
        ):
            stack.push_async_callback(ended, supervise(work, name, failed))
        # Whatever the last sessions left to be written is written before the store closes.
        stack.push_async_callback(parts.presence.flush)
        metrics_runner = await parts.metrics.expose(settings.metrics_listen)
        if metrics_runner is not None:
            stack.push_async_callback(metrics_runner.cleanup)
        runner = await _listen(parts.app, parts.endpoint, settings, stack, tls=tls)
        try:
            yield Gateway(
                settings,
                engine,
                parts.admin.hub,
                parts.admin.tail,
                parts.admin.hold,
                parts.endpoint,
                parts.admin.provisioning,
                parts.admin.accounts,
                parts.vitals,
                runner.url(tls=tls is not None),
                tls,
                failed,
            )
        finally:
            parts.admin.streams.close()
            parts.admin.watches.close()
            until = asyncio.get_running_loop().time() + linger
            await parts.endpoint.drain()
            await parts.dispatch.close()
            await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))


def _assemble(
    settings: Settings,
    *,
    engine: Engine,
    keys: KeyStore,
    nonce_key: Callable[[], bytes],
    me: NodeIdentity,
    clock: Clock,
    monotonic: Callable[[], float],
) -> _Parts:
    node = me.name
    lease = Lease(settings.node_lease) if engine.shared else Lease.forever()
    metrics = Metrics()
    passwords = Passwords()
    hub: Hub[Session] = Hub()
    watches = Waiters()
    progress = ProgressWriter(engine, watches, clock)
    kept = settings.operations_kept_bytes
    dispatch = Dispatcher(
        engine=engine, hub=hub, watches=watches, progress=progress, clock=clock, kept_bytes=kept
    )
    others = OtherNodes(engine, me) if engine.shared else None
    drops = Revocations(hub, node, clock, metrics.drop_seconds.observe, others)
    streams = EventStreams()
    presence = Presence(engine, node, clock)
    presence.listen(streams.publish_news)
    ices = Ices(engine)
    hold = RestoreHold(engine)

    def apply(entry: Entry) -> None:
        dropped = drops.apply(entry)
        if membership is not None and entry.event.action in AWAITED:
            membership.dropped(entry.seq, dropped)
        if membership is not None and entry.event.action in _NODE_ACTIONS:
            membership.ask()
        if entry.event.action in _KEY_ACTIONS:
            keys.reload()
        hold.apply(entry)
        dispatch.apply(entry)
        streams.publish()
        lag = (clock() - entry.event.at).total_seconds()
        metrics.tail_lag_seconds.set(max(0.0, lag))

    async def compare() -> None:
        held = list(hub)
        hub.doubt(held, await ices.standing([session.ice_name for session in held]))
        await dispatch.refresh()

    def heard() -> None:
        if membership is not None:
            membership.hear()
            watches.wake_all()

    tail = LogFollower(engine, apply, compare, heard)
    metrics.tail_current.set_function(lambda: float(tail.current))
    heartbeat = Heartbeat(hub, settings.ice_heartbeat)
    steady = SharedClock(monotonic)
    endpoint = IceEndpoint(
        admission=Admission(
            keys=keys,
            engine=engine,
            look_ups=EntryLoader(engine, monotonic),
            tail=tail,
            hold=hold,
            lease=lease,
            clock=clock,
            nonces=Nonces(nonce_key),
            steady=steady,
            public_urls=settings.server_public_url,
            monotonic=monotonic,
        ),
        hub=hub,
        heartbeat=heartbeat,
        presence=presence,
        dispatch=dispatch,
        lease=lease,
        metrics=metrics,
        clock=clock,
        trusted_proxies=settings.server_trusted_proxies,
        max_connections=settings.ice_max_connections,
        max_handshakes=settings.ice_max_handshakes,
        load_shedding=LoadShedding(metrics.connections_shed.inc, monotonic),
    )
    membership = (
        Membership(
            engine=engine,
            me=me,
            lease=lease,
            tail=tail,
            hub=hub,
            keys=keys,
            clock=clock,
            steady=steady,
            abandon=endpoint.abandon,
            drain=endpoint.pause,
            tell=presence.tell,
        )
        if engine.shared
        else None
    )
    admin = AdminContext(
        provisioning=Provisioning(
            engine=engine,
            keys=keys,
            clock=clock,
            registration_ttl=settings.tokens_registration_ttl,
        ),
        operations=OperationService(engine=engine, clock=clock, kept_bytes=kept),
        work=Operations(engine.fetch),
        watches=watches,
        accounts=AccountService(engine=engine, clock=clock, passwords=passwords),
        nodes=NodeService(engine=engine, clock=clock),
        logins=LoginService(
            engine=engine,
            clock=clock,
            passwords=passwords,
            failures=LoginFailures(engine, clock, metrics.credentials_refused),
            idle=settings.admin_login_idle,
            lifetime=settings.admin_login_lifetime,
        ),
        ices=ices,
        events=Events(engine.fetch),
        audit=Audit(engine=engine, clock=clock),
        happenings=Happenings(engine),
        drops=drops,
        tail=tail,
        hold=hold,
        streams=streams,
        node=node,
        hub=hub,
        clock=clock,
        trusted_proxies=settings.server_trusted_proxies,
        public_urls=settings.server_public_url,
        registration_ttl=settings.tokens_registration_ttl,
        cluster=engine.shared,
    )
    known = {
        "store": HealthCheck(lambda: engine.fault or tail.fault),
        "restore": HealthCheck(lambda: hold.reason),
        "keys": HealthCheck(keys.fault, needed=False),
        "handles": HealthCheck(shortage),
        "pause": HealthCheck(lambda: _PAUSED.format(node) if endpoint.paused else None, meant=True),
    }
    if membership is not None:
        known["lease"] = HealthCheck(lambda: membership.fault)
    vitals = Health(engine, known)
    metrics.watch({name: vital.fault for name, vital in known.items()})
    app = web_application(
        settings.prefixes, endpoint, admin, Probes(vitals, lambda: endpoint.draining)
    )
    return _Parts(
        *(app, admin, endpoint, presence, heartbeat, metrics),
        *(vitals, dispatch, progress),
        OperationExpiry(engine, clock, settings.operations_keep, dispatch.ended),
        membership,
    )


def _nonce_key(keys: KeyStore, engine: Engine) -> Callable[[], bytes]:
    """The key of the nonces: nodes on a server share their token keys, others make one at each start."""
    own = secrets.token_bytes(32)
    if not engine.shared:
        return lambda: own
    return lambda: keys.derived(b"ice-gateway nonces") or own


def _told_url(settings: Settings) -> str:
    """Where this node is, for people."""
    urls = settings.server_public_url
    scheme = "http" if settings.server_tls_certificate is None else "https"
    return urls[0] if urls else f"{scheme}://{place(settings.server_host[0], settings.server_port)}"


async def _listen(
    app: web.Application,
    endpoint: IceEndpoint,
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    *,
    tls: Tls | None,
) -> Runner:
    gates = {prefix + PATH: endpoint.admit for prefix in settings.prefixes}
    runner = Runner(
        app,
        endpoint.load_shedding,
        shutdown_timeout=_FINISH,
        keepalive=settings.server_keepalive,
        gates=gates.get,
        headers={} if settings.hsts is None else {"Strict-Transport-Security": settings.hsts},
    )
    stack.push_async_callback(runner.cleanup)
    try:
        sockets = listening(settings.server_host, settings.server_port)
        await runner.listen_on(sockets, tls.context if tls is not None else None)
    except OSError as error:
        raise cannot_listen(settings, error) from error
    return runner
