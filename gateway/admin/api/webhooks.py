"""`/webhooks`: make, list, show, change, delete and test webhooks, and list what became of their messages.

Tested in tests/gateway/admin/api/test_webhooks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    no_members,
    number_of,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.problems import invalid
from gateway.core.roles import Need
from gateway.core.webhook import EVENTS, MAX_NAME, MAX_URL, Webhook
from gateway.services import webhook_schemas
from gateway.services.webhooks import NO_WEBHOOK, W, WantedChanges, WantedWebhook, WebhookIssued
from gateway.store.webhooks import Delivery
from gateway.web.responses import RequestRefused, json_response, no_content

I = TypeVar("I")  # noqa: E741 - an item
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL)]
_OneEvent = Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted(EVENTS)})]
WantedEvents = Annotated[list[_OneEvent], msgspec.Meta(min_length=1, max_length=len(EVENTS))]


class NewWebhook(
    msgspec.Struct,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Body of POST /webhooks: `events` are actions of the audit log, notices, or `*` for all."""

    name: Name
    url: Url
    events: WantedEvents
    enabled: bool = True

    def asked(self) -> WantedWebhook:
        """The webhook to make."""
        return WantedWebhook(self.name, self.url, self.events, self.enabled)


class WebhookChanges(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /webhooks/{id}; what is left out stays as it is."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    url: Url | msgspec.UnsetType = msgspec.UNSET
    events: WantedEvents | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET

    def asked(self) -> WantedChanges:
        """The changes. Raises `RequestRefused` if there are none."""
        given: dict[str, Any] = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not msgspec.UNSET
        }
        if not given:
            raise RequestRefused(invalid("body", "names nothing to change"))
        return WantedChanges(**given)


class WebhookQuery(Query):
    """Query parameters of GET /webhooks: `q` is a part of a name."""

    q: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


class DeliveryQuery(Query):
    """Query parameters of GET /webhooks/{id}/deliveries and /set-aside."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/webhooks`."""
    one = "/webhooks/{id}"
    return [
        route("GET", "/webhooks", listing, need=Need.SEE_ALL, reads=_query),
        route("POST", "/webhooks", create, need=Need.CHANGE_ACCOUNTS, reads=_wanted),
        route("GET", one, show, need=Need.SEE_ALL, finds=find_webhook),
        route("PATCH", one, change, need=Need.CHANGE_ACCOUNTS, reads=_changes, finds=find_webhook),
        route("DELETE", one, delete, need=Need.ACT, finds=find_webhook),
        route("POST", f"{one}/test", test, need=Need.ACT, reads=no_members, finds=find_webhook),
        route(
            *("GET", f"{one}/deliveries", deliveries),
            need=Need.SEE_ALL,
            reads=_delivery_query,
            finds=find_webhook,
        ),
        route(
            *("GET", f"{one}/set-aside", set_aside),
            need=Need.SEE_ALL,
            reads=_set_aside_query,
            finds=find_webhook,
        ),
        route(
            *("POST", f"{one}/set-aside/{{message}}/send", send_again),
            need=Need.ACT,
            reads=no_members,
            finds=find_webhook,
        ),
    ]


async def _query(request: web.Request) -> tuple[WebhookQuery, str | None]:
    query = WebhookQuery.of(request)
    return query, decode_cursor(query.cursor)


async def _wanted(request: web.Request) -> tuple[WantedWebhook]:
    return (_checked(request, (await body_as(request, NewWebhook)).asked()),)


async def _changes(request: web.Request) -> tuple[WantedChanges]:
    return (_checked(request, (await body_as(request, WebhookChanges)).asked()),)


def _checked(request: web.Request, asked: W) -> W:
    """`asked`, if it is valid; this is checked before the caller's rights. Raises `RequestRefused`."""
    return unwrap(admin_context(request).services.webhooks.checked(asked))


async def _delivery_query(request: web.Request) -> tuple[DeliveryQuery, int | None]:
    query = DeliveryQuery.of(request)
    return query, number_of(query.cursor)


async def _set_aside_query(request: web.Request) -> tuple[DeliveryQuery, str | None]:
    query = DeliveryQuery.of(request)
    return query, decode_cursor(query.cursor)


