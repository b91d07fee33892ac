"""What a webhook is sent next, and what becomes of it: the part of `node.webhook_sender` that reads and writes.

Tested in tests/gateway/node/test_webhook_sender.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import msgspec

from gateway.core.audit_event import LogEntry
from gateway.core.times import Clock, to_text
from gateway.core.webhook import (
    GAP,
    Failing,
    Message,
    Next,
    Notice,
    Webhook,
    body_of,
    failed,
    gives_up,
)
from gateway.core.webhook_secret import open_sealed, signature_headers
from gateway.runtime.webhook_client import Outcome, WebhookClient
from gateway.services.schemas import event_document
from gateway.store import notices, webhooks
from gateway.store.engine import Engine, Transaction
from gateway.store.events import Events
from gateway.store.key_file import KeyStore
from gateway.store.webhooks import Delivery, SetAside, StoredNotice, Webhooks

_BATCH: Final = 200
"""Events of one read."""
NO_KEY: Final = "its secret cannot be opened: the token key that sealed it is gone; delete the webhook and make it anew"


class WebhookOutbox:
    """Follows the log for webhooks. Every method raises `StoreUnavailable`.

    Args:
        engine: the database.
        keys: open the secrets.
        clock: the present.
        client: posts.
        instance: the id of this start of the node.
        away_after: seconds after which an ICE that is not connected is away.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        keys: KeyStore,
        clock: Clock,
        client: WebhookClient,
        instance: str,
        away_after: float,
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._clock = clock
        self._client = client
        self._instance = instance
        self._away_after = away_after
        self._webhooks = Webhooks(engine.fetch)
        self._events = Events(engine.fetch)

    async def enabled(self) -> list[Webhook]:
        """The webhooks to send to."""
        return await self._webhooks.enabled()

    async def find(self, webhook_id: str) -> Webhook | None:
        """The webhook of this id."""
        return await self._webhooks.find(webhook_id)

    async def acquire(self) -> bool:
        """Become the node that sends, unless another one is; returns whether this one is."""
        mine = await webhooks.sends(self._engine.fetch, self._instance)
        if mine is not None:
            return mine
        return await self._engine.write(
            functools.partial(webhooks.acquire, instance=self._instance)
        )

    async def next(self, webhook: Webhook, position: int) -> Next:
        """What comes after this position, and after the notices that are done."""
        log_id = await self._webhooks.log_id()
        last = await self._events.last()
        if not webhook.follows_log or position > last:  # a restored log may end before it
            position = last
        entry: LogEntry | None = None
        if position < last:
            found = await self._events.after(position, 1)
            if found and found[0].seq > position + 1:
                return Next(_gap(log_id, position, found[0]), position)
            position, entry = await self._next_event(webhook, position, found)
        notice = await self._webhooks.notice(webhook.id) if webhook.takes_notices else None
        if notice is not None and (entry is None or notice.at <= entry.event.at):
            return Next(_of_notice(notice, position), position)
        return Next(None if entry is None else _of_event(log_id, entry), position)

    async def _next_event(
        self, webhook: Webhook, position: int, found: list[LogEntry]
    ) -> tuple[int, LogEntry | None]:
        """The next event that it wants, if any, and the position before it; `found` begins what is read."""
        while found:
            for entry in found:
                if webhook.wants(entry.event.action):
                    return entry.seq - 1, entry
            position = found[-1].seq
            found = await self._events.after(position, _BATCH)
        return position, None

    async def send(self, webhook: Webhook, message: Message, seconds: float) -> Outcome:
        """Post a message once, and wait at most `seconds` for an answer."""
        return await post(
            webhook,
            message,
            client=self._client,
            keys=self._keys,
            clock=self._clock,
            seconds=seconds,
        )

    async def record(self, webhook: Webhook, message: Message, outcome: Outcome) -> Webhook | None:
        """Store what became of an attempt; returns the webhook now, None if this node is not to send to it any more."""
        now = self._clock()

        async def unit(transaction: Transaction) -> Webhook | None:
            if not await webhooks.hold_sender(transaction, self._instance):
                return None
            found = await webhooks.find(transaction, webhook.id)
            if found is None:
                return None
            await webhooks.record(transaction, found.id, delivery_of(message, outcome, now))
            failing = None
            if outcome.error is not None:
                failing = failed(found.failing, message.id, now, outcome.error)
                if gives_up(failing, now):
                    given_up = _given_up(message, failing, now)
                    await webhooks.set_aside(transaction, found.id, given_up)
                    failing = None
            position = found.position if failing else message.position
            notice = None if failing else message.notice
            await webhooks.move_on(transaction, found.id, position, failing, notice)
            return replace(found, position=position, failing=failing) if found.enabled else None

        return await self._engine.write(unit)

    async def keep_position(self, webhook: Webhook, position: int) -> None:
        """Store a position up to which no event is for this webhook."""

        async def unit(transaction: Transaction) -> None:
            if await webhooks.hold_sender(transaction, self._instance):
                found = await webhooks.find(transaction, webhook.id)
                if found is not None:
                    await webhooks.move_on(transaction, found.id, position, found.failing)

        await self._engine.write(unit)

    # --- notices -------------------------------------------------------------------------------------

    async def look_for_outages(self, enabled: Sequence[Webhook], *, away: bool) -> None:
        """Make notices of the ICEs that are back and, if `away`, of those that are away.

        Beyond the limit the oldest notices of a webhook become a gap.
        """
        log_id = await self._webhooks.log_id()
        if any(one.wants(Notice.AWAY) or one.wants(Notice.BACK) for one in enabled):
            while found := await notices.ended(self._engine.fetch):
                await self._engine.write(
                    functools.partial(
                        notices.tell_back,
                        found=found,
                        webhooks=enabled,
                        log_id=log_id,
                        now=self._clock(),
                    )
                )
            while away and (found := await self._away()):
                await self._engine.write(
                    functools.partial(
                        notices.tell_away,
                        found=found,
                        webhooks=enabled,
                        log_id=log_id,
                        now=self._clock(),
                        after=self._away_after,
                    )
                )
        for webhook_id, number in await notices.overfull(self._engine.fetch):
            await self._engine.write(
                functools.partial(
                    notices.leave_out,
                    webhook_id=webhook_id,
                    number=number,
                    log_id=log_id,
                )
            )

    async def _away(self) -> list[tuple[object, ...]]:
        before = self._clock() - timedelta(seconds=self._away_after)
        return await notices.away(self._engine.fetch, before)


