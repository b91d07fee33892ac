"""Users and their API tokens. Pure.

Tested in tests/contract/test_accounts.py.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from gateway.core.roles import Role
from gateway.core.times import to_text

MAX_USER_NAME: Final = 128
"""Characters of a user's name."""
_MAX_FOLDED: Final = 8 * MAX_USER_NAME


USER_NAME_RULE: Final = (
    f"1 to {MAX_USER_NAME} printable characters without / and \\, none of them invisible, no space at either end, and"
    " not . or .."
)
_IN_PATHS: Final = frozenset("/\\")
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Printable by their category but invisible: Unicode's Default_Ignorable_Code_Point, and the empty Braille pattern."""


def can_be_new_user(name: str) -> bool:
    """Whether a new user may have this name.

    Proxies change paths with `.`, `..`, `/` or a backslash. Users of an issuer may choose their names there: no name may
    differ from another one only in what cannot be seen.
    """
    return (
        1 <= len(name) <= MAX_USER_NAME
        and name.isprintable()
        and name not in (".", "..")
        and _IN_PATHS.isdisjoint(name)
        and name == name.strip()
        and not _INVISIBLE.search(name)
    )


def fold_user(name: str) -> str:
    """The form under which a user name is unique (Unicode, NFKC with case folded).

    Normalising takes time quadratic in a run of combining characters (0.7 s for 30,000), so a text that is
    too long for any name is cut first. NFKC composes at most four characters into one.
    """
    name = name[:_MAX_FOLDED]
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


class Origin(enum.StrEnum):
    """Where a user comes from. A user who was made before there was single sign-on has none until an admin sets it."""

    LOCAL = "local"
    """Made here by an admin; logs in by password."""
    SSO = "sso"
    """Known by an issuer and its subject; never logs in by password."""


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`. Without a password hash and a subject the user cannot log in, only be tagged.

    `issuer` and `subject` are set for a user of origin `sso` alone, who is known by them.
    """

    name: str
    role: Role
    password_hash: str | None
    createdon: datetime
    disabledon: datetime | None = None
    lastlogin: datetime | None = None
    origin: Origin | None = None
    issuer: str | None = None
    subject: str | None = None

    def __repr__(self) -> str:
        return f"User({self.name!r}, {self.role})"

    @property
    def administers(self) -> bool:
        """Whether the user is an admin and enabled."""
        return self.role is Role.ADMIN and self.disabledon is None

    @property
    def identity(self) -> tuple[Origin | None, str | None, str | None]:
        """Origin, issuer and subject, by which a login finds the user."""
        return self.origin, self.issuer, self.subject

    def linked(self, issuer: str, subject: str) -> User:
        """The user linked to `subject` of `issuer`, without a password."""
        return replace(self, origin=Origin.SSO, issuer=issuer, subject=subject, password_hash=None)

    def made_local(self) -> User:
        """The user with origin `local`, who logs in by password if they have one."""
        return replace(self, origin=Origin.LOCAL, issuer=None, subject=None)


class TokenState(enum.StrEnum):
    """Whether an API token is valid, and if not, why."""

    GOOD = "good"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DISABLED = "disabled"
    """Its owner is disabled."""
    RESTING = "resting"
    """Its owner, of origin `sso`, has not logged in for too long; their next login makes it valid again."""


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A row of `api_tokens`: `token_hash` is a SHA-256, never the token.

    With `ice_name` it may only operate that ICE, with `pool` only that pool; otherwise it has the rights of its user.
    With `accounts` these include changes of users and API tokens. `madeby` names the token, login or command that made
    it; older tokens have none. `lastused` is written once a minute at most.
    """

    id: str
    user: str
    label: str
    token_hash: str
    createdon: datetime
    expireson: datetime | None = None
    revokedon: datetime | None = None
    ice_name: str | None = None
    lastused: datetime | None = None
    madeby: str | None = None
    pool: str | None = None
    accounts: bool = False

    @property
    def place(self) -> str:
        """Its place in the order of listings."""
        return f"{to_text(self.createdon)} {self.id}"

    def state(self, now: datetime, *, owner_disabled: bool, owner_rests: bool) -> TokenState:
        """Its state at `now`; only a `GOOD` token authenticates. `owner_rests` is of `LoginRules.rests`."""
        if self.revokedon is not None:
            return TokenState.REVOKED
        if owner_disabled:
            return TokenState.DISABLED
        if self.expireson is not None and now >= self.expireson:
            return TokenState.EXPIRED
        return TokenState.RESTING if owner_rests else TokenState.GOOD
