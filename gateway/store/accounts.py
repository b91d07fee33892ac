"""SQL of `users` and `api_tokens`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.accounts import ApiToken, User, fold_user
from gateway.core.audit_event import Event
from gateway.core.login_rules import LoginRules
from gateway.core.times import to_text
from gateway.store import events
from gateway.store.engine import (
    Engine,
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    conditions,
    containing,
    from_columns,
    is_in,
    places,
    rows_of,
)

USER_COLUMNS: Final = tuple(User.__dataclass_fields__)
_USER: Final = ", ".join(USER_COLUMNS)
_NOT_SSO: Final = "COALESCE(origin, 'local') = 'local'"
_TOKEN_COLUMNS: Final = tuple(
    "user_name" if name == "user" else name for name in ApiToken.__dataclass_fields__
)
_TOKEN: Final = ", ".join(_TOKEN_COLUMNS)

_LISTED: Final = (
    f"SELECT {_USER}, (SELECT count(*) FROM ice_tokens WHERE provisionedto = users.name) FROM users"
)
_BY_NAME: Final = f"SELECT {_USER} FROM users WHERE name_folded = $1"


@dataclass(frozen=True, slots=True)
class ListedUser:
    """A user, and how many ICEs are tagged to them."""

    user: User
    ices: int


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Which API tokens to list: of an exact user or pool, and with `text` in label, user, ICE, pool or id."""

    text: str = ""
    user: str | None = None
    pool: str | None = None


async def add_user(transaction: Transaction, user: User, event: Event) -> bool:
    """Add a user with its event; False if the name is taken."""
    changed = await transaction.run(
        f"INSERT INTO users ({_USER}, name_folded) VALUES ({places(len(USER_COLUMNS) + 1)})"
        " ON CONFLICT DO NOTHING",
        *columns_of(user, USER_COLUMNS),
        fold_user(user.name),
    )
    if changed:
        events.append(transaction, [event])
    return bool(changed)


async def find_user(transaction: Transaction, name: str) -> User | None:
    """The user of this name, case folded, locked until the transaction ends."""
    rows = await transaction.hold(_BY_NAME, fold_user(name))
    return user_from_row(rows[0]) if rows else None


async def find_by_subject(transaction: Transaction, issuer: str, subject: str) -> User | None:
    """The user whom this issuer knows as `subject`, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_USER} FROM users WHERE issuer = $1 AND subject = $2", issuer, subject
    )
    return user_from_row(rows[0]) if rows else None


async def read_user(fetch: Fetch, name: str) -> User | None:
    """The user of this name, case folded."""
    rows = await fetch(_BY_NAME, fold_user(name))
    return user_from_row(rows[0]) if rows else None


async def administering(fetch: Fetch, rules: LoginRules, now: datetime, limit: int) -> list[str]:
    """The names of at most `limit` users who can administer."""
    params: list[object] = [limit]
    able = _able(rules, now, params)
    rows = await fetch(
        f"SELECT name FROM users WHERE {able} ORDER BY name_folded LIMIT $1", *params
    )
    return [name for (name,) in rows]


async def find_users(transaction: Transaction, names: Sequence[str]) -> dict[str, User]:
    """The users of these names by folded name, locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT {_USER} FROM users WHERE {is_in('name_folded', 1)} ORDER BY name_folded",
        as_json([fold_user(name) for name in names]),
    )
    return {fold_user(row[0]): from_columns(User, row, "the user") for row in rows}


async def find_with_admins(
    transaction: Transaction, names: Sequence[str], rules: LoginRules, now: datetime
) -> tuple[list[User | None], set[str]]:
    """The users of these names, case folded, and the exact names of all users who can administer.

    All of them are locked until the transaction ends, so that of two admins who disable each other one stays; in one
    order, so that nobody waits in a circle.
    """
    folded = [fold_user(name) for name in names]
    params: list[object] = [as_json(folded)]
    able = _able(rules, now, params)
    rows = await transaction.hold(
        f"SELECT {_USER}, CASE WHEN {able} THEN 1 ELSE 0 END FROM users"
        f" WHERE {is_in('name_folded', 1)} OR {able} ORDER BY name_folded",
        *params,
    )
    users = {fold_user(row[0]): user_from_row(row[:-1]) for row in rows}
    return [users.get(name) for name in folded], {row[0] for row in rows if row[-1]}


async def update_user(transaction: Transaction, user: User) -> None:
    """Store what may change of a user: role, password hash, time of disabling, and where they come from."""
    changing = ("role", "password_hash", "disabledon", "origin", "issuer", "subject")
    columns = ", ".join(f"{name} = ${place}" for place, name in enumerate(changing, 2))
    await transaction.run(
        f"UPDATE users SET {columns} WHERE name = $1", *columns_of(user, ("name", *changing))
    )


async def add_token(transaction: Transaction, token: ApiToken, event: Event) -> None:
    """Store a new API token's hash, with the event."""
    await transaction.run(
        f"INSERT INTO api_tokens ({_TOKEN}) VALUES ({places(len(_TOKEN_COLUMNS))})",
        *columns_of(token, ApiToken.__dataclass_fields__),
    )
    events.append(transaction, [event])


