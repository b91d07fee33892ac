"""SQL of webhooks, their deliveries, the messages that were set aside, and the node that sends.

Only the node that sends changes the position of a webhook. Its transactions check that it still is that node
(`hold_sender`), so that a node whose lease has expired changes nothing any more.

Tested in tests/contract/test_webhooks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from gateway.core.times import from_text, to_text
from gateway.core.webhook import Failing, Notice, Webhook
from gateway.core.webhook_secret import sealed_by
from gateway.store.engine import (
    Fetch,
    Row,
    Transaction,
    containing,
    damaged,
    from_columns,
    places,
)

KEPT: Final = 100
"""Deliveries of a webhook that are kept, and messages that were set aside."""
_NAMES: Final = tuple(Webhook.__dataclass_fields__)
_COLUMNS: Final = ", ".join(_NAMES)
_LISTED: Final = f"SELECT {_COLUMNS} FROM webhooks"
_DELIVERY: Final = "message, type, at, status, error, elapsed_ms"
_SET_ASIDE: Final = "message, type, body, at, attempts, error"
_FOUND: Final = "lower(name) LIKE $1 ESCAPE '\\'"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt to send a message: the status of the answer, or why there was none."""

    message: str
    type: str
    at: datetime
    status: int | None
    error: str | None
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class NumberedDelivery:
    """A delivery with its number, which is in the order of the attempts."""

    number: int
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message that was given up at the time `at`, with the error of the last of its attempts."""

    message: str
    type: str
    body: str
    at: datetime
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class StoredNotice:
    """A notice that waits for a webhook; `data` is JSON."""

    number: int
    id: str
    type: str
    at: datetime
    data: bytes


# --- in a transaction ----------------------------------------------------------------------------


async def find(transaction: Transaction, webhook_id: str) -> Webhook | None:
    """The webhook of this id, locked until the transaction ends."""
    rows = await transaction.hold(f"{_LISTED} WHERE id = $1", webhook_id)
    return _webhook(rows[0]) if rows else None


async def count(transaction: Transaction) -> int:
    """How many webhooks there are."""
    [(number,)] = await transaction.fetch("SELECT count(*) FROM webhooks")
    return int(number)


async def add(transaction: Transaction, webhook: Webhook, log_id: str) -> None:
    """Store a new webhook; the first one names this log `log_id`."""
    await transaction.run(
        "INSERT INTO webhook_sender (number, log) VALUES (1, $1) ON CONFLICT DO NOTHING", log_id
    )
    await transaction.run(
        f"INSERT INTO webhooks ({_COLUMNS}, finished) VALUES ({places(len(_NAMES) + 1)})",
        *_row(webhook),
    )


async def update(transaction: Transaction, webhook: Webhook) -> None:
    """Store a webhook that the caller has locked."""
    names = (*_NAMES, "finished")
    settings = ", ".join(f"{name} = ${place}" for place, name in enumerate(names, 1))
    await transaction.run(f"UPDATE webhooks SET {settings} WHERE id = $1", *_row(webhook))


async def delete(transaction: Transaction, webhook_id: str) -> None:
    """Delete a webhook that the caller has locked, with all that is kept for it."""
    await transaction.run("DELETE FROM webhook_deliveries WHERE webhook = $1", webhook_id)
    await transaction.run("DELETE FROM webhook_set_aside WHERE webhook = $1", webhook_id)
    await transaction.run("DELETE FROM webhooks WHERE id = $1", webhook_id)
    # Also those of a transaction that did not yet see that an earlier one was deleted.
    await transaction.run(
        "DELETE FROM webhook_notices WHERE webhook NOT IN (SELECT id FROM webhooks)"
    )


async def sends(fetch: Fetch, instance: str) -> bool | None:
    """Whether this node is the one that sends; None if no living node is."""
    rows = await fetch(
        "SELECT node = $1, EXISTS (SELECT 1 FROM ice_nodes WHERE instance = node AND gone = 0)"
        " FROM webhook_sender",
        instance,
    )
    mine, alive = rows[0] if rows else (False, False)
    if mine:
        return True
    return False if alive else None


async def acquire(transaction: Transaction, instance: str) -> bool:
    """Make this node the one that sends, unless another node that is not gone does; returns whether this one is."""
    return bool(
        await transaction.run(
            "UPDATE webhook_sender SET node = $1 WHERE node IS NULL OR node = $1"
            " OR NOT EXISTS (SELECT 1 FROM ice_nodes WHERE instance = node AND gone = 0)",
            instance,
        )
    )


async def hold_sender(transaction: Transaction, instance: str) -> bool:
    """Whether this node is still the one that sends; then it stays so until the transaction ends."""
    return bool(
        await transaction.hold("SELECT number FROM webhook_sender WHERE node = $1", instance)
    )


async def record(transaction: Transaction, webhook_id: str, delivery: Delivery) -> None:
    """Add a delivery of a webhook, and delete those beyond the newest `KEPT`."""
    await transaction.run(
        f"INSERT INTO webhook_deliveries (webhook, {_DELIVERY}) VALUES ({places(7)})",
        webhook_id,
        delivery.message,
        delivery.type,
        to_text(delivery.at),
        delivery.status,
        delivery.error,
        delivery.elapsed_ms,
    )
    await transaction.run(
        "DELETE FROM webhook_deliveries WHERE webhook = $1 AND number <= (SELECT number FROM webhook_deliveries"
        f" WHERE webhook = $1 ORDER BY number DESC LIMIT 1 OFFSET {KEPT})",
        webhook_id,
    )


async def set_aside(transaction: Transaction, webhook_id: str, given_up: SetAside) -> None:
    """Keep a message that was given up, and delete those beyond the newest `KEPT`."""
    await transaction.run(
        f"INSERT INTO webhook_set_aside (webhook, {_SET_ASIDE}) VALUES ({places(7)})"
        " ON CONFLICT DO NOTHING",
        webhook_id,
        given_up.message,
        given_up.type,
        given_up.body,
        to_text(given_up.at),
        given_up.attempts,
        given_up.error,
    )
    await transaction.run(
        "DELETE FROM webhook_set_aside WHERE webhook = $1 AND number <= (SELECT number FROM webhook_set_aside"
        f" WHERE webhook = $1 ORDER BY number DESC LIMIT 1 OFFSET {KEPT})",
        webhook_id,
    )


async def taken(transaction: Transaction, webhook_id: str, message: str) -> None:
    """Forget a message that was set aside and has been taken since."""
    await transaction.run(
        "DELETE FROM webhook_set_aside WHERE webhook = $1 AND message = $2", webhook_id, message
    )


async def move_on(
    transaction: Transaction,
    webhook_id: str,
    position: int,
    failing: Failing | None,
    notice: int | None = None,
) -> None:
    """Store the position of a webhook and what is failing, and delete the notice of this number, which was sent."""
    await transaction.run(
        "UPDATE webhooks SET position = $2, failing = $3 WHERE id = $1",
        webhook_id,
        position,
        _text(failing),
    )
    if notice is not None:
        await transaction.run("DELETE FROM webhook_notices WHERE number = $1", notice)


async def reseal(transaction: Transaction, webhook_id: str, sealed: str) -> None:
    """Store the secret of a webhook, sealed by another key."""
    await transaction.run("UPDATE webhooks SET secret = $2 WHERE id = $1", webhook_id, sealed)


async def sealed_secrets(fetch: Fetch, kid: str) -> list[tuple[str, str, str]]:
    """Id, name and sealed secret of the webhooks whose secret was sealed by this key."""
    rows = await fetch("SELECT id, name, secret FROM webhooks ORDER BY id")
    return [(one, name, secret) for one, name, secret in rows if sealed_by(secret) == kid]


# --- reading -------------------------------------------------------------------------------------


class Webhooks:
    """Reads webhooks and what became of their messages."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def find(self, webhook_id: str) -> Webhook | None:
        """The webhook of this id."""
        rows = await self._fetch(f"{_LISTED} WHERE id = $1", webhook_id)
        return _webhook(rows[0]) if rows else None

    async def all(self, text: str = "") -> list[Webhook]:
        """The webhooks whose name contains `text`, the oldest first."""
        rows = await self._fetch(
            f"{_LISTED} WHERE {_FOUND} ORDER BY createdon, id", containing(text.lower())
        )
        return [_webhook(row) for row in rows]

    async def enabled(self) -> list[Webhook]:
        """The webhooks that are enabled."""
        return [_webhook(row) for row in await self._fetch(f"{_LISTED} WHERE enabled = 1")]

    async def log_id(self) -> str:
        """The id of this log, which is empty while there is no webhook."""
        rows = await self._fetch("SELECT log FROM webhook_sender")
        return str(rows[0][0]) if rows else ""

    async def notice(self, webhook_id: str) -> StoredNotice | None:
        """The oldest notice that waits for a webhook."""
        rows = await self._fetch(
            "SELECT number, id, type, at, data FROM webhook_notices WHERE webhook = $1"
            " ORDER BY number LIMIT 1",
            webhook_id,
        )
        if not rows:
            return None
        number, notice_id, kind, at, data = rows[0]
        return StoredNotice(number, notice_id, kind, from_text(at), data.encode())

    async def deliveries(
        self, webhook_id: str, limit: int, before: int | None = None
    ) -> list[NumberedDelivery]:
        """The newest deliveries of a webhook, numbered below `before`."""
        rows = await self._fetch(
            f"SELECT number, {_DELIVERY} FROM webhook_deliveries"
            " WHERE webhook = $1 AND number < $2 ORDER BY number DESC LIMIT $3",
            webhook_id,
            2**62 if before is None else before,
            limit,
        )
        return [
            NumberedDelivery(row[0], from_columns(Delivery, row[1:], "a delivery")) for row in rows
        ]

    async def set_aside(self, webhook_id: str) -> list[SetAside]:
        """What was set aside for a webhook, the newest first."""
        rows = await self._fetch(
            f"SELECT {_SET_ASIDE} FROM webhook_set_aside WHERE webhook = $1 ORDER BY number DESC",
            webhook_id,
        )
        return [from_columns(SetAside, row, "a message that was set aside") for row in rows]

    async def set_aside_counts(self) -> dict[str, int]:
        """How many messages are set aside, by webhook; one without any is left out."""
        rows = await self._fetch("SELECT webhook, count(*) FROM webhook_set_aside GROUP BY webhook")
        return {webhook: int(number) for webhook, number in rows}


def _row(webhook: Webhook) -> Row:
    return (
        webhook.id,
        webhook.name,
        webhook.url,
        msgspec.json.encode(webhook.events).decode(),
        int(webhook.enabled),
        to_text(webhook.enabledon),
        webhook.secret,
        webhook.position,
        _text(webhook.failing),
        webhook.createdby,
        to_text(webhook.createdon),
        int(webhook.wants(Notice.FINISHED)),
    )


def _text(failing: Failing | None) -> str | None:
    return None if failing is None else msgspec.json.encode(failing).decode()


def _webhook(row: Row) -> Webhook:
    values = dict(zip(_NAMES, row, strict=True))
    try:
        values["events"] = tuple(msgspec.json.decode(values["events"], type=list[str]))
        if values["failing"] is not None:
            values["failing"] = msgspec.json.decode(values["failing"], type=Failing)
    except msgspec.DecodeError as error:
        raise damaged(f"the webhook {row[0]}", error) from error
    values["enabled"] = bool(values["enabled"])
    return from_columns(Webhook, tuple(values.values()), f"the webhook {row[0]}")
