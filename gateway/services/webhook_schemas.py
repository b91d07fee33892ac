"""The JSON objects of webhooks, beside those of `services.schemas`.

Tested in tests/gateway/admin/api/test_webhooks.py.
"""

from __future__ import annotations

import msgspec

from gateway.core.webhook import Failing, Webhook
from gateway.services.schemas import Time, described
from gateway.store.webhooks import Delivery, SetAside


class FailingDocument(msgspec.Struct):
    """A message that was not taken in `attempts` attempts since `since`; it is sent again at `retry`."""

    message: str
    since: Time
    attempts: int
    retry: Time
    error: str


class WebhookDocument(msgspec.Struct, kw_only=True):
    """A webhook without its secret.

    `position` is the number of the last event that was sent to it or that it does not want, `failing` the message that
    it has not taken yet, if any, and `set_aside` how many messages were given up.
    """

    id: str
    name: str
    url: str
    events: list[str]
    enabled: bool
    position: int
    failing: FailingDocument | None
    set_aside: int
    createdby: str
    createdon: Time


class WebhookPage(msgspec.Struct):
    """Webhooks, the oldest first; `next` is the cursor of the next page, null at the end."""

    items: list[WebhookDocument]
    next: str | None


class WebhookMade(msgspec.Struct):
    """A new webhook and its secret, which is shown this once."""

    webhook: WebhookDocument
    secret: str


class DeliveryDocument(msgspec.Struct, kw_only=True):
    """An attempt to send a message: the status of the answer, or why there was none or it does not count."""

    message: str
    type: str
    at: Time
    status: int | None
    error: str | None
    elapsed_ms: int


class DeliveryPage(msgspec.Struct):
    """Deliveries, the newest first; `next` is the cursor of the next page, null at the end."""

    items: list[DeliveryDocument]
    next: str | None


class SetAsideDocument(msgspec.Struct, kw_only=True):
    """A message that was given up at `at`, after `attempts` attempts, of which the last had this `error`."""

    message: str
    type: str
    at: Time
    attempts: int
    error: str


class SetAsidePage(msgspec.Struct):
    """Messages that were set aside, the newest first; `next` is null: one page has all."""

    items: list[SetAsideDocument]
    next: str | None


def webhook_document(webhook: Webhook, set_aside: int = 0) -> WebhookDocument:
    """Describe a webhook for which so many messages were set aside."""
    return described(
        WebhookDocument,
        webhook,
        events=list(webhook.events),
        failing=_failing_document(webhook.failing),
        set_aside=set_aside,
    )


def _failing_document(failing: Failing | None) -> FailingDocument | None:
    return None if failing is None else described(FailingDocument, failing)


def delivery_document(delivery: Delivery) -> DeliveryDocument:
    """Describe a delivery."""
    return described(DeliveryDocument, delivery)


def set_aside_document(given_up: SetAside) -> SetAsideDocument:
    """Describe a message that was set aside."""
    return described(SetAsideDocument, given_up)
