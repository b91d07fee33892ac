"""SQL of `logins`: the users who are logged in to the admin page.

Tested in tests/gateway/admin/test_pages.py and tests/contract/test_accounts.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.accounts import User
from gateway.core.audit_event import Event
from gateway.core.login_rules import Oldest
from gateway.core.times import to_text
from gateway.store import events
from gateway.store.accounts import USER_COLUMNS, user_from_row
from gateway.store.engine import (
    Fetch,
    Transaction,
    columns_of,
    conditions,
    from_columns,
    places,
)


@dataclass(frozen=True, slots=True)
class Login:
    """A row of `logins`: `token_hash` is a SHA-256, never the cookie.

    `sid` is the issuer's name of its session, for a login by single sign-on where the issuer has told it.
    """

    token_hash: str
    user: str
    address: str
    createdon: datetime
    seenon: datetime
    sid: str | None = None


_FIELDS: Final = tuple(Login.__dataclass_fields__)
_COLUMNS: Final = ("token_hash", "user_name", "address", "createdon", "seenon", "sid")
MAX_LOGINS: Final = 100
"""Logins of one user; a further one ends the oldest, so that nobody fills the table with their own."""


_OLDEST: Final = "CASE WHEN origin = 'sso' THEN $1 ELSE $2 END"
"""SQL for when the oldest valid login of a user can have begun; the parameters are those of `Oldest`."""


async def add(transaction: Transaction, login: Login, event: Event, oldest: Oldest) -> None:
    """Store a login with its event; delete those that began before `oldest`, and this user's beyond the limit."""
    await transaction.run(
        "DELETE FROM logins WHERE createdon <"
        f" (SELECT {_OLDEST} FROM users WHERE name = logins.user_name)",
        *map(to_text, oldest),
    )
    await transaction.run(
        "DELETE FROM logins WHERE user_name = $1 AND token_hash NOT IN (SELECT token_hash FROM logins"
        " WHERE user_name = $1 ORDER BY createdon DESC, token_hash LIMIT $2)",
        login.user,
        MAX_LOGINS - 1,
    )
    await transaction.run(
        f"INSERT INTO logins ({', '.join(_COLUMNS)}) VALUES ({places(len(_COLUMNS))})",
        *columns_of(login, _FIELDS),
    )
    await transaction.run(
        "UPDATE users SET lastlogin = $2 WHERE name = $1", login.user, to_text(login.createdon)
    )
    events.append(transaction, [event])


async def see(transaction: Transaction, token_hash: str, now: datetime) -> None:
    """Note that a login was used."""
    await transaction.run(
        "UPDATE logins SET seenon = $2 WHERE token_hash = $1", token_hash, to_text(now)
    )


async def end(transaction: Transaction, token_hash: str) -> None:
    """End one login."""
    await transaction.run("DELETE FROM logins WHERE token_hash = $1", token_hash)


async def end_all_of(transaction: Transaction, user: str, keep: str = "") -> int:
    """End the logins of a user except the one whose hash is `keep`; returns how many."""
    return await transaction.run(
        "DELETE FROM logins WHERE user_name = $1 AND token_hash <> $2", user, keep
    )


async def end_by_subject(
    transaction: Transaction, issuer: str, subject: str | None, sid: str | None
) -> dict[str, int]:
    """End the logins that an issuer names by a subject, a session, or both; returns how many of which user.

    With both, logins of the subject whose session is not known end, too.
    Source: OpenID Connect Back-Channel Logout 1.0, section 2.4.
    """
    if subject is None and sid is None:
        raise ValueError("name a subject or a session")
    params: list[object] = []
    matching = conditions(
        params,
        ("issuer = {0}", issuer),
        ("subject = {0}", subject),
        ("sid = {0}" if subject is None else "(sid = {0} OR sid IS NULL)", sid),
    )
    rows = await transaction.fetch(
        f"SELECT token_hash, user_name FROM logins JOIN users ON name = user_name WHERE {matching}",
        *params,
    )
    ended: dict[str, int] = {}
    for token_hash, user in rows:
        await end(transaction, token_hash)
        ended[user] = ended.get(user, 0) + 1
    return ended


async def find(fetch: Fetch, token_hash: str) -> tuple[Login, User] | None:
    """The login of this hash, with its user."""
    columns = ", ".join([f"l.{name}" for name in _COLUMNS] + [f"u.{name}" for name in USER_COLUMNS])
    rows = await fetch(
        f"SELECT {columns}"
        " FROM logins l JOIN users u ON u.name = l.user_name WHERE l.token_hash = $1",
        token_hash,
    )
    if not rows:
        return None
    [row], width = rows, len(_FIELDS)
    login = from_columns(Login, row[:width], f"a login of {row[1]}")
    return login, user_from_row(row[width:])


async def counts(fetch: Fetch, oldest: Oldest, seen: datetime) -> dict[str, int]:
    """The number of logins by user, of enabled users, that began after `oldest` and were used after `seen`."""
    rows = await fetch(
        "SELECT user_name, count(*) FROM logins JOIN users ON name = user_name"
        f" WHERE logins.createdon > {_OLDEST} AND seenon > $3 AND disabledon IS NULL"
        " GROUP BY user_name",
        *map(to_text, oldest),
        to_text(seen),
    )
    return {str(user): int(count) for user, count in rows}
