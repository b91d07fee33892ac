"""Logins to the admin page: started with a password or by single sign-on, rate-limited, recognised by a cookie, ended.

Tested in tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, TypeVar

from gateway.core.accounts import MAX_USER_NAME, User, fold_user
from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.login_rules import LoginRules
from gateway.core.problems import Problem, problem
from gateway.core.rate_limit import RateLimiter, source
from gateway.core.roles import Caller
from gateway.core.secret import Secret
from gateway.core.times import Clock
from gateway.services.accounts import AccountService
from gateway.services.login_failures import FailureReason, LoginFailures
from gateway.services.passwords import Passwords, TooBusy, check_password
from gateway.services.user_changes import Change, Changed
from gateway.store import events, logins
from gateway.store.accounts import Accounts, find_user
from gateway.store.engine import Engine, StoreUnavailable, Transaction
from gateway.store.logins import Login

R = TypeVar("R")
_FAILURES: Final = (5, 900.0)
"""Failed logins of one user name from one address, and the seconds in which they count."""
_FAILURES_OF_ADDRESS: Final = (50, 900.0)
_SEEN_EVERY: Final = timedelta(seconds=60)
"""How often the last use is written; otherwise each request would write."""


@dataclass(frozen=True, slots=True)
class NotLoggedIn:
    """Wrong name or password; if `wait` is not 0, too many attempts: the next may follow after `wait` seconds."""

    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class CurrentLogin:
    """The caller that a cookie belongs to, and the CSRF token that its forms must send."""

    caller: Caller
    form_token: Secret


class LoginService:
    """Starts, checks and ends logins.

    A login ends by `rules`, or when its user is disabled.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        passwords: Passwords,
        failures: LoginFailures,
        rules: LoginRules,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._rules = rules
        self._monotonic = monotonic
        self._accounts = Accounts(engine)
        self._passwords = passwords
        self.failures = failures
        self._attempts = RateLimiter(*_FAILURES)
        self._attempts_of_address = RateLimiter(*_FAILURES_OF_ADDRESS)

    async def log_in(self, name: str, password: Secret, address: str) -> Secret | NotLoggedIn:
        """Check a password and start a login; returns the value of its cookie."""
        return await self._confirm(name, password, address, self._begin)

    async def change_password(
        self,
        accounts: AccountService,
        actor: Actor,
        old: Secret,
        new: Secret,
        *,
        keep: Secret | None = None,
    ) -> Changed | Problem:
        """Give the user `actor` a new password; the old one is checked, and attempts count, as for a login.

        The login of the cookie `keep` stays; the others end.
        """
        refused = check_password(new, "new")
        if refused is not None:
            return refused

        found = await self._accounts.user(actor.name)
        if found is not None and not self._rules.by_password(found):
            return problem("no-password")

        async def confirmed(user: User, _: str) -> User:
            return user

        user = await self._confirm(actor.name, old, actor.address, confirmed)
        if isinstance(user, NotLoggedIn):
            if not user.wait:
                return problem("forbidden", "The old password is wrong.")
            wait = math.ceil(user.wait)
            refused = problem("too-many-attempts", f"Try again in {wait} seconds.")
            return replace(refused, headers={"Retry-After": str(wait)})
        wanted = Change(password=new, expected_hash=user.password_hash)
        return await accounts.change(actor, user.name, wanted, keep=keep)

    async def _confirm(
        self,
        name: str,
        password: Secret,
        address: str,
        then: Callable[[User, str], Awaitable[R | None]],
    ) -> R | NotLoggedIn:
        """Check a password; returns what `then` makes of the user and address, unless that is None.

        Attempts are rate-limited before the costly hash. `failures` notes each refusal.
        """
        # No user has a longer name, and each attempt is kept in memory.
        name = name[: MAX_USER_NAME + 1]
        key = f"{fold_user(name)} {source(address)}"
        now = self._monotonic()
        # Counted before the check, or many concurrent attempts would all pass.
        wait = self._attempts_of_address.count(address, now)
        if not wait:
            # Second, so that a blocked address cannot fill the limiter with names and push out
            # the attempts on other names.
            wait = self._attempts.count(key, now)
            if wait:
                self._attempts_of_address.undo(address)
        if wait:
            self.failures.note(FailureReason.TOO_MANY_ATTEMPTS, address)
            return NotLoggedIn(wait)
        user = await self._accounts.user(name)
        if user is not None and user.disabledon is not None:
            user = None
        by_password = user is not None and self._rules.by_password(user)
        hashed = user.password_hash if user is not None and by_password else None
        try:
            right = await self._passwords.verify(hashed, password)
        except TooBusy:  # the password was not checked
            self._attempts.undo(key)
            self._attempts_of_address.undo(address)
            return NotLoggedIn(wait=1.0)
        done = await then(user, address) if user is not None and right else None
        if done is None:
            if user is None:
                self.failures.note(FailureReason.UNKNOWN_USER, address)
            else:
                why = FailureReason.WRONG_PASSWORD if by_password else FailureReason.SSO_ONLY
                self.failures.note(why, address, user.name)
            return NotLoggedIn()
        self._attempts.forget(key)
        self._attempts_of_address.undo(address)
        return done

    async def _begin(self, user: User, address: str) -> Secret | None:
        """Store a new login; returns its cookie, or None if the user has changed since the check."""

        async def unit(transaction: Transaction) -> Secret | None:
            # A new password and disabling end all logins: this one must not survive them.
            found = await find_user(transaction, user.name)
            if found is None or found.disabledon is not None:
                return None
            if found.password_hash != user.password_hash:
                return None
            return await self.begin(transaction, found, address)

        return await self._engine.write(unit)

    async def begin(
        self, transaction: Transaction, user: User, address: str, *, sid: str | None = None
    ) -> Secret:
        """Start a login of a user who has proved who they are; returns its cookie.

        The transaction has locked the user. `sid` is the issuer's name of its session.
        """
        cookie = Secret(secrets.token_urlsafe(32))
        now = self._clock()
        login = Login(cookie.digest(), user.name, address, now, now, sid)
        event = Event.of(now, Actor(user.name, Via.PAGE, address), AuditAction.LOG_IN)
        await logins.add(transaction, login, event, self._rules.oldest(now))
        return cookie

    async def authenticate(self, cookie: Secret, *, used: bool = True) -> CurrentLogin | None:
        """The caller of this cookie, if its login is valid now; `used` refreshes its last use."""
        found = await logins.find(self._engine.fetch, cookie.digest())
        if found is None:
            return None
        login, user = found
        now = self._clock()
        if user.disabledon is not None:
            return None
        if now - login.createdon >= self._rules.lifetime_of(user):
            return None
        if now - login.seenon >= self._rules.idle:
            return None
        if now - login.seenon <= -_SEEN_EVERY:
            return None  # the clock was set back: the login could last arbitrarily long
        if used and now - login.seenon >= _SEEN_EVERY:
            # Reading must work while the store cannot write; until then the last use stays as it was.
            with contextlib.suppress(StoreUnavailable):
                await self._engine.write(
                    lambda transaction: logins.see(transaction, login.token_hash, now)
                )
        return CurrentLogin(Caller(user.name, user.role), _form_token(cookie))

    async def log_out(self, cookie: Secret) -> None:
        """End the login of this cookie."""
        digest = cookie.digest()
        await self._engine.write(lambda transaction: logins.end(transaction, digest))

    async def end_all(self, actor: Actor, user: str) -> int:
        """End every login of a user; returns their number."""
        event = Event.of(self._clock(), actor, AuditAction.END_LOGINS, user=user)

        async def unit(transaction: Transaction) -> int:
            events.append(transaction, [event])
            return await logins.end_all_of(transaction, user)

        return await self._engine.write(unit)

    async def counts(self) -> dict[str, int]:
        """The number of valid logins by user, for users that have any."""
        now = self._clock()
        return await logins.counts(
            self._engine.fetch, self._rules.oldest(now), now - self._rules.idle
        )


def too_many_attempts(wait: float) -> str:
    """The sentence for a person who may try again in `wait` seconds."""
    minutes = math.ceil(wait / 60)
    return f"Too many failed attempts. Try again in {minutes} minute{'s' * (minutes != 1)}."


def _form_token(cookie: Secret) -> Secret:
    """The CSRF token: derived from the cookie, so that nothing is stored."""
    mac = hmac.digest(cookie.reveal().encode(), b"form token", hashlib.sha256)
    return Secret(mac.hex())
