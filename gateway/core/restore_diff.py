"""Finds credentials that were revoked after a backup and that restoring it makes valid again. Pure.

A backup lacks the revocations made after it. If the newer database exists, the two are compared; without it,
every valid credential of the older one is suspect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gateway.core.ice import Status


@dataclass(frozen=True, slots=True)
class IceEntry:
    """The part of an ICE's entry that decides on its admission; `token` is the hash."""

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
class UserEntry:
    """The part of a user that decides what they may do; `password` is the hash."""

    name: str
    role: str
    password: str | None
    disabled: bool


@dataclass(frozen=True, slots=True)
class ApiTokenEntry:
    """The part of an API token that decides whether it is valid."""

    id: str
    user: str
    label: str
    expires: datetime | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials of a database: ICEs and users by folded name, API tokens by id."""

    ices: dict[str, IceEntry]
    users: dict[str, UserEntry]
    api_tokens: dict[str, ApiTokenEntry]


@dataclass(frozen=True, slots=True)
class Revived:
    """A credential that is valid again: `what` is ice, user or api-token.

    `now` describes it as restored, `since` says what had ended it.
    """

    what: str
    name: str
    now: str
    since: str


def all_valid(older: Credentials, now: datetime) -> list[Revived]:
    """All valid credentials of `older`, for when its later life is unknown."""
    unknown = "not known"
    found = [
        Revived("ice", entry.name, _describe_ice(entry), unknown)
        for entry in older.ices.values()
        if entry.admits(now)
    ]
    found += [
        Revived("user", user.name, user.role, unknown)
        for user in older.users.values()
        if user.password is not None and not user.disabled
    ]
    found += [
        Revived("api-token", token.id, _describe_token(token), unknown)
        for token in older.api_tokens.values()
        if _is_valid(token, older, now)
    ]
    return found


def revived(
    older: Credentials, newer: Credentials, now: datetime, *, reissued: Collection[str]
) -> list[Revived]:
    """The credentials that are valid in `older`, the restored state, but not in `newer`.

    `reissued` are the folded names of ICEs that got a new token after the restore: those are meant to be
    valid.
    """
    found = [
        Revived("ice", entry.name, _describe_ice(entry), reason)
        for name, entry in older.ices.items()
        if entry.admits(now)
        and name not in reissued
        and (reason := _ice_change(entry, newer.ices.get(name)))
    ]
    found += [
        Revived("user", user.name, user.role, reason)
        for name, user in older.users.items()
        if not user.disabled and (reason := _user_change(user, newer.users.get(name)))
    ]
    found += [
        Revived("api-token", token.id, _describe_token(token), "revoked")
        for token in older.api_tokens.values()
        if _is_valid(token, older, now)
        and token.id in newer.api_tokens
        and newer.api_tokens[token.id].revoked
    ]
    return found


def _ice_change(older: IceEntry, newer: IceEntry | None) -> str | None:
    """The change that invalidated `older`; None if there is none."""
    if newer is None:
        return "gone"
    if newer.status is Status.DEREGISTERED:
        return "deregistered"
    if newer.token != older.token:
        return f"its token was replaced (generation {newer.generation})"
    if newer.status is not older.status:
        # The newer entry is bound to a key; the restored one binds to the first key that comes with the token.
        return "registered: its token could be registered again, by anyone who has it"
    return None


def _user_change(older: UserEntry, newer: UserEntry | None) -> str | None:
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


def _is_valid(token: ApiTokenEntry, credentials: Credentials, now: datetime) -> bool:
    owner = credentials.users.get(token.user)
    expired = token.expires is not None and now >= token.expires
    return not (token.revoked or expired or owner is None or owner.disabled)


def _describe_ice(entry: IceEntry) -> str:
    return f"{entry.status}, generation {entry.generation}"


def _describe_token(token: ApiTokenEntry) -> str:
    return f"of {token.user}: {token.label}"
