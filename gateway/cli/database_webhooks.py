"""What an admin on the database does with webhooks; `database_admin` has the rest.

A test, and what is sent again, goes out from the machine of the command.

Tested in tests/gateway/cli/test_webhooks.py.
"""

from __future__ import annotations

from gateway.cli.admin_port import Body, Query
from gateway.cli.api_bodies import converted, parsing
from gateway.cli.common import CommandContext, unwrap
from gateway.core.webhook import Webhook
from gateway.services import webhook_schemas
from gateway.services.webhooks import NO_WEBHOOK
from gateway.store.webhooks import KEPT, Webhooks


class DatabaseWebhooks:
    """Fulfils the part of `admin_port.Admin` about webhooks."""

    def __init__(self, context: CommandContext) -> None:
        self._actor = context.actor
        self._services = context.services
        self._webhooks = Webhooks(context.engine.fetch)

    async def webhooks(self, query: Query) -> list[webhook_schemas.WebhookDocument]:
        """See `Admin`."""
        from gateway.admin.api.webhooks import WebhookQuery

        with parsing():
            wanted = WebhookQuery.parse(query)
        counts = await self._webhooks.set_aside_counts()
        return [
            webhook_schemas.webhook_document(one, counts.get(one.id, 0))
            for one in await self._webhooks.all(wanted.q or "")
        ]

    async def webhook(self, webhook_id: str) -> webhook_schemas.WebhookDocument:
        """See `Admin`."""
        found = await self._find_webhook(webhook_id)
        counts = await self._webhooks.set_aside_counts()
        return webhook_schemas.webhook_document(found, counts.get(found.id, 0))

    async def _find_webhook(self, webhook_id: str) -> Webhook:
        return unwrap(await self._webhooks.find(webhook_id) or NO_WEBHOOK)

    async def create_webhook(self, new: Body) -> webhook_schemas.WebhookMade:
        """See `Admin`."""
        from gateway.admin.api.webhooks import NewWebhook

        with parsing():
            asked = converted(new, NewWebhook).asked()
        made = unwrap(await self._services.webhooks.create(self._actor, asked))
        document = webhook_schemas.webhook_document(made.webhook)
        return webhook_schemas.WebhookMade(document, made.secret.reveal())

    async def change_webhook(
        self, webhook_id: str, changes: Body
    ) -> webhook_schemas.WebhookDocument:
        """See `Admin`."""
        from gateway.admin.api.webhooks import WebhookChanges

        with parsing():
            asked = converted(changes, WebhookChanges).asked()
        unwrap(await self._services.webhooks.change(self._actor, webhook_id, asked))
        return await self.webhook(webhook_id)

    async def delete_webhook(self, webhook_id: str) -> None:
        """See `Admin`."""
        unwrap(await self._services.webhooks.delete(self._actor, webhook_id))

    async def test_webhook(self, webhook_id: str) -> webhook_schemas.DeliveryDocument:
        """See `Admin`."""
        sent = unwrap(await self._services.webhooks.test(webhook_id))
        return webhook_schemas.delivery_document(sent)

    async def deliveries(self, webhook_id: str) -> list[webhook_schemas.DeliveryDocument]:
        """See `Admin`."""
        await self._find_webhook(webhook_id)
        found = await self._webhooks.deliveries(webhook_id, KEPT)
        return [webhook_schemas.delivery_document(one.delivery) for one in found]

    async def set_aside(self, webhook_id: str) -> list[webhook_schemas.SetAsideDocument]:
        """See `Admin`."""
        await self._find_webhook(webhook_id)
        found = await self._webhooks.set_aside(webhook_id)
        return [webhook_schemas.set_aside_document(one) for one in found]

    async def send_again(self, webhook_id: str, message: str) -> webhook_schemas.DeliveryDocument:
        """See `Admin`."""
        sent = unwrap(await self._services.webhooks.send_again(webhook_id, message))
        return webhook_schemas.delivery_document(sent)
