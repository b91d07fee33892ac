"""Single sign-on: begin and finish a login at the issuer, and end logins that the issuer ends.

Source: docs/sso.md; OpenID Connect Core 1.0, Back-Channel Logout 1.0.

Tested in tests/gateway/admin/test_single_sign_on.py.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import structlog

from gateway.core.accounts import MAX_USER_NAME, Origin, User, can_be_new_user
from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.jwks import BadToken
from gateway.core.login_state import LIFETIME, PURPOSE, LoginState, open_state
from gateway.core.oidc import (
    Identity,
    check_id_token,
    check_logout_token,
    groups_of,
    role_of,
)
from gateway.core.rate_limit import RateLimiter
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.text import printable
from gateway.core.times import Clock
from gateway.services.issuer import FRESH, Issuer, IssuerRefused, IssuerUnavailable, Tokens
from gateway.services.login_failures import FailureReason
from gateway.services.logins import LoginService, too_many_attempts
from gateway.store import accounts, events, logins, sso
from gateway.store.engine import Engine, Transaction
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.tables import needs_keys

UNREACHABLE: Final = (
    "Single sign-on does not work just now: the issuer cannot be reached. Try again in a moment."
    " Local users can log in by password."
)
_NOT_ACCEPTED: Final = (
    "The answer of single sign-on was not accepted. Log in again; the gateway's log has the reason."
)
_BEGIN_AGAIN: Final = (
    "This login was not begun in this browser, was finished before, or took longer than"
    f" {LIFETIME / 60:.0f} minutes. Log in again."
)
_NO_GROUP: Final = "None of your groups may use this gateway. Ask the people who manage the groups of your company."
FAILURES: Final = (50, 900.0)
"""Failed logins from one address, and the seconds in which they count."""
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,40}")
_MAX_CODE: Final = 4096

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Begun:
    """Where to send the browser, and the value of the cookie that it keeps meanwhile."""

    url: str
    cookie: Secret


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The value of the login's cookie, and the address below `/admin/` to go to."""

    cookie: Secret
    to: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a login is refused: for the log, and as a sentence for the person with the status of the page.

    The next attempt may follow after `wait` seconds.
    """

    why: FailureReason
    sentence: str
    status: int = 403
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back with the browser (RFC 6749 section 4.1.2); `iss` by RFC 9207."""

    code: Secret
    state: str
    iss: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class _Person:
    """Whom the issuer has authenticated."""

    identity: Identity
    name: str | None
    role: Role | None


