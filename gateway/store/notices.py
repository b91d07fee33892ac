"""SQL of the notices to webhooks: which ICEs are away or back, and what waits to be sent.

An outage is a row of `ice_away`, so that it makes one notice, whichever node finds it and whatever restarts. A trigger
of `ice_operations` makes the notices `operation.finished`.

Tested in tests/contract/test_webhooks.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from gateway.core.times import from_text, to_text
from gateway.core.webhook import GAP, Notice, Webhook
from gateway.store.engine import Fetch, Row, Transaction, as_json, is_in, rows_of

KEPT: Final = 10_000
"""Notices that wait for a webhook at most."""
_BATCH: Final = 1_000
"""ICEs of one read, and of one transaction."""
_SEEN: Final = "coalesce(t.lastseen, t.registeredon)"
_AWAY: Final = (
    f"SELECT t.ice_name, t.ice_type, t.provisionedto, {_SEEN} FROM ice_tokens t"
    f" WHERE t.status = 'registered' AND t.node IS NULL AND {_SEEN} < $1"
    " AND NOT EXISTS (SELECT 1 FROM ice_away a WHERE a.ice_name = t.ice_name)"
    f" ORDER BY {_SEEN}, t.ice_name LIMIT {_BATCH}"
)
# One that came and went between two looks is back, too.
_ENDED: Final = (
    "SELECT t.ice_name, t.ice_type, t.provisionedto, a.since, t.status, s.since"
    " FROM ice_away a JOIN ice_tokens t ON t.ice_name = a.ice_name"
    " LEFT JOIN ice_sessions s ON s.number = (SELECT max(number) FROM ice_sessions WHERE ice_name = t.ice_name)"
    " WHERE t.status <> 'registered' OR t.node IS NOT NULL OR t.lastseen > a.since"
    f" ORDER BY a.ice_name LIMIT {_BATCH}"
)


async def away(fetch: Fetch, before: datetime) -> list[Row]:
    """Registered ICEs that have not been connected since `before`, and are not known to be away: at most `_BATCH`."""
    return await fetch(_AWAY, to_text(before))


async def ended(fetch: Fetch) -> list[Row]:
    """ICEs whose outage has ended: at most `_BATCH`."""
    return await fetch(_ENDED)


async def tell_away(
    transaction: Transaction,
    found: Sequence[Row],
    *,
    webhooks: Sequence[Webhook],
    log_id: str,
    now: datetime,
    after: float,
) -> None:
    """Record that ICEs are away, `after` seconds without a connection.

    The webhooks get a notice of each outage that no other node has recorded before.
    """
    new = await transaction.fetch(
        f"INSERT INTO ice_away (ice_name, since) SELECT ice_name, since FROM {rows_of(1, 'ice_name', 'since')}"
        " WHERE true ON CONFLICT DO NOTHING RETURNING ice_name",
        as_json([(name, since) for name, _, _, since in found]),
    )
    names = {name for (name,) in new}
    rows: list[tuple[str, str, str, str, str]] = []
    for name, ice_type, owner, since in found:
        if name not in names:
            continue
        data = {"ice_name": name, "ice_type": ice_type, "provisionedto": owner, "lastseen": since}
        gone = from_text(since).timestamp() + after
        receivers = [one for one in webhooks if one.enabledon.timestamp() <= gone]
        rows += _notices(receivers, Notice.AWAY, log_id, now, data)
    await add(transaction, rows)


async def tell_back(
    transaction: Transaction,
    found: Sequence[Row],
    *,
    webhooks: Sequence[Webhook],
    log_id: str,
    now: datetime,
) -> None:
    """Record that outages have ended.

    The webhooks get a notice of each that no other node has recorded before, unless the ICE is not registered any more.
    """
    gone = await transaction.fetch(
        f"DELETE FROM ice_away WHERE {is_in('ice_name', 1)} RETURNING ice_name",
        as_json([name for name, *_ in found]),
    )
    names = {name for (name,) in gone}
    rows: list[tuple[str, str, str, str, str]] = []
    for name, ice_type, owner, since, status, connected in found:
        if name not in names or status != "registered":
            continue
        data = {
            "ice_name": name,
            "ice_type": ice_type,
            "provisionedto": owner,
            "away_since": since,
            "connectedon": connected,
        }
        back = connected or to_text(now)
        receivers = [one for one in webhooks if to_text(one.enabledon) <= back]
        rows += _notices(receivers, Notice.BACK, log_id, now, data)
    await add(transaction, rows)


def _notices(
    webhooks: Sequence[Webhook], notice: Notice, log_id: str, now: datetime, data: dict[str, Any]
) -> list[tuple[str, str, str, str, str]]:
    """A notice for each webhook that wants it; all have one id."""
    notice_id = f"{log_id}-{secrets.token_hex(8)}"
    text = msgspec.json.encode(data).decode()
    return [
        (one.id, notice_id, notice.value, to_text(now), text)
        for one in webhooks
        if one.wants(notice)
    ]


async def add(transaction: Transaction, rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    """Store notices to send, given as webhook, id, type, time and JSON."""
    if rows:
        await transaction.run(
            "INSERT INTO webhook_notices (webhook, id, type, at, data) SELECT webhook, id, type, at, data"
            # A webhook may have been deleted meanwhile.
            f" FROM {rows_of(1, 'webhook', 'id', 'type', 'at', 'data')}"
            " WHERE EXISTS (SELECT 1 FROM webhooks w WHERE w.id = webhook AND w.enabled = 1)",
            as_json(list(rows)),
        )


async def overfull(fetch: Fetch, kept: int = KEPT) -> list[tuple[str, int]]:
    """The webhooks for which more than `kept` notices wait, and how many of the oldest `leave_out` has to replace."""
    rows = await fetch(
        "SELECT webhook, count(*) FROM webhook_notices GROUP BY webhook HAVING count(*) > $1", kept
    )
    return [(webhook, int(number) - kept + 1) for webhook, number in rows]


async def leave_out(transaction: Transaction, webhook_id: str, number: int, log_id: str) -> None:
    """Put one notice `gap` in the place of the oldest `number` notices that wait for a webhook."""
    rows = await transaction.fetch(
        "SELECT number, type, at, data FROM webhook_notices WHERE webhook = $1 ORDER BY number LIMIT $2",
        webhook_id,
        number,
    )
    if not rows:
        return
    left_out = sum(
        msgspec.json.decode(data)["notices"] if kind == GAP else 1 for _, kind, _, data in rows
    )
    last, _, at, _ = rows[-1]
    await transaction.run(
        "DELETE FROM webhook_notices WHERE webhook = $1 AND number < $2", webhook_id, last
    )
    await transaction.run(
        "UPDATE webhook_notices SET id = $2, type = $3, at = $4, data = $5 WHERE number = $1",
        last,
        f"{log_id}-{secrets.token_hex(8)}",
        GAP,
        at,
        msgspec.json.encode({"notices": left_out}).decode(),
    )
