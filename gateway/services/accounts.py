"""Reads and changes users and API tokens.

Tested in tests/gateway/admin/test_pages.py and tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from gateway.core.accounts import (
    USER_NAME_RULE,
    ApiToken,
    Origin,
    TokenState,
    User,
    can_be_new_user,
)
from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.login_rules import LoginRules
from gateway.core.problems import Problem, invalid, problem, quoted
from gateway.core.roles import Caller, Role
from gateway.core.secret import Secret
from gateway.core.times import MAX_DURATION, Clock, later, to_text_or_none
from gateway.services.leavers import LeaverIce, LeaverIces, Leavers, NextUser
from gateway.services.passwords import Passwords, check_password
from gateway.services.user_changes import (
    Change,
    Changed,
    check_issuer,
    check_origin,
    ends_admin,
    last_admin,
    refuse_login,
)
from gateway.store import accounts, events, ices, logins, pools
from gateway.store.accounts import Accounts
from gateway.store.engine import AppendedEvent, Engine, StoreUnavailable, Transaction
from gateway.store.ice_listing import IceListing

MAX_LABEL: Final = 128
DEFAULT_LIFETIME: Final = 90 * 86_400.0
"""Seconds after which an API token expires, unless its maker says otherwise."""
_USED_EVERY: Final = timedelta(seconds=60)
"""How often the last use of an API token is written; otherwise each request would write."""
_MAX_NOTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class NewToken:
    """An API token, its present state, and its secret, which is shown once."""

    token: ApiToken
    state: TokenState
    secret: Secret


_Unit = tuple[User, int, list[LeaverIce], list[AppendedEvent]]
"""The user, the number of ended logins, the ICEs, and the events that the nodes must have acted on."""


class AccountService(Accounts):
    """Reads and changes users and API tokens. Every method raises `StoreUnavailable`."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        passwords: Passwords,
        leavers: Leavers,
        rules: LoginRules,
    ) -> None:
        super().__init__(engine)
        self.rules = rules
        self._clock = clock
        self._leavers = leavers
        self._ices = IceListing(engine)
        self._passwords = passwords
        self._noted: dict[str, datetime] = {}
        """When the last use of each token was last to be written."""
        self._writes: set[asyncio.Task[None]] = set()

    async def add_user(
        self, actor: Actor, name: str, role: Role, password: Secret | None
    ) -> User | Problem:
        """Add a user. Without a password they cannot log in, but can own ICEs."""
        refused = check_name(name)
        if refused is not None:
            return refused
        hashed = None if password is None else await self._hash(password)
        if isinstance(hashed, Problem):
            return hashed
        user = User(name, role, hashed, self._clock(), origin=Origin.LOCAL)
        event = self._event(actor, AuditAction.ADD_USER, user=name, role=role)
        if not await self._engine.write(
            lambda transaction: accounts.add_user(transaction, user, event)
        ):
            return problem("user-exists", f"the user {name} already exists")
        return user

    async def change(
        self, actor: Actor, name: str, wanted: Change, *, keep: Secret | None = None
    ) -> Changed | Problem:
        """Change a user in one transaction: everything that is wanted, or nothing.

        The login of the cookie `keep` outlives a new password. After a change of ICEs it waits for the nodes.
        """
        refused = check_origin(wanted.origin, wanted.subject) or check_issuer(
            self.rules, wanted.origin
        )
        if refused is not None:
            return refused
        digest = None if wanted.password is None else await self._hash(wanted.password)
        if isinstance(digest, Problem):
            return digest
        kept = "" if keep is None else keep.digest()
        now = self._clock()
        named = [name, wanted.ices.to] if isinstance(wanted.ices, NextUser) else [name]

        async def unit(transaction: Transaction) -> _Unit | Problem:
            # Read in this transaction, so that no concurrent change, such as disabling, is undone.
            [before, *others], admins = await accounts.find_with_admins(
                transaction, named, self.rules, now
            )
            if before is None:
                return _no_user(name)
            if wanted.expected_hash not in (None, before.password_hash):
                return problem("forbidden", "The password has changed in the meantime.")
            planned = await self._leavers.plan(
                transaction, before, wanted.ices, next(iter(others), None), now
            )
            if isinstance(planned, Problem):
                return planned
            user = wanted.apply(before, digest, self.rules.issuer, now)
            refused = await refuse_login(transaction, before, user, wanted)
            if refused is not None:
                return refused
            # By command the operator of the machine can always administer.
            lasts = ends_admin(self.rules, before, user) and actor.via is not Via.COMMAND
            if lasts and not admins - {before.name}:
                return last_admin(self.rules)
            # Before the rest of their tokens expire, which changes the entries that the plan has read.
            logged = await self._leavers.carry_out(transaction, actor, planned, now)
            ended = await self._apply(
                transaction, actor, wanted, before=before, user=user, kept=kept
            )
            return user, ended, planned, logged

        done = await self._engine.write(unit)
        if isinstance(done, Problem):
            return done
        user, ended, planned, logged = done
        return Changed(user, ended, await self._leavers.confirm(planned, logged))

    async def _apply(
        self,
        transaction: Transaction,
        actor: Actor,
        wanted: Change,
        *,
        before: User,
        user: User,
        kept: str,
    ) -> int:
        """Store the user after a change, with its events; returns how many logins it ended."""
        await accounts.update_user(transaction, user)
        ended = 0
        if wanted.password is not None:
            ended += await logins.end_all_of(transaction, user.name, kept)
            self._log(
                transaction, actor, AuditAction.SET_PASSWORD, user=user.name, logins_ended=ended
            )
        if user.identity != before.identity:
            # An admin who only marks themselves as local stays logged in.
            moved = Origin.SSO in (before.origin, user.origin)
            more = await logins.end_all_of(transaction, user.name) if moved else 0
            ended += more
            self._log(
                transaction,
                actor,
                AuditAction.SET_LOGIN,
                user=user.name,
                origin=user.origin,
                issuer=user.issuer,
                subject=user.subject,
                logins_ended=more,
            )
        if wanted.role is not None:
            self._log(transaction, actor, AuditAction.SET_ROLE, user=user.name, role=user.role)
        if user.disabledon is not None and before.disabledon is None:
            ended += await logins.end_all_of(transaction, user.name)
            await ices.expire_unused(transaction, user.name, user.disabledon)
            self._log(transaction, actor, AuditAction.DISABLE_USER, user=user.name)
        if user.disabledon is None and before.disabledon is not None:
            self._log(transaction, actor, AuditAction.ENABLE_USER, user=user.name)
        return ended

    async def set_role(self, actor: Actor, name: str, role: Role) -> Changed | Problem:
        """Give a user another role; it applies from their next request on."""
        return await self.change(actor, name, Change(role=role))

    async def set_password(
        self, actor: Actor, name: str, password: Secret, *, keep: Secret | None = None
    ) -> Changed | Problem:
        """Set a user's password and end their logins, except that of the cookie `keep`."""
        return await self.change(actor, name, Change(password=password), keep=keep)

    async def disable(
        self, actor: Actor, name: str, ices: LeaverIces = "keep"
    ) -> Changed | Problem:
        """Disable a user: their logins and API tokens end, and the unused tokens of their ICEs expire.

        `ices` says what becomes of their ICEs, also if the user was disabled before.
        """
        return await self.change(actor, name, Change(disabled=True, ices=ices))

    async def enable(self, actor: Actor, name: str) -> Changed | Problem:
        """Enable a user again, with the API tokens that have not expired and were not revoked."""
        return await self.change(actor, name, Change(disabled=False))

    async def create_token(
        self,
        actor: Actor,
        user_name: str,
        label: str,
        lifetime: float | datetime,
        ice_name: str | None = None,
        *,
        pool: str | None = None,
        may_change_accounts: bool = False,
        by_token: str | None = None,
    ) -> NewToken | Problem:
        """Create an API token of a user.

        ICE names never change, so a token for one ICE survives reregistrations of the ICE.

        Args:
            actor: who creates it.
            user_name: its owner, whose rights it has.
            label: what its owner recognises it by.
            lifetime: seconds until it expires, where 0 means never, or the time.
            ice_name: the ICE that it may operate; it may do nothing else then.
            pool: the pool that it may operate; likewise.
            may_change_accounts: whether it may change users and API tokens.
            by_token: the id of the API token that creates it, if one does.
        """
        user = await self.user(user_name)
        if user is None:
            return invalid("user", f"there is no user {user_name}")
        if user.disabledon is not None:
            return invalid("user", f"the user {user.name} is disabled")
        refused = check_token(label, ice_name, pool, accounts=may_change_accounts)
        if refused is not None:
            return refused
        if isinstance(lifetime, float) and lifetime > MAX_DURATION:
            return invalid("expires_in", "at most 36500d; 0 means that it never expires")
        if ice_name is not None:
            listed = await self._ices.find(ice_name)
            if listed is None:
                return invalid("ice", f"there is no ICE {ice_name}; provision it first")
            ice_name = listed.ice.ice_name
        now = self._clock()
        secret = Secret(f"icegw_{secrets.token_urlsafe(32)}")
        token = ApiToken(
            secrets.token_hex(6),
            user.name,
            label,
            secret.digest(),
            now,
            lifetime if isinstance(lifetime, datetime) else later(now, lifetime),
            ice_name=ice_name,
            madeby=_maker(actor, by_token),
            accounts=may_change_accounts,
        )

        async def unit(transaction: Transaction) -> NewToken | Problem:
            # Locked, so that a deletion of the pool revokes this token, too.
            found = None if pool is None else await pools.find(transaction, pool)
            if pool is not None and found is None:
                return invalid("pool", f"there is no pool {quoted(pool)}")
            made = replace(token, pool=None if found is None else found.name)
            event = self._event(
                actor,
                AuditAction.CREATE_API_TOKEN,
                id=made.id,
                user=made.user,
                label=label,
                expireson=to_text_or_none(made.expireson),
                ice_name=made.ice_name,
                pool=made.pool,
                accounts=made.accounts,
            )
            await accounts.add_token(transaction, made, event)
            return NewToken(made, self._state(made, user, now), secret)

        return await self._engine.write(unit)

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

    async def last_admins(self, users: Iterable[User]) -> frozenset[str]:
        """The names of those without whom nobody could administer any more."""
        enabled = [user.name for user in users if user.administers]
        # Of two, each has another.
        able = await self.administering(self.rules, self._clock(), 2) if enabled else []
        return frozenset(name for name in enabled if not set(able) - {name})

    async def authenticate(self, secret: Secret) -> Caller | None:
        """The caller of this API token, if it is valid now."""
        found = await self.by_token(secret.digest())
        if found is None:
            return None
        token, user = found
        now = self._clock()
        if self._state(token, user, now) is not TokenState.GOOD:
            return None
        self._see(token, now)
        return Caller(user.name, user.role, token.ice_name, token.id, token.accounts, token.pool)

    async def token_states(self, tokens: Sequence[ApiToken]) -> list[TokenState]:
        """The present states of API tokens, in their order."""
        owners = await self.named(token.user for token in tokens)
        now = self._clock()
        return [self._state(token, owners[token.user], now) for token in tokens]

    def _state(self, token: ApiToken, owner: User, now: datetime) -> TokenState:
        disabled = owner.disabledon is not None
        rests = self.rules.rests(owner, now)
        return token.state(now, owner_disabled=disabled, owner_rests=rests)

    def _see(self, token: ApiToken, now: datetime) -> None:
        """Have the last use written if it is due; the request does not wait for the store."""
        if token.lastused is not None and now - token.lastused < _USED_EVERY:
            return
        noted = self._noted.get(token.id)
        if noted is not None and now - noted < _USED_EVERY:
            return  # it is being written, or the store could not write it
        self._noted[token.id] = now
        if len(self._noted) > _MAX_NOTED:
            del self._noted[next(iter(self._noted))]
        task = asyncio.create_task(self._write_use(token.id, now))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write_use(self, token_id: str, now: datetime) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._engine.write(
                lambda transaction: accounts.see_token(transaction, token_id, now)
            )

    async def _hash(self, password: Secret) -> str | Problem:
        return check_password(password) or await self._passwords.hash(password)

    def _log(self, transaction: Transaction, actor: Actor, action: str, **detail: Any) -> None:
        events.append(transaction, [self._event(actor, action, **detail)])

    def _event(self, actor: Actor, action: str, **detail: Any) -> Event:
        return Event.of(self._clock(), actor, action, **detail)


def check_name(name: str) -> Problem | None:
    """The refusal of a new user's name."""
    return None if can_be_new_user(name) else invalid("name", f"must have {USER_NAME_RULE}")


def check_token(
    label: str, ice_name: str | None, pool: str | None, *, accounts: bool
) -> Problem | None:
    """The refusal of a new API token, by what can be checked without the database."""
    if not 1 <= len(label) <= MAX_LABEL or not label.isprintable():
        return invalid("name", f"a label must have 1 to {MAX_LABEL} printable characters")
    if ice_name is not None and pool is not None:
        return invalid("pool", "a token is for an ICE or for a pool, not for both")
    if (ice_name is not None or pool is not None) and accounts:
        one = "ICE" if pool is None else "pool"
        return invalid("accounts", f"a token for one {one} cannot change accounts")
    return None


def _no_user(name: str) -> Problem:
    return problem("not-found", f"there is no user {quoted(name)}")


def _maker(actor: Actor, token: str | None) -> str:
    """By what an API token was made, as its listing says."""
    if token is not None:
        return f"token {token}"
    return f"{'command' if actor.via is Via.COMMAND else 'login'} of {actor.name}"
