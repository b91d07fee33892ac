"""Who logs in by which means, and how long a login and an API token are valid. Pure.

With single sign-on a user of its issuer never logs in by password. Source: docs/administration.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from gateway.core.accounts import Origin, User

MAX_SUBJECT: Final = 255
"""Characters of an issuer's name of a user (OpenID Connect Core 1.0, section 2)."""
SUBJECT_RULE: Final = f"1 to {MAX_SUBJECT} printable ASCII characters"


def is_subject(text: str) -> bool:
    """Whether an issuer can name a user so; case counts."""
    return 1 <= len(text) <= MAX_SUBJECT and text.isascii() and text.isprintable()


class Oldest(NamedTuple):
    """When the oldest valid login of a user of origin `sso`, and of another user, can have begun."""

    sso: datetime
    other: datetime


@dataclass(frozen=True, slots=True)
class LoginRules:
    """The rules of logins, from the settings.

    Attributes:
        idle: the time from its last use after which a login ends.
        lifetime: the time from its start after which a login ends.
        sso_lifetime: the same for a user of origin `sso`, whose groups the gateway reads at each login.
        tokens_after: the time from the last login of such a user after which their API tokens rest; None for never.
        issuer: the URL of the issuer; empty without single sign-on.
        required: whether a user logs in by password only if an admin made them local.
    """

    idle: timedelta
    lifetime: timedelta
    sso_lifetime: timedelta
    tokens_after: timedelta | None = None
    issuer: str = ""
    required: bool = False

    def by_password(self, user: User) -> bool:
        """Whether the user may log in by password, if they have one and are enabled."""
        if user.origin is None:
            return not self.required
        return user.origin is Origin.LOCAL

    def keeps_admin(self, user: User) -> bool:
        """Whether a user who could administer still can, as they are now.

        With single sign-on only a password counts: an issuer that cannot be reached lets no admin in.
        """
        if not self.issuer:
            return user.administers
        return user.administers and user.password_hash is not None and self.by_password(user)

    def lifetime_of(self, user: User) -> timedelta:
        """How long after its start a login of the user ends."""
        return self.sso_lifetime if user.origin is Origin.SSO else self.lifetime

    def oldest(self, now: datetime) -> Oldest:
        """When the oldest login that is valid at `now` can have begun."""
        return Oldest(now - self.sso_lifetime, now - self.lifetime)

    def rests(self, owner: User, now: datetime) -> bool:
        """Whether the API tokens of this user rest until their next login."""
        if owner.origin is not Origin.SSO or self.tokens_after is None:
            return False
        return owner.lastlogin is None or now - owner.lastlogin >= self.tokens_after
