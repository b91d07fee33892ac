"""Makes, changes and deletes webhooks, sends a test, and sends again what was set aside.

Tested in tests/gateway/admin/api/test_webhooks.py.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from gateway.core.audit_event import Actor, AuditAction, Event, differences
from gateway.core.operation import NotValid
from gateway.core.problems import Problem, invalid, problem
from gateway.core.secret import Secret
from gateway.core.times import Clock, to_text
from gateway.core.webhook import (
    ANSWER_TIME,
    MAX_WEBHOOKS,
    TEST,
    Message,
    Webhook,
    body_of,
    check_events,
    check_name,
    check_url,
    origin,
)
from gateway.core.webhook_secret import new_secret, seal
from gateway.runtime.webhook_client import WebhookClient
from gateway.services.webhook_outbox import delivery_of, post
from gateway.store import events, webhooks
from gateway.store.engine import Engine, Transaction
from gateway.store.events import Events
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.tables import needs_keys
from gateway.store.webhooks import Delivery, Webhooks

NO_WEBHOOK: Final = problem("not-found", "There is no such webhook.")
NO_MESSAGE: Final = problem("not-found", "No such message of this webhook is set aside.")
_AT_ONCE: Final = 8
"""Messages on request of admins that are sent at a time."""


@dataclass(frozen=True, slots=True)
class WantedWebhook:
    """A webhook to make."""

    name: str
    url: str
    events: Sequence[str]
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class WantedChanges:
    """What to change of a webhook; None leaves a member as it is."""

    name: str | None = None
    url: str | None = None
    events: Sequence[str] | None = None
    enabled: bool | None = None


W = TypeVar("W", WantedWebhook, WantedChanges)


@dataclass(frozen=True, slots=True)
class WebhookIssued:
    """A new webhook and its secret, which is shown once."""

    webhook: Webhook
    secret: Secret


class WebhookService:
    """Changes webhooks, and sends to them what an admin asks for. Every method raises `StoreUnavailable`.

    A message that an admin sends is awaited, `ANSWER_TIME` seconds at most; `_AT_ONCE` of them run at a time.
    """

    def __init__(
        self, *, engine: Engine, keys: KeyStore, clock: Clock, client: WebhookClient
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._clock = clock
        self._client = client
        self._rows = Webhooks(engine.fetch)
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def checked(self, asked: W) -> W | Problem:
        """`asked`, with each event once, or what is not valid in it."""
        try:
            if asked.name is not None:
                check_name(asked.name)
            if asked.url is not None:
                check_url(asked.url, self._client.allowed)
            if asked.events is not None:
                return replace(asked, events=check_events(asked.events))
        except NotValid as fault:
            return invalid(fault.field, str(fault))
        return asked

    async def create(self, actor: Actor, new: WantedWebhook) -> WebhookIssued | Problem:
        """Make a webhook that gets what happens from now on."""
        now = self._clock()
        wanted = self.checked(new)
        if isinstance(wanted, Problem):
            return wanted
        webhook_id, secret = secrets.token_hex(8), new_secret()

        async def unit(transaction: Transaction) -> WebhookIssued | Problem:
            if await webhooks.count(transaction) >= MAX_WEBHOOKS:
                return invalid("name", f"there are {MAX_WEBHOOKS} webhooks: delete one first")
            try:
                ring = self._keys.for_sealing(may_create=not await needs_keys(transaction.fetch))
            except KeyFileUnusable as error:
                return problem("keys-unavailable", str(error))
            webhook = Webhook(
                webhook_id,
                wanted.name,
                wanted.url,
                tuple(wanted.events),
                wanted.enabled,
                now,
                seal(ring.sealing_key, webhook_id, secret),
                await Events(transaction.fetch).last(),
                None,
                actor.name,
                now,
            )
            await webhooks.add(transaction, webhook, secrets.token_hex(8))
            detail = {
                "url": origin(wanted.url),
                "events": list(wanted.events),
                "enabled": wanted.enabled,
            }
            self._log(transaction, actor, AuditAction.CREATE_WEBHOOK, webhook, detail)
            return WebhookIssued(webhook, secret)

        return await self._engine.write(unit)

    async def change(
        self, actor: Actor, webhook_id: str, changes: WantedChanges
    ) -> Webhook | Problem:
        """Change a webhook. A message that was not taken is sent again at once, for its full time."""
        now = self._clock()
        wanted = self.checked(changes)
        if isinstance(wanted, Problem):
            return wanted
        given = {
            name: value
            for name in WantedChanges.__dataclass_fields__
            if (value := getattr(wanted, name)) is not None
        }

        async def unit(transaction: Transaction) -> Webhook | Problem:
            before = await webhooks.find(transaction, webhook_id)
            if before is None:
                return NO_WEBHOOK
            new = replace(before, **given, failing=None)
            if new.enabled and not before.enabled:
                new = replace(new, enabledon=now)
            await webhooks.update(transaction, new)
            self._log(
                transaction, actor, AuditAction.CHANGE_WEBHOOK, new, _differences(before, new)
            )
            return new

        return await self._engine.write(unit)

    async def delete(self, actor: Actor, webhook_id: str) -> Webhook | Problem:
        """Delete a webhook and what is kept for it."""

        async def unit(transaction: Transaction) -> Webhook | Problem:
            webhook = await webhooks.find(transaction, webhook_id)
            if webhook is None:
                return NO_WEBHOOK
            await webhooks.delete(transaction, webhook_id)
            self._log(transaction, actor, AuditAction.DELETE_WEBHOOK, webhook, {})
            return webhook

        return await self._engine.write(unit)

    async def test(self, webhook_id: str) -> Delivery | Problem:
        """Send a message of type `test` now, whether or not the webhook is enabled."""
        webhook = await self._rows.find(webhook_id)
        if webhook is None:
            return NO_WEBHOOK
        data = {"webhook": webhook.id, "name": webhook.name}
        body = body_of(TEST, to_text(self._clock()), data)
        message = Message(f"notice-{secrets.token_hex(12)}", TEST, body, webhook.position)
        return await self._send(webhook, message)

    async def send_again(self, webhook_id: str, message_id: str) -> Delivery | Problem:
        """Send a message that was set aside once more; if it is taken, it is set aside no longer."""
        webhook = await self._rows.find(webhook_id)
        if webhook is None:
            return NO_WEBHOOK
        for one in await self._rows.set_aside(webhook_id):
            if one.message == message_id:
                message = Message(one.message, one.type, one.body.encode(), webhook.position)
                return await self._send(webhook, message)
        return NO_MESSAGE

    async def _send(self, webhook: Webhook, message: Message) -> Delivery:
        async with self._slots:
            outcome = await post(
                webhook,
                message,
                client=self._client,
                keys=self._keys,
                clock=self._clock,
                seconds=ANSWER_TIME,
            )
        delivery = delivery_of(message, outcome, self._clock())

        async def unit(transaction: Transaction) -> None:
            if await webhooks.find(transaction, webhook.id) is None:
                return  # it was deleted meanwhile
            await webhooks.record(transaction, webhook.id, delivery)
            if delivery.error is None:
                await webhooks.taken(transaction, webhook.id, message.id)

        await self._engine.write(unit)
        return delivery

    def _log(
        self,
        transaction: Transaction,
        actor: Actor,
        action: AuditAction,
        webhook: Webhook,
        detail: dict[str, Any],
    ) -> None:
        event = Event.of(
            self._clock(), actor, action, webhook=webhook.id, name=webhook.name, **detail
        )
        events.append(transaction, [event])


def _differences(before: Webhook, new: Webhook) -> dict[str, Any]:
    """What differs, for the audit log; of a URL only its origin, since a path may hold a credential."""
    detail = differences(before, new, ("enabled",))
    if before.name != new.name:
        detail["name_before"] = before.name
    if before.events != new.events:
        detail |= {"events": list(new.events), "events_before": list(before.events)}
    if before.url != new.url:
        detail |= {"url": origin(new.url), "url_before": origin(before.url)}
    return detail
