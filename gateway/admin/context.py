"""What the admin handlers work with, and the keys under which a handler finds it.

Tested in tests/gateway/admin/test_api.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from gateway.admin.event_streams import EventStreams
from gateway.admin.quota import Quota
from gateway.core.roles import Caller
from gateway.core.times import Clock
from gateway.node.node import Node
from gateway.services.logins import CurrentLogin
from gateway.services.services import Services
from gateway.services.sso import SsoService
from gateway.store.engine import Engine
from gateway.store.enrolments import Enrolments
from gateway.store.events import Events
from gateway.store.ice_listing import IceListing
from gateway.store.operation_logs import OperationLogs
from gateway.store.operations import Operations
from gateway.store.pools import Pools
from gateway.store.schedules import Schedules
from gateway.store.webhooks import Webhooks
from gateway.web.client_address import Networks

MAX_EXPORTS: Final = 4
"""Exports of the audit log that a user may read at once."""
MAX_EXPORTS_OF_ALL: Final = 16
"""Exports of all users together: each may read the whole log, for as long as its client takes."""


@dataclass(frozen=True, slots=True)
class AdminContext:
    """The collaborators of the handlers: the database, the services, this node, the settings, and what is bounded."""

    engine: Engine
    services: Services
    node: Node
    streams: EventStreams
    ices: IceListing
    events: Events
    operations: Operations
    operation_logs: OperationLogs
    enrolments: Enrolments
    pools: Pools
    schedules: Schedules
    webhooks: Webhooks
    clock: Clock
    trusted_proxies: Networks
    public_urls: tuple[str, ...]
    exports: Quota = field(
        default_factory=lambda: Quota("too-many-exports", MAX_EXPORTS, MAX_EXPORTS_OF_ALL)
    )
    sso: SsoService | None = None
    """None without an issuer."""


CONTEXT: web.AppKey[AdminContext] = web.AppKey("context", AdminContext)
LOGIN: web.RequestKey[CurrentLogin] = web.RequestKey("login", CurrentLogin)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


def admin_context(request: web.Request) -> AdminContext:
    """The context of the application that serves this request."""
    return request.config_dict[CONTEXT]