async def post(
    webhook: Webhook,
    message: Message,
    *,
    client: WebhookClient,
    keys: KeyStore,
    clock: Clock,
    seconds: float,
) -> Outcome:
    """Sign a message and post it once."""
    secret = open_sealed(keys.find, webhook.id, webhook.secret)
    if secret is None:
        return Outcome(None, NO_KEY, 0)
    headers = signature_headers(secret, message.id, clock(), message.body)
    return await client.post(webhook.url, headers, message.body, seconds)


def delivery_of(message: Message, outcome: Outcome, now: datetime) -> Delivery:
    """The row of an attempt."""
    return Delivery(
        message.id, message.type, now, outcome.status, outcome.error, outcome.elapsed_ms
    )


def _of_event(log_id: str, entry: LogEntry) -> Message:
    event = entry.event
    body = body_of(event.action, to_text(event.at), event_document(entry))
    return Message(f"{log_id}-{entry.seq}", event.action, body, entry.seq)


def _of_notice(notice: StoredNotice, position: int) -> Message:
    body = body_of(notice.type, to_text(notice.at), msgspec.Raw(notice.data))
    return Message(f"notice-{notice.id}", notice.type, body, position, notice.number)


def _gap(log_id: str, position: int, first: LogEntry) -> Message:
    """The notice that the events after `position`, up to that before `first`, were pruned."""
    data = {"first": position + 1, "last": first.seq - 1}
    body = body_of(GAP, to_text(first.event.at), data)
    return Message(f"notice-{log_id}-gap-{position + 1}", GAP, body, first.seq - 1)


def _given_up(message: Message, failing: Failing, now: datetime) -> SetAside:
    return SetAside(
        message.id,
        message.type,
        message.body.decode(),
        now,
        failing.attempts,
        failing.error,
    )
