"""SQL of `restored`, the mark of a table that waits for its confirmation, and of what it may revive."""

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
from gateway.core.restore_diff import Credentials, IceEntry, TokenEntry, UserEntry
from gateway.core.times import from_text, from_text_or_none, to_text
from gateway.store import events
from gateway.store.engine import Fetch, Transaction
from gateway.store.events import Events

SCHEMA: Final = 5
"""The schema from which on a database can say that it is a copy."""
_GIVE_TOKENS: Final = tuple(
    action.value for action in (Action.PROVISION, Action.REPROVISION, Action.REREGISTER)
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A copy that waits: made when, with which last event; `aside` are the databases it replaced."""

    copied: datetime
    seq: int
    aside: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What an operator has to know."""
        return (
            f"the database is a copy of {to_text(self.copied)}: no ICE is admitted until"
            " `ice-gateway restore --confirm`"
        )


async def waiting(fetch: Fetch) -> Waiting | None:
    """The mark of a restored table; None where there is none, and ICEs are admitted."""
    rows = await fetch("SELECT copied, seq, aside FROM restored")
    if not rows:
        return None
    copied, seq, aside = rows[0]
    return Waiting(from_text(copied), seq, tuple(msgspec.json.decode(aside, type=list[str])))


async def note(transaction: Transaction, aside: Sequence[str], event: Event) -> None:
    """Note in a copy that it was restored, and where what it replaces is to be found."""
    await transaction.run(
        "UPDATE restored SET aside = $1", msgspec.json.encode(list(aside)).decode()
    )
    events.append(transaction, [event])


async def confirm(transaction: Transaction, event: Event) -> bool:
    """Take the mark out, with the event; False where there is none."""
    if not await transaction.run("DELETE FROM restored"):
        return False
    events.append(transaction, [event])
    return True


async def standing(fetch: Fetch) -> Credentials:
    """Who is good for what; the columns are those of every schema."""
    entries = await fetch(
        "SELECT ice_name, status, generation, ice_token, expireson FROM ice_tokens"
        " ORDER BY lower(ice_name)"
    )
    users = await fetch(
        "SELECT name, role, password_hash, disabledon FROM users ORDER BY name_folded"
    )
    tokens = await fetch(
        "SELECT id, user_name, label, expireson, revokedon FROM api_tokens ORDER BY createdon, id"
    )
    return Credentials(
        {
            fold(name): IceEntry(
                name, Status(status), generation, token, from_text_or_none(expires)
            )
            for name, status, generation, token, expires in entries
        },
        {
            fold_user(name): UserEntry(name, role, password, disabled is not None)
            for name, role, password, disabled in users
        },
        {
            token: TokenEntry(token, user, label, from_text_or_none(expires), revoked is not None)
            for token, user, label, expires, revoked in tokens
        },
    )


async def given_anew(fetch: Fetch, seq: int) -> set[str]:
    """The folded names of the ICEs that an admin has given a token after event `seq`."""
    rows = await fetch(
        "SELECT DISTINCT lower(ice_name) FROM ice_events WHERE seq > $1 AND action IN ($2, $3, $4)",
        seq,
        *_GIVE_TOKENS,
    )
    return {name for (name,) in rows}


async def head(fetch: Fetch, seq: int | None = None) -> Head | None:
    """Event `seq`, or the newest; None where the log has none such (any more)."""
    log = Events(fetch)
    wanted = await log.last() if seq is None else seq
    rows = await log.rows_after(wanted - 1, 1)
    return Head(wanted, digest_of(rows[0])) if rows and rows[0][0] == wanted else None
