"""All services in one value, for the admin's page, API and commands.

Tested in tests/gateway/admin/test_api.py and tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.core.operation import Operation
from gateway.core.schedule import Occurrence
from gateway.core.times import Clock
from gateway.runtime.settings import Settings
from gateway.runtime.webhook_client import WebhookClient
from gateway.services.accounts import AccountService
from gateway.services.audit import Audit
from gateway.services.bulk_actions import BulkActions
from gateway.services.enrolment import EnrolmentService
from gateway.services.enrolment_keys import EnrolmentKeyService
from gateway.services.ice_changes import Confirmer
from gateway.services.leavers import Leavers
from gateway.services.login_failures import LoginFailures
from gateway.services.logins import LoginService
from gateway.services.nodes import NodeService
from gateway.services.operation_requests import OperationService
from gateway.services.passwords import Passwords
from gateway.services.pools import PoolService
from gateway.services.provisioning import Provisioning
from gateway.services.schedules import ScheduleService
from gateway.services.webhooks import WebhookService
from gateway.store.engine import Engine
from gateway.store.key_file import KeyStore


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that an admin can do."""

    provisioning: Provisioning
    bulk: BulkActions
    enrolments: EnrolmentService
    enrolment_keys: EnrolmentKeyService
    operations: OperationService
    pools: PoolService
    schedules: ScheduleService
    webhooks: WebhookService
    accounts: AccountService
    logins: LoginService
    nodes: NodeService
    audit: Audit

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        engine: Engine,
        keys: KeyStore,
        clock: Clock,
        confirmer: Confirmer,
        refused: Callable[[str], None] = lambda _: None,
        cancelled: Callable[[Operation], None] = lambda _: None,
        decided: Callable[[Occurrence], None] = lambda _: None,
        passwords: Passwords | None = None,
        webhook_client: WebhookClient | None = None,
    ) -> Services:
        """Make the services of a database.

        Args:
            settings: the settings of the gateway that serves it.
            engine: the database.
            keys: seal tokens.
            clock: the present.
            confirmer: waits until the nodes have acted on an action's events.
            refused: is called with the reason of each refused login or API token.
            cancelled: is called with each operation that a caller cancelled.
            decided: is called with each occurrence of a schedule that this process decided on.
            passwords: hashes and checks them.
            webhook_client: posts to the receivers of webhooks.
        """
        passwords = passwords or Passwords()
        rules = settings.login_rules
        acts: dict[str, Any] = {
            "engine": engine,
            "keys": keys,
            "clock": clock,
            "registration_ttl": settings.tokens_registration_ttl,
            "confirmer": confirmer,
        }
        operations = OperationService(
            engine=engine,
            clock=clock,
            kept_bytes=settings.operations_kept_bytes,
            cancelled=cancelled,
        )
        return cls(
            Provisioning(**acts),
            BulkActions(**acts),
            EnrolmentService(**acts),
            EnrolmentKeyService(**acts),
            operations,
            PoolService(engine=engine, clock=clock),
            ScheduleService(engine=engine, clock=clock, requests=operations, decided=decided),
            WebhookService(
                engine=engine,
                keys=keys,
                clock=clock,
                client=webhook_client or WebhookClient(settings.webhooks_allow),
            ),
            AccountService(
                engine=engine,
                clock=clock,
                passwords=passwords,
                leavers=Leavers(**acts),
                rules=rules,
            ),
            LoginService(
                engine=engine,
                clock=clock,
                passwords=passwords,
                failures=LoginFailures(engine, clock, refused),
                rules=rules,
            ),
            NodeService(engine=engine, clock=clock),
            Audit(engine=engine, clock=clock),
        )
