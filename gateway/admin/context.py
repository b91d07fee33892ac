"""What the admin sub-app works with, and the keys under which a handler finds it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.admin.event_streams import EventStreams
from gateway.core.roles import Caller
from gateway.core.times import Clock
from gateway.node.hub import Hub
from gateway.node.log_follower import LogFollower
from gateway.node.restore_hold import RestoreHold
from gateway.node.revocations import Revocations
from gateway.node.session import Session
from gateway.node.waiters import Waiters
from gateway.services.accounts import AccountService
from gateway.services.audit import Audit
from gateway.services.logins import LoginService, Recognised
from gateway.services.nodes import NodeService
from gateway.services.operation_requests import OperationService
from gateway.services.provisioning import Provisioning
from gateway.store.events import Events
from gateway.store.ices import Ices
from gateway.store.operations import Operations
from gateway.store.sessions import Happenings
from gateway.web.responses import Networks


@dataclass(frozen=True, slots=True)
class AdminContext:
    """The collaborators of the handlers."""

    provisioning: Provisioning
    operations: OperationService
    work: Operations
    watches: Waiters
    accounts: AccountService
    nodes: NodeService
    logins: LoginService
    ices: Ices
    events: Events
    audit: Audit
    happenings: Happenings
    drops: Revocations
    tail: LogFollower
    hold: RestoreHold
    streams: EventStreams
    node: str
    """The name of this one."""
    hub: Hub[Session]
    clock: Clock
    trusted_proxies: Networks
    public_urls: tuple[str, ...]
    registration_ttl: float
    cluster: bool
    """Whether several nodes may serve the database."""


PARTS: web.AppKey[AdminContext] = web.AppKey("parts", AdminContext)
LOGIN: web.RequestKey[Recognised] = web.RequestKey("login", Recognised)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
