"""What a restored table would admit that was taken back after its copy was made. Pure.

A revocation made after the backup is not in it: what it ended would be good again. With the newer
database at hand the two are compared; without it all that the older one would admit is suspect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gateway.core.ice import Status


@dataclass(frozen=True, slots=True)
class Entry:
    """What of an ICE's entry decides whom it admits; `token` is the hash."""

    name: str
    status: Status
    generation: int
    token: str
    expires: datetime | None

    def admits(self, now: datetime) -> bool:
        """Whether its token is good for anything."""
        if self.status is Status.PROVISIONED:
            return self.expires is None or now < self.expires
        return self.status is Status.REGISTERED


@dataclass(frozen=True, slots=True)
class Account:
    """What of a user decides what they may do; `password` is the hash."""

    name: str
    role: str
    password: str | None
    disabled: bool


@dataclass(frozen=True, slots=True)
class Bearer:
    """What of an API token decides whether it is good."""

    id: str
    user: str
    label: str
    expires: datetime | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Who is good for what in a database; by folded name, or by id."""

    entries: dict[str, Entry]
    accounts: dict[str, Account]
    bearers: dict[str, Bearer]


@dataclass(frozen=True, slots=True)
class Revived:
    """Something that is good again: `what` is ice, user or api-token; `now` says what as, `since` why not."""

    what: str
    name: str
    now: str
    since: str


def all_good(older: Standing, now: datetime) -> list[Revived]:
    """Everything that is good in `older`, since nothing is known of what came after it."""
    unknown = "not known"
    found = [
        Revived("ice", entry.name, _entry(entry), unknown)
        for entry in older.entries.values()
        if entry.admits(now)
    ]
    found += [
        Revived("user", account.name, account.role, unknown)
        for account in older.accounts.values()
        if account.password is not None and not account.disabled
    ]
    found += [
        Revived("api-token", bearer.id, _bearer(bearer), unknown)
        for bearer in older.bearers.values()
        if _good(bearer, older, now)
    ]
    return found


def revived(
    older: Standing, newer: Standing, now: datetime, *, anew: Collection[str]
) -> list[Revived]:
    """What is good in `older` and is not in `newer`, its later life.

    `anew` are the folded names of the ICEs to which an admin has given a token since the restore: they
    are meant to be good.
    """
    found = [
        Revived("ice", entry.name, _entry(entry), reason)
        for name, entry in older.entries.items()
        if entry.admits(now)
        and name not in anew
        and (reason := _ended(entry, newer.entries.get(name)))
    ]
    found += [
        Revived("user", account.name, account.role, reason)
        for name, account in older.accounts.items()
        if not account.disabled and (reason := _changed(account, newer.accounts.get(name)))
    ]
    found += [
        Revived("api-token", bearer.id, _bearer(bearer), "revoked")
        for bearer in older.bearers.values()
        if _good(bearer, older, now)
        and bearer.id in newer.bearers
        and newer.bearers[bearer.id].revoked
    ]
    return found


def _ended(older: Entry, newer: Entry | None) -> str | None:
    """What became of an entry, if that took something back."""
    if newer is None:
        return "gone"
    if newer.status is Status.DEREGISTERED:
        return "deregistered"
    if newer.token != older.token:
        return f"its token was replaced (generation {newer.generation})"
    if newer.status is not older.status:
        # Bound to a key then; now whoever comes first with the token binds it to theirs.
        return "registered: its token could be registered again, by whoever has it"
    return None


def _changed(older: Account, newer: Account | None) -> str | None:
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


def _good(bearer: Bearer, among: Standing, now: datetime) -> bool:
    account = among.accounts.get(bearer.user)
    expired = bearer.expires is not None and now >= bearer.expires
    return not (bearer.revoked or expired or account is None or account.disabled)


def _entry(entry: Entry) -> str:
    return f"{entry.status}, generation {entry.generation}"


def _bearer(bearer: Bearer) -> str:
    return f"of {bearer.user}: {bearer.label}"