async def find_webhook(request: web.Request) -> tuple[Webhook | None]:
    """The webhook in the path, for the handlers of page and API. Raises `RequestRefused` if there is none."""
    if not request[CALLER].grants.sees_all:  # nothing is shown, whatever the id
        return (None,)
    found = await admin_context(request).webhooks.find(request.match_info["id"])
    return (unwrap(found or NO_WEBHOOK),)


async def listing(request: web.Request, query: WebhookQuery, after: str | None) -> web.Response:
    """List webhooks, the oldest first."""
    table = admin_context(request).webhooks
    page, cursor = _page(await table.all(query.q or ""), lambda one: one.id, query.limit, after)
    counts = await table.set_aside_counts()
    items = [webhook_schemas.webhook_document(one, counts.get(one.id, 0)) for one in page]
    return json_response(webhook_schemas.WebhookPage(items, cursor))


def _page(
    items: Sequence[I], key: Callable[[I], str], limit: int, after: str | None
) -> tuple[Sequence[I], str | None]:
    """A page of the few items that there are, from the one after that with the key `after`, and its cursor."""
    keys = [key(one) for one in items]
    begin = keys.index(after) + 1 if after in keys else 0
    page, last = split_page(items[begin : begin + limit + 1], limit)
    return page, None if last is None else encode_cursor(key(last))


async def create(request: web.Request, new: WantedWebhook) -> web.Response:
    """Make a webhook; its secret is shown once."""
    service = admin_context(request).services.webhooks
    made: WebhookIssued = unwrap(await service.create(actor(request), new))
    document = webhook_schemas.WebhookMade(
        webhook_schemas.webhook_document(made.webhook), made.secret.reveal()
    )
    location = {"Location": f"{request.path}/{made.webhook.id}"}
    return json_response(document, status=201, headers=location)


async def show(request: web.Request, webhook: Webhook) -> web.Response:
    """Show a webhook."""
    counts = await admin_context(request).webhooks.set_aside_counts()
    document = webhook_schemas.webhook_document(webhook, counts.get(webhook.id, 0))
    return json_response(document)


async def change(request: web.Request, changes: WantedChanges, webhook: Webhook) -> web.Response:
    """Change a webhook."""
    service = admin_context(request).services.webhooks
    return await show(request, unwrap(await service.change(actor(request), webhook.id, changes)))


async def delete(request: web.Request, webhook: Webhook) -> web.Response:
    """Delete a webhook and what is kept for it."""
    unwrap(await admin_context(request).services.webhooks.delete(actor(request), webhook.id))
    return no_content()


async def test(request: web.Request, webhook: Webhook) -> web.Response:
    """Send a test now, and answer what became of it."""
    sent: Delivery = unwrap(await admin_context(request).services.webhooks.test(webhook.id))
    return json_response(webhook_schemas.delivery_document(sent))


async def deliveries(
    request: web.Request, query: DeliveryQuery, before: int | None, webhook: Webhook
) -> web.Response:
    """List the last deliveries, the newest first."""
    table = admin_context(request).webhooks
    found = await table.deliveries(webhook.id, query.limit + 1, before)
    page, last = split_page(found, query.limit)
    items = [webhook_schemas.delivery_document(one.delivery) for one in page]
    cursor = None if last is None else encode_cursor(str(last.number))
    return json_response(webhook_schemas.DeliveryPage(items, cursor))


async def set_aside(
    request: web.Request, query: DeliveryQuery, after: str | None, webhook: Webhook
) -> web.Response:
    """List the messages that were set aside, the newest first."""
    found = await admin_context(request).webhooks.set_aside(webhook.id)
    page, cursor = _page(found, lambda one: one.message, query.limit, after)
    items = [webhook_schemas.set_aside_document(one) for one in page]
    return json_response(webhook_schemas.SetAsidePage(items, cursor))


async def send_again(request: web.Request, webhook: Webhook) -> web.Response:
    """Send a message that was set aside once more, and answer what became of it."""
    service = admin_context(request).services.webhooks
    sent: Delivery = unwrap(await service.send_again(webhook.id, request.match_info["message"]))
    return json_response(webhook_schemas.delivery_document(sent))
