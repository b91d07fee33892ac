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

from gateway.attempts import Attempts, source
from gateway.event import Actor, Event, Via
from gateway.passwords import Passwords, TooBusy
from gateway.roles import Caller
from gateway.secret import Secret
from gateway.store import logins
from gateway.store.accounts import MAX_USER_NAME, Accounts, fold_user
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.logins import Login, Logins
from gateway.times import Clock

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


class LoginDesk:
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
        self._failures = Attempts(*_FAILURES)
        self._failures_of_address = Attempts(*_FAILURES_OF_ADDRESS)

    async def log_in(self, name: str, password: Secret, address: str) -> LoggedIn | NotLoggedIn:
        """Check a password; throttled before the costly part."""
        # Nobody's name is longer; what is remembered of an attempt has to stay small.
        name = name[: MAX_USER_NAME + 1]
        key = f"{fold_user(name)} {source(address)}"
        now = self._monotonic()
        # Counted before it has failed, or else many at once would all be let through.
        wait = self._failures_of_address.count(address, now)
        if not wait:
            # Second, so that an address which is held off cannot have names remembered without end,
            # and other names' failures forgotten for them.
            wait = self._failures.count(key, now)
            if wait:
                self._failures_of_address.take_back(address)
        if wait:
            return NotLoggedIn(wait)
        user = await self._accounts.user(name)
        hashed = None if user is None or user.disabledon is not None else user.password_hash
        try:
            right = await self._passwords.verify(hashed, password)
        except TooBusy:  # it was not tried
            self._failures.take_back(key)
            self._failures_of_address.take_back(address)
            return NotLoggedIn(wait=1.0)
        if not right or user is None:
            return NotLoggedIn()
        self._failures.forget(key)
        self._failures_of_address.take_back(address)
        cookie = Secret(secrets.token_urlsafe(32))
        moment = self._clock()
        login = Login(cookie.digest(), user.name, address, moment, moment)
        event = Event(moment, Actor(user.name, Via.PAGE, address), "log-in", None, None, {})
        await self._engine.write(
            lambda transaction: logins.add(transaction, login, event, moment - self._lifetime)
        )
        return LoggedIn(cookie)

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
        event = Event(self._clock(), actor, "end-logins", None, None, {"user": user})
        return await self._engine.write(
            lambda transaction: logins.end_all_of(transaction, user, event)
        )

    async def counts(self) -> dict[str, int]:
        """How many logins that are good now each user has that has any."""
        now = self._clock()
        return await self._logins.counts(now - self._lifetime, now - self._idle)

    async def anybody(self) -> bool:
        """Whether there is any user yet."""
        return bool(await self._accounts.users())


def _form_token(cookie: Secret) -> Secret:
    """Made from the cookie, so that nothing has to be kept, and of no use without it."""
    mac = hmac.digest(cookie.reveal().encode(), b"form token", hashlib.sha256)
    return Secret(mac.hex())
