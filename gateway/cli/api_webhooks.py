"""What an admin over the API does with webhooks; `api_admin` has the rest.

One page of the API holds all that there may be of each.

Tested in tests/gateway/cli/test_webhooks.py.
"""

from __future__ import annotations

from typing import Final

from gateway.cli.admin_port import Body, Query
from gateway.cli.api_client import ApiClient, path_of
from gateway.services import webhook_schemas

_NOUN: Final = "webhooks"
_WHOLE: Final = (("limit", "200"),)


class ApiWebhooks:
    """Fulfils the part of `admin_port.Admin` about webhooks."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def webhooks(self, query: Query) -> list[webhook_schemas.WebhookDocument]:
        """See `Admin`."""
        asked = (*query, *_WHOLE)
        path, shape = path_of(_NOUN), webhook_schemas.WebhookPage
        return (await self._client.call("GET", path, shape, query=asked)).items

    async def webhook(self, webhook_id: str) -> webhook_schemas.WebhookDocument:
        """See `Admin`."""
        path = path_of(_NOUN, webhook_id)
        return await self._client.call("GET", path, webhook_schemas.WebhookDocument)

    async def create_webhook(self, new: Body) -> webhook_schemas.WebhookMade:
        """See `Admin`."""
        return await self._client.call("POST", path_of(_NOUN), webhook_schemas.WebhookMade, new)

    async def change_webhook(
        self, webhook_id: str, changes: Body
    ) -> webhook_schemas.WebhookDocument:
        """See `Admin`."""
        path, shape = path_of(_NOUN, webhook_id), webhook_schemas.WebhookDocument
        return await self._client.call("PATCH", path, shape, changes)

    async def delete_webhook(self, webhook_id: str) -> None:
        """See `Admin`."""
        await self._client.send("DELETE", path_of(_NOUN, webhook_id))

    async def test_webhook(self, webhook_id: str) -> webhook_schemas.DeliveryDocument:
        """See `Admin`."""
        path = path_of(_NOUN, webhook_id, "test")
        return await self._client.call("POST", path, webhook_schemas.DeliveryDocument)

    async def deliveries(self, webhook_id: str) -> list[webhook_schemas.DeliveryDocument]:
        """See `Admin`."""
        path, shape = path_of(_NOUN, webhook_id, "deliveries"), webhook_schemas.DeliveryPage
        return (await self._client.call("GET", path, shape, query=_WHOLE)).items

    async def set_aside(self, webhook_id: str) -> list[webhook_schemas.SetAsideDocument]:
        """See `Admin`."""
        path, shape = path_of(_NOUN, webhook_id, "set-aside"), webhook_schemas.SetAsidePage
        return (await self._client.call("GET", path, shape, query=_WHOLE)).items

    async def send_again(self, webhook_id: str, message: str) -> webhook_schemas.DeliveryDocument:
        """See `Admin`."""
        path = path_of(_NOUN, webhook_id, "set-aside", message, "send")
        return await self._client.call("POST", path, webhook_schemas.DeliveryDocument)
