"""SQL of `restored`, the mark of a copy that waits for its confirmation, and of the review before it.

Tested in tests/gateway/services/test_restore.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from gateway.core.accounts import fold_user
from gateway.core.audit_event import Event, digest_of
from gateway.core.hash_chain import Head
from gateway.core.ice import Action, Status, fold
from gateway.core.restore_diff import (
    Credentials,
    EnrolmentCredential,
    IceCredential,
    PoolStanding,
    ScheduleStanding,
    TokenCredential,
    UserCredential,
    WebhookStanding,
)
from gateway.core.times import from_text, from_text_or_none, to_text
from gateway.store import events
from gateway.store.engine import Fetch, Transaction, as_json
from gateway.store.events import Events
from gateway.store.ices import labels_from_text
from gateway.store.pauses import COLUMNS as PAUSE_COLUMNS
from gateway.store.pauses import pause_from_row
from gateway.store.tables import ENROLMENT_SCHEMA, SSO_SCHEMA, WEBHOOK_SCHEMA, WORK_SCHEMA

SCHEMA: Final = 5
"""The first schema with the table `restored`."""
_NO_PAUSE: Final = ("NULL",) * len(PAUSE_COLUMNS)
"""In place of the columns of a pause, for a schema without them."""
_GIVE_TOKENS: Final = tuple(
    action.value for action in (Action.PROVISION, Action.REPROVISION, Action.REREGISTER)
)


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """The mark: when the copy was made, its newest event, and in `aside` the databases that it replaced."""

    copied: datetime
    seq: int
    aside: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """A sentence for the operator."""
        return (
            f"the database is a copy of {to_text(self.copied)}: no ICE is admitted until"
            " `ice-gateway restore --confirm`"
        )


async def find_mark(fetch: Fetch) -> RestoreMark | None:
    """The mark; None if there is none, and ICEs are admitted."""
    rows = await fetch("SELECT copied, seq, aside FROM restored")
    if not rows:
        return None
    copied, seq, aside = rows[0]
    return RestoreMark(from_text(copied), seq, tuple(msgspec.json.decode(aside, type=list[str])))


async def note(transaction: Transaction, aside: Sequence[str], event: Event) -> None:
    """Store in a copy the paths of the databases that it replaces, with the event of the restore."""
    await transaction.run("UPDATE restored SET aside = $1", as_json(aside))
    events.append(transaction, [event])


async def confirm(transaction: Transaction, event: Event) -> bool:
    """Delete the mark and log the event; False if there is no mark."""
    if not await transaction.run("DELETE FROM restored"):
        return False
    events.append(transaction, [event])
    return True


async def standing(fetch: Fetch, schema: int = WEBHOOK_SCHEMA) -> Credentials:
    """The state of every credential, schedule, pool and webhook, of the columns that a database of `schema` has."""
    pause = PAUSE_COLUMNS if schema >= WORK_SCHEMA else _NO_PAUSE
    ices = await fetch(
        f"SELECT ice_name, status, generation, ice_token, expireson, {', '.join(pause)}"
        " FROM ice_tokens ORDER BY lower(ice_name)"
    )
    subject = ("issuer", "subject") if schema >= SSO_SCHEMA else ("NULL", "NULL")
    users = await fetch(
        f"SELECT name, role, password_hash, disabledon, {', '.join(subject)} FROM users"
        " ORDER BY name_folded"
    )
    tokens = await fetch(
        "SELECT id, user_name, label, expireson, revokedon FROM api_tokens ORDER BY createdon, id"
    )
    keys = []
    if schema >= ENROLMENT_SCHEMA:
        keys = await fetch(
            "SELECT id, name, expireson, revokedon, uses, max_uses FROM enrolment_keys"
            " ORDER BY createdon, id"
        )
    schedules, pools = [], []
    if schema >= WORK_SCHEMA:
        pools = await fetch("SELECT name, labels, ice_type FROM ice_pools ORDER BY lower(name)")
        schedules = await fetch(
            "SELECT id, name, coalesce(ice_name, pool), enabled FROM ice_schedules ORDER BY createdon, id"
        )
    hooks = []
    if schema >= WEBHOOK_SCHEMA:
        hooks = await fetch("SELECT id, name, url, enabled FROM webhooks ORDER BY createdon, id")
    return Credentials(
        {
            fold(name): IceCredential(
                *(name, Status(status), generation, token, from_text_or_none(expires)),
                pause_from_row(tuple(pause)),
            )
            for name, status, generation, token, expires, *pause in ices
        },
        {
            fold_user(name): UserCredential(name, role, password, disabled is not None, *subject)
            for name, role, password, disabled, *subject in users
        },
        {
            token: TokenCredential(
                token, user, label, from_text_or_none(expires), revoked is not None
            )
            for token, user, label, expires, revoked in tokens
        },
        {
            key: EnrolmentCredential(
                key, name, from_text(expires), revoked is not None, int(uses), int(max_uses)
            )
            for key, name, expires, revoked, uses, max_uses in keys
        },
        {
            schedule: ScheduleStanding(schedule, name, target, bool(enabled))
            for schedule, name, target, enabled in schedules
        },
        {
            fold(name): PoolStanding(name, labels_from_text(labels), ice_type)
            for name, labels, ice_type in pools
        },
        {
            webhook: WebhookStanding(webhook, name, url, bool(enabled))
            for webhook, name, url, enabled in hooks
        },
    )


async def with_new_token(fetch: Fetch, seq: int) -> set[str]:
    """The folded names of the ICEs that got a new token after event `seq`."""
    rows = await fetch(
        "SELECT DISTINCT lower(ice_name) FROM ice_events WHERE seq > $1 AND action IN ($2, $3, $4)",
        seq,
        *_GIVE_TOKENS,
    )
    return {name for (name,) in rows}


async def head(fetch: Fetch, seq: int | None = None) -> Head | None:
    """Event `seq`, or the newest; None if the log does not hold it."""
    log = Events(fetch)
    wanted = await log.last() if seq is None else seq
    rows = await log.rows_after(wanted - 1, 1)
    return Head(wanted, digest_of(rows[0])) if rows and rows[0][0] == wanted else None
