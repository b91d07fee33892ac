"""What the admin sub-app works with, and the keys under which a handler finds it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.accounts import AccountBook
from gateway.admin.stream import Streams
from gateway.audit import Audit
from gateway.drops import Drops
from gateway.hold import Hold
from gateway.hub import Hub
from gateway.logins import LoginDesk, Recognised
from gateway.nodes import NodeDesk
from gateway.operations import OperationDesk
from gateway.provisioning import Provisioning
from gateway.respond import Networks
from gateway.roles import Caller
from gateway.session import Session
from gateway.store.events import Events
from gateway.store.ices import Ices
from gateway.store.operations import Operations
from gateway.store.sessions import Happenings
from gateway.tail import Tail
from gateway.times import Clock
from gateway.watches import Watches


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
