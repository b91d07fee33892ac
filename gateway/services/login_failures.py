"""Refused credentials: counted, logged without the credentials, and failed logins written as events.

An attacker who knows user names could fill the audit log. So it gets one event a minute for a user and
`MAX_A_MINUTE` for all users. Further failures are counted together until their turn; a gateway that stops
before loses them.

Tested in tests/contract/test_login_failures.py.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.times import Clock
from gateway.store import events
from gateway.store.engine import Engine, StoreUnavailable, Transaction
from gateway.store.events import Events

MAX_A_MINUTE: Final = 10
"""Events of failed logins in a minute, for all users and nodes together."""
_MINUTE: Final = timedelta(seconds=60)

_log = structlog.get_logger()


class FailureReason(enum.StrEnum):
    """Why credentials were refused."""

    WRONG_PASSWORD = "wrong-password"  # noqa: S105 - a reason
    SSO_ONLY = "sso-only"
    """The user may not log in by password; it was not checked."""
    UNKNOWN_USER = "unknown-user"
    """The user does not exist or is disabled."""
    TOO_MANY_ATTEMPTS = "too-many-attempts"
    API_TOKEN = "api-token"  # noqa: S105 - a reason
    SSO_STATE = "sso-state"
    """The login was not begun in this browser, was finished before, or took too long."""
    SSO_ISSUER = "sso-issuer"
    """The issuer cannot be reached, or refused the login."""
    SSO_TOKEN = "sso-token"  # noqa: S105 - a reason
    """The issuer's answer or ID token is not valid."""
    SSO_GROUPS = "sso-groups"
    """None of the user's groups has a role."""
    SSO_NAME = "sso-name"
    """The name is in use, or cannot be one of a user."""
    SSO_DISABLED = "sso-disabled"
    LOGOUT_TOKEN = "logout-token"  # noqa: S105 - a reason
    """The issuer, or somebody else, sent a logout token that is not valid."""


SUBJECT_PREFIX: Final = "sso/"
"""Before the subject of somebody who is no user here: no user's name has a slash."""


@dataclass(frozen=True, slots=True)
class _Failures:
    """The failed logins of a user that are not in the log yet; all but their count is of the newest.

    `subject` and `name` are what the issuer calls somebody who could not log in by single sign-on.
    """

    count: int
    address: str
    why: FailureReason
    subject: str | None = None
    name: str | None = None


class LoginFailures:
    """Notes refused credentials; `run` writes the events.

    Args:
        observe: is called with the reason of each refusal.
        max_users: of so many failed logins are remembered until they are written.
        pause: seconds between two transactions.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        observe: Callable[[FailureReason], None],
        *,
        max_users: int = 10_000,
        pause: float = 1.0,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._observe = observe
        self._max_users = max_users
        self._pause = pause
        self._waiting: dict[str, _Failures] = {}
        self._wake = asyncio.Event()

    def note(
        self,
        why: FailureReason,
        address: str,
        user: str | None = None,
        *,
        subject: str | None = None,
        name: str | None = None,
    ) -> None:
        """Note a refusal.

        This writes nothing: the time of the answer must not reveal whether the user exists.

        Args:
            why: the reason.
            address: where the credentials came from.
            user: an enabled user who could not log in by their password, or the user of `subject`.
            subject: whom the issuer has authenticated.
            name: what the issuer calls them.
        """
        self._observe(why)
        _log.info("credentials refused", why=why.value, address=address)
        if user is None and subject is not None:
            user = f"{SUBJECT_PREFIX}{subject}"
        if user is None:
            return
        known = self._waiting.get(user)
        if known is not None or len(self._waiting) < self._max_users:
            count = 1 if known is None else known.count + 1
            self._waiting[user] = _Failures(count, address, why, subject, name)
        self._wake.set()

    async def run(self) -> None:
        """Write events until cancelled, then once more."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._try_to_write()
                await asyncio.sleep(self._pause)
                if self._waiting:
                    self._wake.set()
        finally:
            await self._try_to_write()

    async def _try_to_write(self) -> None:
        try:
            await self.write()
        except StoreUnavailable:
            pass  # `run` tries again
        except Exception:  # noqa: BLE001 - the gateway works without these events
            _log.exception("failed logins not written")

    async def write(self) -> None:
        """Write the events that are due. Raises `StoreUnavailable`; nothing is lost then."""
        waiting = dict(self._waiting)
        if not waiting:
            return

        async def unit(transaction: Transaction) -> list[str]:
            now = self._clock()
            # Read from the log, since other nodes and earlier runs of this one write there too.
            recent = await Events(transaction.fetch).failed_logins(now - _MINUTE, now)
            room = max(0, MAX_A_MINUTE - len(recent))
            due = [user for user in waiting if user not in recent][:room]
            events.append(transaction, [_event(now, user, waiting[user]) for user in due])
            return due

        for user in await self._engine.write(unit):
            now_waiting = self._waiting[user]
            left = now_waiting.count - waiting[user].count
            if left:
                self._waiting[user] = replace(now_waiting, count=left)
            else:
                del self._waiting[user]


def _event(now: datetime, user: str, failures: _Failures) -> Event:
    # The actor is the account, as for a successful login.
    actor = Actor(user, Via.PAGE, failures.address)
    known = {"subject": failures.subject, "name": failures.name}
    return Event.of(
        now,
        actor,
        AuditAction.LOGIN_FAILED,
        user=user,
        count=failures.count,
        why=failures.why,
        **{name: value for name, value in known.items() if value is not None},
    )