class SsoService:
    """Logs users of an issuer in and out."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        engine: Engine,
        keys: KeyStore,
        clock: Clock,
        logins: LoginService,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self.settings = issuer.settings
        self._engine = engine
        self._keys = keys
        self._clock = clock
        self._logins = logins
        self._monotonic = monotonic
        self._attempts = RateLimiter(*FAILURES)

    async def begin(self, to: str, address: str) -> Begun | Refusal:
        """Begin a login that goes to `to` in the end."""
        try:
            metadata = await self._issuer.metadata(FRESH)
            key = await self._sealing_key()
        except (IssuerUnavailable, KeyFileUnusable) as error:
            return self._unavailable(error, address)
        login = LoginState.new(to, self._clock())
        settings = self.settings
        url = metadata.authorization_url(
            login,
            client_id=settings.client_id,
            redirect_url=settings.redirect_url,
            scopes=metadata.scopes(settings.scopes, settings.groups_claim),
        )
        return Begun(url, login.seal(key))

    async def finish(
        self, answer: Answer, cookie: Secret | None, address: str
    ) -> LoggedIn | Refusal:
        """Finish the login that this browser's `cookie` has begun."""
        login = None if cookie is None else open_state(cookie, self._opening_keys(), self._clock())
        if login is None or Secret(answer.state) != Secret(login.state):
            return self._refuse(FailureReason.SSO_STATE, _BEGIN_AGAIN, address)
        wait = self._attempts.count(address, self._monotonic())
        if wait:
            sentence = too_many_attempts(wait)
            refusal = self._refuse(FailureReason.TOO_MANY_ATTEMPTS, sentence, address, status=429)
            return replace(refusal, wait=wait)
        try:
            found = await self._finish(answer, login, address)
        except IssuerUnavailable as error:
            self._attempts.undo(address)
            return self._unavailable(error, address)
        except IssuerRefused as error:
            _log.warning("the issuer refused a login", reason=str(error))
            return self._refuse(FailureReason.SSO_ISSUER, _refused_by_issuer(str(error)), address)
        except BadToken as error:
            _log.warning("an answer of the issuer is not accepted", reason=str(error))
            return self._refuse(FailureReason.SSO_TOKEN, _NOT_ACCEPTED, address)
        if isinstance(found, LoggedIn):
            self._attempts.undo(address)
        return found

    async def _finish(self, answer: Answer, login: LoginState, address: str) -> LoggedIn | Refusal:
        now = self._clock()
        until = now + timedelta(seconds=LIFETIME)
        digest = _digest("state", login.state)
        if not await self._engine.write(lambda t: sso.use(t, digest, until, now)):
            return self._refuse(FailureReason.SSO_STATE, _BEGIN_AGAIN, address)
        metadata = await self._issuer.metadata()
        # RFC 9207 section 2.4: an answer of another issuer must not bring its code here.
        if answer.iss != self.settings.issuer and (
            answer.iss is not None or metadata.iss_parameter
        ):
            raise BadToken("the answer is of another issuer")
        if answer.error is not None:
            raise IssuerRefused(answer.error)
        code = answer.code.reveal()
        if not 1 <= len(code) <= _MAX_CODE or not (code.isascii() and code.isprintable()):
            raise BadToken("the answer has no code")
        tokens = await self._issuer.exchange(answer.code, login.verifier)
        identity = check_id_token(
            await self._issuer.verify(tokens.id_token, by_anyone=False),
            issuer=self.settings.issuer,
            client_id=self.settings.client_id,
            nonce=login.nonce,
            now=self._clock(),
        )
        return await self._admit(await self._person(identity, tokens), login.to, address)

    async def _person(self, identity: Identity, tokens: Tokens) -> _Person:
        """Name and role of a person, from the ID token or, where it lacks them, from userinfo."""
        claims: Mapping[str, Any] = identity.claims
        needed = {self.settings.username_claim, self.settings.groups_claim}
        if needed - claims.keys() and tokens.access_token is not None:
            more = await self._issuer.userinfo(tokens.access_token)
            # Core section 5.3.2: or it could be of somebody else.
            if more and more.get("sub") != identity.subject:
                raise BadToken("its userinfo is of another subject")
            claims = {**more, **claims}
        name = claims.get(self.settings.username_claim)
        groups = groups_of(claims.get(self.settings.groups_claim))
        return _Person(
            identity,
            name if isinstance(name, str) else None,
            role_of(groups, self.settings.roles),
        )

    async def _admit(self, person: _Person, to: str, address: str) -> LoggedIn | Refusal:
        """Log a person in whom the issuer has authenticated, if they may use the gateway."""

        async def unit(transaction: Transaction) -> tuple[str | None, Secret | Refusal]:
            user = await self._find(transaction, person) or await self._add(
                transaction, person, address
            )
            if isinstance(user, Refusal):
                return None, user
            if user.disabledon is not None:
                return user.name, Refusal(FailureReason.SSO_DISABLED, "Your user is disabled here.")
            if person.role is None:
                await self._end_logins(transaction, user.name, address)
                return user.name, Refusal(FailureReason.SSO_GROUPS, _NO_GROUP)
            if user.role is not person.role:
                await accounts.update_user(transaction, replace(user, role=person.role))
                self._log(
                    transaction,
                    user.name,
                    address,
                    AuditAction.SET_ROLE,
                    user=user.name,
                    role=person.role,
                )
            sid = person.identity.sid
            return user.name, await self._logins.begin(transaction, user, address, sid=sid)

        name, outcome = await self._engine.write(unit)
        if isinstance(outcome, Secret):
            return LoggedIn(outcome, to)
        # Admins read it on a terminal and on the page, and the person may have chosen it.
        called = None if person.name is None else printable(person.name[:MAX_USER_NAME])
        self._logins.failures.note(
            outcome.why, address, name, subject=person.identity.subject, name=called
        )
        return outcome

    async def _find(self, transaction: Transaction, person: _Person) -> User | None:
        return await accounts.find_by_subject(
            transaction, self.settings.issuer, person.identity.subject
        )

    async def _add(self, transaction: Transaction, person: _Person, address: str) -> User | Refusal:
        """Add the user at their first login."""
        if person.role is None:
            return Refusal(FailureReason.SSO_GROUPS, _NO_GROUP)
        name = person.name
        if name is None or not can_be_new_user(name):
            return Refusal(
                FailureReason.SSO_NAME,
                f"Single sign-on gave no {self.settings.username_claim} that can be the name of a user here."
                " Ask an admin of this gateway to link your account.",
            )
        user = User(
            name,
            person.role,
            None,
            self._clock(),
            origin=Origin.SSO,
            issuer=self.settings.issuer,
            subject=person.identity.subject,
        )
        event = self._event(
            name,
            address,
            AuditAction.ADD_USER,
            user=name,
            role=user.role,
            origin=Origin.SSO,
            subject=user.subject,
        )
        if await accounts.add_user(transaction, user, event):
            return user
        # Another node may have added them just now.
        return await self._find(transaction, person) or Refusal(
            FailureReason.SSO_NAME,
            f"The name {name} is in use here. Ask an admin of this gateway to link your account.",
        )

    async def log_out(self, token: Secret, address: str) -> str | None:
        """End the logins that a logout token names; returns why that is refused.

        Raises `IssuerUnavailable`: the token could not be checked.
        """
        settings = self.settings
        try:
            claims = await self._issuer.verify(token, by_anyone=True)
            now = self._clock()
            wanted = check_logout_token(
                claims, issuer=settings.issuer, client_id=settings.client_id, now=now
            )
        except BadToken as error:
            self._logins.failures.note(FailureReason.LOGOUT_TOKEN, address)
            _log.warning("a logout token is not accepted", reason=str(error), address=address)
            return str(error)
        until = now + timedelta(seconds=wanted.until - now.timestamp())

        async def unit(transaction: Transaction) -> bool:
            if not await sso.use(transaction, _digest("logout", wanted.jti), until, now):
                return False
            ended = await logins.end_by_subject(
                transaction, settings.issuer, wanted.subject, wanted.sid
            )
            for name, count in ended.items():
                self._log_ended(transaction, name, address, count)
            return True

        if await self._engine.write(unit):
            return None
        self._logins.failures.note(FailureReason.LOGOUT_TOKEN, address)
        return "it was used before"

    async def _end_logins(self, transaction: Transaction, name: str, address: str) -> None:
        count = await logins.end_all_of(transaction, name)
        if count:
            self._log_ended(transaction, name, address, count)

    def _log_ended(self, transaction: Transaction, name: str, address: str, count: int) -> None:
        self._log(transaction, name, address, AuditAction.END_LOGINS, user=name, logins_ended=count)

    def _log(
        self, transaction: Transaction, name: str, address: str, action: str, **detail: Any
    ) -> None:
        events.append(transaction, [self._event(name, address, action, **detail)])

    def _event(self, name: str, address: str, action: str, **detail: Any) -> Event:
        # As for a login by password the actor is the user.
        return Event.of(self._clock(), Actor(name, Via.PAGE, address), action, **detail)

    async def _sealing_key(self) -> bytes:
        """Raises `KeyFileUnusable`."""
        needed = await needs_keys(self._engine.fetch)
        return self._keys.for_sealing(may_create=not needed).derived(PURPOSE)[0]

    def _opening_keys(self) -> tuple[bytes, ...]:
        keys = self._keys.derived(PURPOSE)
        if not keys:  # another node has made the key file to begin this login
            self._keys.reload()
        return keys or self._keys.derived(PURPOSE)

    def _refuse(
        self, why: FailureReason, sentence: str, address: str, status: int = 403
    ) -> Refusal:
        self._logins.failures.note(why, address)
        return Refusal(why, sentence, status)

    def _unavailable(self, error: Exception, address: str) -> Refusal:
        _log.warning("single sign-on does not work", reason=str(error))
        return self._refuse(FailureReason.SSO_ISSUER, UNREACHABLE, address, status=503)


def _refused_by_issuer(code: str) -> str:
    shown = f" ({code})" if _ERROR_CODE.fullmatch(code) else ""
    return f"Single sign-on refused the login{shown}. Log in again, or ask the people who run it."


def _digest(purpose: str, text: str) -> str:
    return hashlib.sha256(f"{purpose} {text}".encode()).hexdigest()
