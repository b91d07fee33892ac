"""Reads and changes users and API tokens.

Tested in tests/gateway/admin/test_pages.py and tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.core.accounts import MAX_USER_NAME, ApiToken, TokenState, User
from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.problems import Problem, invalid, problem, quoted
from gateway.core.roles import Caller, Role
from gateway.core.secret import Secret
from gateway.core.times import MAX_DURATION, Clock, later, to_text_or_none
from gateway.services.passwords import RULE, Passwords, is_acceptable
from gateway.store import accounts, events, ices, logins
from gateway.store.accounts import Accounts
from gateway.store.engine import Engine, Transaction
from gateway.store.ice_listing import Ices

MAX_LABEL: Final = 128


@dataclass(frozen=True, slots=True)
class NewToken:
    """An API token and its secret, which is shown once."""

    token: ApiToken
    secret: Secret


class AccountService(Accounts):
    """Reads and changes users and API tokens. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock, passwords: Passwords) -> None:
        super().__init__(engine)
        self._clock = clock
        self._ices = Ices(engine)
        self._passwords = passwords

    async def add_user(
        self, actor: Actor, name: str, role: Role, password: Secret | None
    ) -> User | Problem:
        """Add a user. Without a password they cannot log in, but can own ICEs."""
        if not 1 <= len(name) <= MAX_USER_NAME or not name.isprintable():
            return invalid(
                "name", f"a user name must have 1 to {MAX_USER_NAME} printable characters"
            )
        hashed = None if password is None else await self._hash(password)
        if isinstance(hashed, Problem):
            return hashed
        user = User(name, role, hashed, self._clock())
        event = self._event(actor, AuditAction.ADD_USER, user=name, role=role)
        if not await self._engine.write(
            lambda transaction: accounts.add_user(transaction, user, event)
        ):
            return problem("user-exists", f"the user {name} already exists")
        return user

    async def set_role(self, actor: Actor, name: str, role: Role) -> User | Problem:
        """Give a user another role; it applies from their next request on."""

        async def unit(transaction: Transaction) -> User | Problem:
            user = await self._changed(transaction, name, lambda user: replace(user, role=role))
            if not isinstance(user, Problem):
                self._log(transaction, actor, AuditAction.SET_ROLE, user=user.name, role=role)
            return user

        return await self._engine.write(unit)

    async def set_password(
        self, actor: Actor, name: str, password: Secret, *, keep: Secret | None = None
    ) -> tuple[User, int] | Problem:
        """Set a user's password and end their logins; returns the user and the number of logins ended.

        The login of the cookie `keep` stays, so that users can change their own password.
        """
        digest = await self._hash(password)
        if isinstance(digest, Problem):
            return digest
        kept = "" if keep is None else keep.digest()

        async def unit(transaction: Transaction) -> tuple[User, int] | Problem:
            user = await self._changed(
                transaction, name, lambda user: replace(user, password_hash=digest)
            )
            if isinstance(user, Problem):
                return user
            ended = await logins.end_all_of(transaction, user.name, kept)
            self._log(
                transaction, actor, AuditAction.SET_PASSWORD, user=user.name, logins_ended=ended
            )
            return user, ended

        return await self._engine.write(unit)

    async def disable(self, actor: Actor, name: str) -> tuple[User, list[str]] | Problem:
        """Disable a user; also returns the ICEs tagged to them.

        Their logins and API tokens end at once, and the unused tokens of their ICEs expire.
        """
        now = self._clock()

        async def unit(transaction: Transaction) -> tuple[User, list[str]] | Problem:
            user = await self._changed(
                transaction, name, lambda user: replace(user, disabledon=user.disabledon or now)
            )
            if isinstance(user, Problem):
                return user
            await logins.end_all_of(transaction, user.name)
            await ices.expire_unused(transaction, user.name, now)
            self._log(transaction, actor, AuditAction.DISABLE_USER, user=user.name)
            # Read in this transaction: after the commit, a failed read would hide that it was done.
            return user, await accounts.ices_of(transaction, user.name)

        return await self._engine.write(unit)

    async def _changed(
        self, transaction: Transaction, name: str, change: Callable[[User], User]
    ) -> User | Problem:
        # Read in this transaction, so that no concurrent change, such as disabling, is undone.
        found = await accounts.find_user(transaction, name)
        if found is None:
            return problem("not-found", f"there is no user {quoted(name)}")
        user = change(found)
        await accounts.update_user(transaction, user)
        return user

    async def create_token(
        self,
        actor: Actor,
        user_name: str,
        label: str,
        lifetime: float,
        ice_name: str | None = None,
    ) -> NewToken | Problem:
        """Create an API token of a user; `lifetime` is in seconds, 0 means that it does not expire.

        With an `ice_name` the token may only operate that ICE, whatever the user may do. ICE names never
        change, so the token survives reregistrations of the ICE.
        """
        user = await self.user(user_name)
        if user is None:
            return problem("not-found", f"there is no user {quoted(user_name)}")
        if user.disabledon is not None:
            return problem("forbidden", f"the user {user.name} is disabled")
        if not 1 <= len(label) <= MAX_LABEL or not label.isprintable():
            return invalid("name", f"a label must have 1 to {MAX_LABEL} printable characters")
        if lifetime > MAX_DURATION:
            return invalid("expires_in", "at most 36500d; 0 means that it never expires")
        if ice_name is not None:
            listed = await self._ices.find(ice_name)
            if listed is None:
                return problem(
                    "not-registered", f"there is no ICE {quoted(ice_name)}; provision it first"
                )
            ice_name = listed.ice.ice_name
        now = self._clock()
        secret = Secret(f"icegw_{secrets.token_urlsafe(32)}")
        token = ApiToken(
            secrets.token_hex(6),
            user.name,
            label,
            secret.digest(),
            now,
            later(now, lifetime),
            ice_name=ice_name,
        )
        event = self._event(
            actor,
            AuditAction.CREATE_API_TOKEN,
            id=token.id,
            user=user.name,
            label=label,
            expireson=to_text_or_none(token.expireson),
            ice_name=ice_name,
        )
        await self._engine.write(lambda transaction: accounts.add_token(transaction, token, event))
        return NewToken(token, secret)

    async def revoke_token(self, actor: Actor, token_id: str) -> ApiToken | Problem:
        """Revoke an API token for good."""
        token = await self.token(token_id)
        if token is None:
            return problem("not-found", f"there is no API token {quoted(token_id)}")
        now = self._clock()
        event = self._event(actor, AuditAction.REVOKE_API_TOKEN, id=token.id, user=token.user)
        await self._engine.write(
            lambda transaction: accounts.revoke_token(transaction, token_id, now, event)
        )
        return token

    async def is_last_admin(self, user: User) -> bool:
        """Whether this user is the only one who can log in as an admin."""
        may = user.role is Role.ADMIN and user.password_hash and user.disabledon is None
        return bool(may) and not await self.other_admins(user.name)

    async def authenticate(self, secret: Secret) -> Caller | None:
        """The caller of this API token, if it is valid now."""
        found = await self.by_token(secret.digest())
        if found is None:
            return None
        token, user = found
        disabled = user.disabledon is not None
        if token.state(self._clock(), owner_disabled=disabled) is not TokenState.GOOD:
            return None
        return Caller(user.name, user.role, ice=token.ice_name)

    async def _hash(self, password: Secret) -> str | Problem:
        if not is_acceptable(password):
            return invalid("password", f"a password must have {RULE}")
        return await self._passwords.hash(password)

    def _log(self, transaction: Transaction, actor: Actor, action: str, **detail: Any) -> None:
        events.append(transaction, [self._event(actor, action, **detail)])

    def _event(self, actor: Actor, action: str, **detail: Any) -> Event:
        return Event.of(self._clock(), actor, action, **detail)
