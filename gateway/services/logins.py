"""Logging in to the admin page: checked, throttled, recognised by cookie, ended."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from gateway.core.accounts import MAX_USER_NAME, User, fold_user
from gateway.core.audit_event import Actor, Event, Via
from gateway.core.codes import AuditAction
from gateway.core.rate_limit import RateLimiter, source
from gateway.core.roles import Caller
from gateway.core.secret import Secret
from gateway.core.times import Clock
from gateway.services.login_failures import LoginFailures, Why
from gateway.services.passwords import Passwords, TooBusy
from gateway.store import events, logins
from gateway.store.accounts import Accounts, find_user
from gateway.store.engine import Engine, StoreUnavailable, Transaction
from gateway.store.logins import Login, Logins

_FAILURES: Final = (5, 900.0)
"""Failed logins of one user from one address, within these seconds."""
_FAILURES_OF_ADDRESS: Final = (50, 900.0)
_SEEN_EVERY: Final = timedelta(seconds=60)
"""How exactly the last use is kept; each request would be a write."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A new login: the cookie's value."""

    cookie: Secret


@dataclass(frozen=True, slots=True)
class NotLoggedIn:
    """Name or password were wrong, or there were too many attempts: then try after `wait` seconds."""

    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Recognised:
    """Who brings a cookie, and the token that their forms have to bring."""

    caller: Caller
    form_token: Secret


class LoginService:
    """The use case; its collaborators come in through the constructor.

    A login ends `idle` seconds after its last use, `lifetime` seconds after its begin, and with its
    user.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        passwords: Passwords,
        failures: LoginFailures,
        idle: float,
        lifetime: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._idle = timedelta(seconds=idle)
        self._lifetime = timedelta(seconds=lifetime)
        self._monotonic = monotonic
        self._accounts = Accounts(engine)
        self._logins = Logins(engine)
        self._passwords = passwords
        self.failures = failures
        """Notes refused credentials."""
        self._attempts = RateLimiter(*_FAILURES)
        self._attempts_of_address = RateLimiter(*_FAILURES_OF_ADDRESS)

    async def log_in(self, name: str, password: Secret, address: str) -> LoggedIn | NotLoggedIn:
        """Check a password; throttled before the costly part. What is refused is noted."""
        # Nobody's name is longer; what is remembered of an attempt has to stay small.
        name = name[: MAX_USER_NAME + 1]
        key = f"{fold_user(name)} {source(address)}"
        now = self._monotonic()
        # Counted before it has failed, or else many at once would all be let through.
        wait = self._attempts_of_address.count(address, now)
        if not wait:
            # Second, so that an address which is held off cannot have names remembered without end,
            # and other names' failures forgotten for them.
            wait = self._attempts.count(key, now)
            if wait:
                self._attempts_of_address.undo(address)
        if wait:
            self.failures.note(Why.TOO_MANY_ATTEMPTS, address)
            return NotLoggedIn(wait)
        user = await self._accounts.user(name)
        if user is not None and user.disabledon is not None:
            user = None
        hashed = None if user is None else user.password_hash
        try:
            right = await self._passwords.verify(hashed, password)
        except TooBusy:  # it was not tried
            self._attempts.undo(key)
            self._attempts_of_address.undo(address)
            return NotLoggedIn(wait=1.0)
        cookie = await self._begin(user, address) if user is not None and right else None
        if cookie is None:
            if user is None:
                self.failures.note(Why.UNKNOWN_USER, address)
            else:
                self.failures.note(Why.WRONG_PASSWORD, address, user.name)
            return NotLoggedIn()
        self._attempts.forget(key)
        self._attempts_of_address.undo(address)
        return LoggedIn(cookie)

    async def _begin(self, user: User, address: str) -> Secret | None:
        """A new login's cookie; None where the user has another password meanwhile, or is disabled."""
        cookie = Secret(secrets.token_urlsafe(32))
        moment = self._clock()
        login = Login(cookie.digest(), user.name, address, moment, moment)
        event = Event(
            moment, Actor(user.name, Via.PAGE, address), AuditAction.LOG_IN, None, None, {}
        )

        async def unit(transaction: Transaction) -> Secret | None:
            # Both end all logins, and this one must not be added behind them.
            found = await find_user(transaction, user.name)
            if found is None or found.disabledon is not None:
                return None
            if found.password_hash != user.password_hash:
                return None
            await logins.add(transaction, login, event, moment - self._lifetime)
            return cookie

        return await self._engine.write(unit)

    async def recognise(self, cookie: Secret, *, used: bool = True) -> Recognised | None:
        """Who brings this cookie, if the login is good now; notes that it was `used`."""
        found = await self._logins.find(cookie.digest())
        if found is None:
            return None
        login, user = found
        now = self._clock()
        if user.disabledon is not None:
            return None
        if now - login.createdon >= self._lifetime or now - login.seenon >= self._idle:
            return None
        if now - login.seenon <= -_SEEN_EVERY:
            return None  # the clock was set back: it could last for any time
        if used and now - login.seenon >= _SEEN_EVERY:
            # Whoever only looks need not write: while nothing can be written the login ages.
            with contextlib.suppress(StoreUnavailable):
                await self._engine.write(
                    lambda transaction: logins.see(transaction, login.token_hash, now)
                )
        return Recognised(Caller(user.name, user.role), _form_token(cookie))

    async def log_out(self, cookie: Secret) -> None:
        """End the login of this cookie."""
        digest = cookie.digest()
        await self._engine.write(lambda transaction: logins.end(transaction, digest))

    async def end_all(self, actor: Actor, user: str) -> int:
        """End every login of a user; returns how many there were."""
        event = Event(self._clock(), actor, AuditAction.END_LOGINS, None, None, {"user": user})

        async def unit(transaction: Transaction) -> int:
            events.append(transaction, [event])
            return await logins.end_all_of(transaction, user)

        return await self._engine.write(unit)

    async def counts(self) -> dict[str, int]:
        """How many logins that are good now each user has that has any."""
        now = self._clock()
        return await self._logins.counts(now - self._lifetime, now - self._idle)


def _form_token(cookie: Secret) -> Secret:
    """Made from the cookie, so that nothing has to be kept, and of no use without it."""
    mac = hmac.digest(cookie.reveal().encode(), b"form token", hashlib.sha256)
    return Secret(mac.hex())
