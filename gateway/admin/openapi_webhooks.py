"""The calls of the OpenAPI document about webhooks.

Tested in tests/gateway/admin/test_api.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gateway.admin.api.requests import NoMembers
from gateway.admin.api.webhooks import (
    DeliveryQuery,
    NewWebhook,
    WebhookChanges,
    WebhookQuery,
)
from gateway.admin.openapi_builder import answer, call, links, listing, located, nothing
from gateway.services.webhook_schemas import (
    DeliveryDocument,
    DeliveryPage,
    SetAsidePage,
    WebhookDocument,
    WebhookMade,
    WebhookPage,
)

_OTHERS: Final = (
    *("showWebhook", "changeWebhook", "testWebhook", "listDeliveries", "listSetAside"),
    "deleteWebhook",
)


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """These calls with path and method."""
    path, one = "/webhooks", "/webhooks/{id}"
    summary = "List webhooks, oldest first"
    yield path, "get", listing("listWebhooks", summary, WebhookPage, WebhookQuery, 403)
    others = links("id", "$response.body#/webhook/id", _OTHERS)
    made = {"201": answer(WebhookMade, "Made", located("webhook"), others)}
    summary = "Make a webhook; its secret is shown only once"
    yield path, "post", call("createWebhook", summary, made, 403, body=NewWebhook)
    shown = {"200": answer(WebhookDocument, "The webhook")}
    yield one, "get", call("showWebhook", "Show a webhook", shown, 403, 404)
    summary = "Change a webhook; a message that was not taken is sent again at once"
    yield one, "patch", call("changeWebhook", summary, shown, 403, 404, body=WebhookChanges)
    deleted = {"204": nothing("Deleted")}
    summary = "Delete a webhook and what is kept for it"
    yield one, "delete", call("deleteWebhook", summary, deleted, 403, 404)
    sent = {"200": answer(DeliveryDocument, "What became of it")}
    summary = "Send a message of type `test` now, and wait for its outcome"
    yield f"{one}/test", "post", call("testWebhook", summary, sent, 403, 404, body=NoMembers)
    summary = "List the last 100 deliveries, newest first"
    described = listing("listDeliveries", summary, DeliveryPage, DeliveryQuery, 403, 404)
    yield f"{one}/deliveries", "get", described
    summary = "List the newest 100 messages that were given up, newest first"
    described = listing("listSetAside", summary, SetAsidePage, DeliveryQuery, 403, 404)
    yield f"{one}/set-aside", "get", described
    summary = "Send a message that was given up once more, and wait for its outcome"
    described = call("sendAgain", summary, sent, 403, 404, body=NoMembers)
    yield f"{one}/set-aside/{{message}}/send", "post", described
