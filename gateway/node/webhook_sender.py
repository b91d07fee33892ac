"""Sends to webhooks: a task for each, on the one node of a database that holds the lease for it.

Each task has one message on its way at a time, so that messages keep their order and a receiver that hangs delays no
other. While no webhook is enabled nothing is read, except at the start and after an event of a webhook.

Tested in tests/gateway/node/test_webhook_sender.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from gateway.core.audit_event import AuditAction, LogEntry
from gateway.core.times import Clock
from gateway.core.webhook import ANSWER_TIME, Message, Next, Webhook, seconds_left
from gateway.node.lease import Lease
from gateway.runtime.eventloop import cancel_and_wait, wait_at_most
from gateway.runtime.webhook_client import Outcome
from gateway.store.engine import StoreUnavailable

_IDLE: Final = 60.0
"""Seconds between two reads for a webhook without notices, if no event wakes it."""
_STORE: Final = 10.0
"""Seconds after which the position of a webhook that has nothing to send is stored."""
_GRACE: Final = 300.0
"""Seconds after the start, at most, in which no `ice.away` is sent: after an outage of the gateway all ICEs are away."""
_WAKING: Final = frozenset(
    {
        AuditAction.CREATE_WEBHOOK,
        AuditAction.CHANGE_WEBHOOK,
        AuditAction.DELETE_WEBHOOK,
        AuditAction.CONFIRM_RESTORE,
        AuditAction.RETIRE_KEY,
    }
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SendingPace:
    """How often the sender looks and how long it waits, in seconds. No setting: only tests need other values.

    Attributes:
        look: between two checks whether this node is the one that sends, and of the clock, which may have been set.
        poll: between two reads of notices, which come without an event of the log.
        answer: in which a receiver has to answer.
        retry: until the next attempt while the database is away.
    """

    look: float = 5.0
    poll: float = 1.0
    answer: float = ANSWER_TIME
    retry: float = 1.0


DEFAULT_PACE: Final = SendingPace()


class Outbox(Protocol):
    """Reads what is to be sent, sends it, and stores what became of it. Every method raises `StoreUnavailable`."""

    async def enabled(self) -> list[Webhook]:
        """The webhooks to send to."""

    async def find(self, webhook_id: str) -> Webhook | None:
        """The webhook of this id."""

    async def acquire(self) -> bool:
        """Become the node that sends, unless another one is; returns whether this one is."""

    async def next(self, webhook: Webhook, position: int) -> Next:
        """What comes after this position."""

    async def send(self, webhook: Webhook, message: Message, seconds: float) -> Outcome:
        """Post a message once."""

    async def record(self, webhook: Webhook, message: Message, outcome: Outcome) -> Webhook | None:
        """Store what became of an attempt; None if this node is not to send to it any more."""

    async def keep_position(self, webhook: Webhook, position: int) -> None:
        """Store a position up to which no event is for this webhook."""

    async def look_for_outages(self, enabled: Sequence[Webhook], *, away: bool) -> None:
        """Make notices of the ICEs that are back and, if `away`, of those that are away."""


@dataclass(slots=True)
class _Sending:
    """The task of a webhook; `wake` is set when there may be something to send.

    `stale` is set when the webhook has changed: the task ends after its present attempt, and another one begins.
    `unstored` is when its position moved on without being stored, by `monotonic`.
    """

    webhook: Webhook
    task: asyncio.Task[None]
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    stale: asyncio.Event = field(default_factory=asyncio.Event)
    unstored: float | None = None

    def end(self) -> None:
        """Let the task end."""
        self.stale.set()
        self.wake.set()


class WebhookSender:
    """The task of a node that sends to webhooks, while no other node does.

    Args:
        clock: the present.
        monotonic: seconds that pass, unaffected by `clock`.
        lease: of this node: nothing is sent without it, since another node may send by then.
        held: whether the database is a restored backup that no admin has confirmed: then nothing is sent.
        delivered: is called with `taken`, `failed` or `set-aside` for each attempt.
        away_after: seconds after which an ICE that is not connected is away.
        pace: see `SendingPace`.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        lease: Lease,
        held: Callable[[], bool],
        delivered: Callable[[str], None],
        away_after: float,
        pace: SendingPace = DEFAULT_PACE,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lease = lease
        self._held = held
        self._delivered = delivered
        self._pace = pace
        self._away_from = monotonic() + min(away_after, _GRACE)
        self._wake = asyncio.Event()
        self._sending: dict[str, _Sending] = {}

    @property
    def webhooks(self) -> list[Webhook]:
        """The webhooks to which this node sends, as they were after their last attempt."""
        return [one.webhook for one in self._sending.values()]

    def apply(self, entry: LogEntry) -> None:
        """Look for something to send after an event."""
        event = entry.event
        if event.action in _WAKING:
            # Without the key that was retired, only what was sealed anew in the table can be opened.
            changed = event.detail.get("webhook")
            self._restart(list(self._sending) if changed is None else [changed])
        for one in self._sending.values():
            one.wake.set()

    def refresh(self) -> None:
        """Read all webhooks again, for example after an interruption of the log."""
        self._restart(list(self._sending))

    def _restart(self, ids: Sequence[str]) -> None:
        """Have the tasks of these webhooks end after their present attempts, and begin with what the table says."""
        for webhook_id in ids:
            if webhook_id in self._sending:
                self._sending[webhook_id].end()
        self._wake.set()

    async def run(self, outbox: Outbox) -> None:
        """Send until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    enabled = await self._reconcile(outbox)
                except StoreUnavailable:
                    await asyncio.sleep(self._pace.retry)
                    continue
                except Exception:  # noqa: BLE001 - a fault here must not stop the gateway
                    _log.exception("webhook sender failed")
                    enabled = True
                if enabled:
                    await wait_at_most(self._wake, self._pace.look)
                else:
                    await self._wake.wait()
        finally:
            await self._stop(list(self._sending))

    async def _reconcile(self, outbox: Outbox) -> bool:
        """Have a task for each webhook, if this node is the one that sends; returns whether there is any."""
        enabled = {} if self._held() else {one.id: one for one in await outbox.enabled()}
        sends = not enabled or (self._lease.valid and await outbox.acquire())
        if self._held() or not sends:
            await self._stop(list(self._sending))
            return bool(enabled)
        for webhook_id, one in list(self._sending.items()):
            if one.task.done():
                del self._sending[webhook_id]
            elif webhook_id not in enabled:
                one.end()
        for webhook in enabled.values():
            if webhook.id not in self._sending:
                self._start(outbox, webhook)
        if enabled:
            away = self._monotonic() >= self._away_from
            await outbox.look_for_outages(list(enabled.values()), away=away)
        return bool(enabled or self._sending)

    def _start(self, outbox: Outbox, webhook: Webhook) -> None:
        async def work() -> None:
            await self._send_all(outbox, self._sending[webhook.id])

        # The task begins only after this function has stored it.
        self._sending[webhook.id] = _Sending(webhook, asyncio.create_task(work()))

    async def _stop(self, ids: Sequence[str]) -> None:
        for webhook_id in ids:
            await cancel_and_wait(self._sending.pop(webhook_id).task)

    async def _send_all(self, outbox: Outbox, sending: _Sending) -> None:
        """Send what there is for a webhook, in order, until it is not this node's any more."""
        while True:
            try:
                await self._follow(outbox, sending)
            except StoreUnavailable:
                await asyncio.sleep(self._pace.retry)
            except Exception:  # noqa: BLE001 - a fault of one webhook must not stop the others
                _log.exception("webhook failed", webhook=sending.webhook.id)
                await asyncio.sleep(self._pace.look)
            else:
                self._wake.set()
                return
            found = await self._find(outbox, sending.webhook.id)
            if found is None:
                return
            sending.webhook = found

    async def _find(self, outbox: Outbox, webhook_id: str) -> Webhook | None:
        while True:
            try:
                return await outbox.find(webhook_id)
            except StoreUnavailable:
                await asyncio.sleep(self._pace.retry)

    async def _follow(self, outbox: Outbox, sending: _Sending) -> None:
        position = sending.webhook.position
        while not sending.stale.is_set():
            sending.wake.clear()
            found = await outbox.next(sending.webhook, position)
            position, message = found.position, found.message
            if message is None:
                await self._wait(outbox, sending, position)
                continue
            if not await self._is_due(sending, message):
                return
            # Another node may send once the lease has expired: what was begun here must have ended by then.
            seconds = min(self._pace.answer, self._lease.left)
            if seconds <= 0:
                return
            outcome = await outbox.send(sending.webhook, message, seconds)
            webhook = await outbox.record(sending.webhook, message, outcome)
            self._count(message, outcome, webhook)
            if webhook is None:
                return
            sending.webhook, position = webhook, webhook.position

    def _count(self, message: Message, outcome: Outcome, webhook: Webhook | None) -> None:
        if outcome.error is None:
            self._delivered("taken")
            return
        self._delivered("failed")
        if webhook is not None and webhook.failing is None:
            self._delivered("set-aside")
            _log.warning("a message to a webhook is set aside", webhook=webhook.id, id=message.id)

    async def _wait(self, outbox: Outbox, sending: _Sending, position: int) -> None:
        """Wait for something to send; store how far the log was read once nothing has happened for a while."""
        webhook, now = sending.webhook, self._monotonic()
        if position == webhook.position:
            sending.unstored = None
        elif sending.unstored is None:
            sending.unstored = now
        elif now - sending.unstored >= _STORE:
            await outbox.keep_position(webhook, position)
            sending.webhook, sending.unstored = replace(webhook, position=position), None
        pause = self._pace.poll if webhook.takes_notices else _IDLE
        await wait_at_most(sending.wake, pause if sending.unstored is None else min(pause, _STORE))

    async def _is_due(self, sending: _Sending, message: Message) -> bool:
        """Wait until a message may be sent again; False if its webhook has changed meanwhile."""
        failing = sending.webhook.failing
        if failing is not None and failing.message == message.id:
            while (left := seconds_left(failing, self._clock())) > 0:
                await wait_at_most(sending.stale, min(left, self._pace.look))
                if sending.stale.is_set():
                    break
        return not sending.stale.is_set()