async def see_token(transaction: Transaction, token_id: str, now: datetime) -> None:
    """Note that an API token was used."""
    await transaction.run(
        "UPDATE api_tokens SET lastused = $2 WHERE id = $1", token_id, to_text(now)
    )


async def revoke_tokens_for(
    transaction: Transaction, ices: Sequence[tuple[str, str]], now: datetime
) -> int:
    """Revoke the API tokens that these users have for these ICEs, given as pairs of ICE and user."""
    return await transaction.run(
        f"UPDATE api_tokens SET revokedon = $2 FROM {rows_of(1, 'name', 'owner')}"
        " WHERE api_tokens.ice_name = given.name AND api_tokens.user_name = given.owner"
        " AND revokedon IS NULL",
        as_json(list(ices)),
        to_text(now),
    )


async def revoke_tokens_of_pool(transaction: Transaction, pool: str, now: datetime) -> int:
    """Revoke the API tokens of a pool, given by its exact name; returns how many."""
    return await transaction.run(
        "UPDATE api_tokens SET revokedon = $2 WHERE pool = $1 AND revokedon IS NULL",
        pool,
        to_text(now),
    )


async def revoke_token(
    transaction: Transaction, token_id: str, now: datetime, event: Event
) -> bool:
    """Revoke an API token; False if it was revoked before."""
    if not await transaction.run(
        "UPDATE api_tokens SET revokedon = $2 WHERE id = $1 AND revokedon IS NULL",
        token_id,
        to_text(now),
    ):
        return False
    events.append(transaction, [event])
    return True


