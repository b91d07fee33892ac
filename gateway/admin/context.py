"""What the admin sub-app works with, and the keys under which a handler finds it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.admin.event_streams import Streams
from gateway.core.roles import Caller
from gateway.core.times import Clock
from gateway.node.hub import Hub
from gateway.node.log_follower import Tail
from gateway.node.restore_hold import Hold
from gateway.node.revocations import Drops
from gateway.node.session import Session
from gateway.node.waiters import Watches
from gateway.services.accounts import AccountBook
from gateway.services.audit import Audit
from gateway.services.logins import LoginDesk, Recognised
from gateway.services.nodes import NodeDesk
from gateway.services.operation_requests import OperationDesk
from gateway.services.provisioning import Provisioning
from gateway.store.events import Events
from gateway.store.ices import Ices
from gateway.store.operations import Operations
from gateway.store.sessions import Happenings
from gateway.web.responses import Networks


@dataclass(frozen=True, slots=True)
class AdminParts:
    """The collaborators of the handlers."""

    provisioning: Provisioning
    operations: OperationDesk
    work: Operations
    watches: Watches
    accounts: AccountBook
    nodes: NodeDesk
    logins: LoginDesk
    ices: Ices
    events: Events
    audit: Audit
    happenings: Happenings
    drops: Drops
    tail: Tail
    hold: Hold
    streams: Streams
    node: str
    """The name of this one."""
    hub: Hub[Session]
    clock: Clock
    trusted_proxies: Networks
    public_urls: tuple[str, ...]
    registration_ttl: float
    cluster: bool
    """Whether several nodes may serve the database."""


PARTS: web.AppKey[AdminParts] = web.AppKey("parts", AdminParts)
LOGIN: web.RequestKey[Recognised] = web.RequestKey("login", Recognised)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
