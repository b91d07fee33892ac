"""Finds credentials that were revoked after a backup and that restoring it makes valid again. Pure.

A backup lacks the revocations made after it. If the newer database exists, the two are compared; without it,
every valid credential of the older one is suspect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.ice import Status

_UNKNOWN: Final = "not known"


@dataclass(frozen=True, slots=True)
class IceCredential:
    """The columns of an ICE that decide on its admission; `token` is the hash."""

    name: str
    status: Status
    generation: int
    token: str
    expires: datetime | None

    def admits(self, now: datetime) -> bool:
        """Whether its token is valid at `now`."""
        if self.status is Status.PROVISIONED:
            return self.expires is None or now < self.expires
        return self.status is Status.REGISTERED


@dataclass(frozen=True, slots=True)
class UserCredential:
    """The part of a user that decides what they may do; `password` is the hash."""

    name: str
    role: str
    password: str | None
    disabled: bool


@dataclass(frozen=True, slots=True)
class TokenCredential:
    """The part of an API token that decides whether it is valid."""

    id: str
    user: str
    label: str
    expires: datetime | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials of a database: ICEs and users by folded name, API tokens by id."""

    ices: dict[str, IceCredential]
    users: dict[str, UserCredential]
    api_tokens: dict[str, TokenCredential]


@dataclass(frozen=True, slots=True)
class Revived:
    """A credential that is valid again: `what` is ice, user or api-token.

    `now` describes the restored state, `since` says what had ended it.
    """

    what: str
    name: str
    now: str
    since: str


def revived(
    older: Credentials, newer: Credentials | None, now: datetime, *, reissued: Collection[str] = ()
) -> list[Revived]:
    """The credentials that are valid in `older`, the restored state, but not in `newer`.

    Without `newer` every valid credential is listed. `reissued` are the folded names of ICEs that got a
    new token after the restore: those are meant to be valid.
    """
    found: list[Revived] = []
    for name, ice in older.ices.items():
        if ice.admits(now) and name not in reissued:
            since = _ice_change(ice, newer.ices.get(name)) if newer else _UNKNOWN
            if since:
                state = f"{ice.status}, generation {ice.generation}"
                found.append(Revived("ice", ice.name, state, since))
    for name, user in older.users.items():
        since = _user_change(user, newer.users.get(name)) if newer else user.password and _UNKNOWN
        if since and not user.disabled:
            found.append(Revived("user", user.name, user.role, since))
    for token in older.api_tokens.values():
        owner = older.users.get(token.user)
        expired = token.expires is not None and now >= token.expires
        if token.revoked or expired or owner is None or owner.disabled:
            continue
        current = newer.api_tokens.get(token.id) if newer else None
        if newer is None or (current and current.revoked):
            since = "revoked" if newer else _UNKNOWN
            found.append(Revived("api-token", token.id, f"of {token.user}: {token.label}", since))
    return found


def _ice_change(older: IceCredential, newer: IceCredential | None) -> str | None:
    """The change that invalidated `older`; None if there is none."""
    if newer is None:
        return "gone"
    if newer.status is Status.DEREGISTERED:
        return "deregistered"
    if newer.token != older.token:
        return f"its token was replaced (generation {newer.generation})"
    if newer.status is not older.status:
        # The newer row is bound to a key; the restored one binds to the first key that comes with the token.
        return "registered: its token could be registered again, by anyone who has it"
    return None


def _user_change(older: UserCredential, newer: UserCredential | None) -> str | None:
    if newer is None:
        return None
    if newer.disabled:
        return "disabled"
    reasons = []
    if newer.role != older.role:
        reasons.append(f"made {newer.role}")
    if older.password is not None and newer.password != older.password:
        reasons.append("given another password")
    return " and ".join(reasons) or None