class Accounts:
    """Reads users and API tokens."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def user(self, name: str) -> User | None:
        """The user of this name, case folded."""
        return await read_user(self._engine.fetch, name)

    async def any(self) -> bool:
        """Whether there is any user."""
        return bool(await self._engine.fetch("SELECT 1 FROM users LIMIT 1"))

    async def disabled_among(self, names: Sequence[str]) -> set[str]:
        """The disabled users among these exact names."""
        rows = await self._engine.fetch(
            f"SELECT name FROM users WHERE disabledon IS NOT NULL AND {is_in('name', 1)}",
            as_json(names),
        )
        return {name for (name,) in rows}

    async def enabled_among(self, names: Sequence[str]) -> set[str]:
        """The enabled users among these names, case folded."""
        rows = await self._engine.fetch(
            f"SELECT name_folded FROM users WHERE disabledon IS NULL AND {is_in('name_folded', 1)}",
            as_json(list(map(fold_user, names))),
        )
        return {name for (name,) in rows}

    async def enabled_names(self, text: str, limit: int) -> list[str]:
        """Names of enabled users that contain `text`, case folded, in order."""
        rows = await self._engine.fetch(
            "SELECT name FROM users WHERE disabledon IS NULL AND name_folded LIKE $1 ESCAPE '\\'"
            " ORDER BY name_folded LIMIT $2",
            containing(fold_user(text)),
            limit,
        )
        return [name for (name,) in rows]

    async def page(self, text: str, limit: int, offset: int) -> tuple[list[ListedUser], int]:
        """A page of the users whose folded name contains `text`, by name, and the number of all."""
        pattern = containing(fold_user(text))
        # The names of the page first: PostgreSQL would count the ICEs of each user that it skips.
        names = (
            "SELECT name_folded FROM users WHERE name_folded LIKE $1 ESCAPE '\\'"
            " ORDER BY name_folded LIMIT $2 OFFSET $3"
        )
        rows = await self._engine.fetch(
            f"{_LISTED} WHERE name_folded IN ({names}) ORDER BY name_folded",
            pattern,
            limit,
            offset,
        )
        [(total,)] = await self._engine.fetch(
            "SELECT count(*) FROM users WHERE name_folded LIKE $1 ESCAPE '\\'", pattern
        )
        return [_listed(row) for row in rows], int(total)

    async def after(self, text: str, after: str, limit: int) -> list[ListedUser]:
        """Users whose folded name contains `text` and follows the folded name `after`, by name."""
        rows = await self._engine.fetch(
            f"{_LISTED} WHERE name_folded > $1 AND name_folded LIKE $2 ESCAPE '\\'"
            " ORDER BY name_folded LIMIT $3",
            after,
            containing(fold_user(text)),
            limit,
        )
        return [_listed(row) for row in rows]

    async def listed(self, name: str) -> ListedUser | None:
        """The user of this name, case folded."""
        rows = await self._engine.fetch(f"{_LISTED} WHERE name_folded = $1", fold_user(name))
        return _listed(rows[0]) if rows else None

    async def administering(self, rules: LoginRules, now: datetime, limit: int) -> list[str]:
        """See the function of this name."""
        return await administering(self._engine.fetch, rules, now, limit)

    async def named(self, names: Iterable[str]) -> dict[str, User]:
        """The users of these exact names."""
        rows = await self._engine.fetch(
            f"SELECT {_USER} FROM users WHERE {is_in('name', 1)}", as_json(sorted(set(names)))
        )
        return {row[0]: user_from_row(row) for row in rows}

    async def tokens(self) -> list[ApiToken]:
        """All API tokens, oldest first."""
        rows = await self._engine.fetch(f"SELECT {_TOKEN} FROM api_tokens ORDER BY createdon, id")
        return [_token(row) for row in rows]

    async def tokens_page(
        self, where: TokenFilter, limit: int, offset: int = 0
    ) -> tuple[list[ApiToken], int]:
        """A page of API tokens, newest first, and the number of all that match."""
        params: list[object] = []
        matching = _matching(where, params)
        [(total,)] = await self._engine.fetch(
            f"SELECT count(*) FROM api_tokens WHERE {matching}", *params
        )
        rows = await self._engine.fetch(
            f"SELECT {_TOKEN} FROM api_tokens WHERE {matching} ORDER BY createdon DESC, id DESC"
            f" LIMIT ${len(params) + 1} OFFSET ${len(params) + 2}",
            *params,
            limit,
            offset,
        )
        return [_token(row) for row in rows], int(total)

    async def tokens_before(
        self, where: TokenFilter, limit: int, place: str | None
    ) -> list[ApiToken]:
        """API tokens, newest first, that come after the `ApiToken.place` of another."""
        params: list[object] = [limit]
        matching = _matching(where, params, place)
        rows = await self._engine.fetch(
            f"SELECT {_TOKEN} FROM api_tokens WHERE {matching}"
            " ORDER BY createdon DESC, id DESC LIMIT $1",
            *params,
        )
        return [_token(row) for row in rows]

    async def token(self, token_id: str) -> ApiToken | None:
        """The API token of this id."""
        rows = await self._engine.fetch(f"SELECT {_TOKEN} FROM api_tokens WHERE id = $1", token_id)
        return _token(rows[0]) if rows else None

    async def by_token(self, token_hash: str) -> tuple[ApiToken, User] | None:
        """The API token of this hash, with its user."""
        columns = [f"a.{name}" for name in _TOKEN_COLUMNS]
        columns += [f"u.{name}" for name in USER_COLUMNS]
        rows = await self._engine.fetch(
            f"SELECT {', '.join(columns)} FROM api_tokens a JOIN users u ON u.name = a.user_name"
            " WHERE a.token_hash = $1",
            token_hash,
        )
        width = len(_TOKEN_COLUMNS)
        return (_token(rows[0][:width]), user_from_row(rows[0][width:])) if rows else None


def user_from_row(row: Row) -> User:
    """A row of `USER_COLUMNS`."""
    return from_columns(User, row, f"the user {row[0]}")


def _able(rules: LoginRules, now: datetime, params: list[object]) -> str:
    """SQL for an enabled admin who can administer; its parameters are added to `params`.

    With single sign-on this needs a password, as `LoginRules.keeps_admin` says; without, a valid API token will do.
    """
    by_password = "origin = 'local'" if rules.required else _NOT_SSO
    able = f"password_hash IS NOT NULL AND {by_password}"
    if not rules.issuer:
        params.append(to_text(now))
        awake = "TRUE"
        token = (
            "EXISTS (SELECT 1 FROM api_tokens a WHERE a.user_name = users.name AND a.ice_name IS NULL"
            " AND a.pool IS NULL AND a.revokedon IS NULL"
            f" AND (a.expireson IS NULL OR a.expireson > ${len(params)}))"
        )
        if rules.tokens_after is not None:
            params.append(to_text(now - rules.tokens_after))
            awake = f"({_NOT_SSO} OR lastlogin > ${len(params)})"
        able = f"{able} OR {awake} AND {token}"
    return f"(role = 'admin' AND disabledon IS NULL AND ({able}))"


def _matching(where: TokenFilter, params: list[object], place: str | None = None) -> str:
    """SQL for the filter; its parameters are added to `params`."""
    found = conditions(
        params,
        ("user_name = {0}", where.user),
        ("pool = {0}", where.pool),
        # A comparison of rows would need two parameters.
        ("createdon || ' ' || id < {0}", place),
    )
    if not where.text:
        return found
    params += [containing(fold_user(where.text)), containing(_lower(where.text))]
    name, text = f"${len(params) - 1}", f"${len(params)}"
    return (
        f"{found} AND (user_name IN"
        f" (SELECT name FROM users WHERE name_folded LIKE {name} ESCAPE '\\')"
        f" OR lower(label) LIKE {text} ESCAPE '\\' OR lower(ice_name) LIKE {text} ESCAPE '\\'"
        f" OR lower(pool) LIKE {text} ESCAPE '\\'"
        f" OR id LIKE {text} ESCAPE '\\')"
    )


def _lower(text: str) -> str:
    """What SQL's `lower` makes of a text on both engines: it knows ASCII letters alone."""
    return "".join(each.lower() if each.isascii() else each for each in text)


def _listed(row: Row) -> ListedUser:
    return ListedUser(user_from_row(row[:-1]), int(row[-1]))


def _token(row: Row) -> ApiToken:
    *others, accounts = row  # SQL has no boolean that both engines know
    return from_columns(ApiToken, (*others, bool(accounts)), f"the API token {row[0]}")
