"""Finds credentials, schedules and webhooks that were ended after a backup and that restoring it revives. Pure.

A backup lacks the revocations made after it. If the newer database exists, the two are compared; without it,
every valid credential of the older one is suspect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from gateway.core.ice import Status
from gateway.core.labels import Labels, labels_text
from gateway.core.pause import Pause, standing
from gateway.core.webhook import origin

_UNKNOWN: Final = "not known"


@dataclass(frozen=True, slots=True)
class IceCredential:
    """The columns of an ICE that decide on its admission and its work; `token` is the hash."""

    name: str
    status: Status
    generation: int
    token: str
    expires: datetime | None
    pause: Pause | None = None

    def admits(self, now: datetime) -> bool:
        """Whether its token is valid at `now`."""
        if self.status is Status.PROVISIONED:
            return self.expires is None or now < self.expires
        return self.status is Status.REGISTERED


@dataclass(frozen=True, slots=True)
class UserCredential:
    """The part of a user that decides what they may do; `password` is the hash.

    A user of origin `sso` logs in as `subject` of `issuer`, and never by password.
    """

    name: str
    role: str
    password: str | None
    disabled: bool
    issuer: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class TokenCredential:
    """The part of an API token that decides whether it is valid."""

    id: str
    user: str
    label: str
    expires: datetime | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class EnrolmentCredential:
    """The part of an enrolment key that decides how many ICEs it may make."""

    id: str
    name: str
    expires: datetime
    revoked: bool
    uses: int
    max_uses: int


@dataclass(frozen=True, slots=True)
class ScheduleStanding:
    """The part of a schedule that decides whether it requests operations of its `target`, an ICE or a pool."""

    id: str
    name: str
    target: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class PoolStanding:
    """The part of a pool that decides which ICEs get its operations."""

    name: str
    labels: Labels
    ice_type: str | None


@dataclass(frozen=True, slots=True)
class WebhookStanding:
    """The part of a webhook that decides who gets the events of this gateway."""

    id: str
    name: str
    url: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials of a database, its schedules, pools and webhooks: ICEs, users and pools by folded name, others by id."""

    ices: dict[str, IceCredential]
    users: dict[str, UserCredential]
    api_tokens: dict[str, TokenCredential]
    enrolment_keys: dict[str, EnrolmentCredential] = field(default_factory=dict)
    schedules: dict[str, ScheduleStanding] = field(default_factory=dict)
    pools: dict[str, PoolStanding] = field(default_factory=dict)
    webhooks: dict[str, WebhookStanding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Revived:
    """A credential that is valid again: `what` is ice, user, api-token, enrolment-key, schedule, pool or webhook.

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
    return [
        *_ices(older, newer, now, reissued),
        *_users(older, newer),
        *_api_tokens(older, newer, now),
        *_enrolment_keys(older, newer, now),
        *_schedules(older, newer),
        *_pools(older, newer),
        *_webhooks(older, newer),
    ]


def _ices(
    older: Credentials, newer: Credentials | None, now: datetime, reissued: Collection[str]
) -> Iterator[Revived]:
    for name, ice in older.ices.items():
        if ice.admits(now) and name not in reissued:
            since = _ice_change(ice, newer.ices.get(name), now) if newer else _UNKNOWN
            if since:
                yield Revived("ice", ice.name, f"{ice.status}, generation {ice.generation}", since)


def _users(older: Credentials, newer: Credentials | None) -> Iterator[Revived]:
    for name, user in older.users.items():
        since = _user_change(user, newer.users.get(name)) if newer else _unknown(user)
        if since and not user.disabled:
            yield Revived("user", user.name, user.role, since)


def _api_tokens(older: Credentials, newer: Credentials | None, now: datetime) -> Iterator[Revived]:
    for token in older.api_tokens.values():
        owner = older.users.get(token.user)
        expired = token.expires is not None and now >= token.expires
        if token.revoked or expired or owner is None or owner.disabled:
            continue
        current = newer.api_tokens.get(token.id) if newer else None
        if newer is None or (current and current.revoked):
            since = "revoked" if newer else _UNKNOWN
            yield Revived("api-token", token.id, f"of {token.user}: {token.label}", since)


def _enrolment_keys(
    older: Credentials, newer: Credentials | None, now: datetime
) -> Iterator[Revived]:
    for key in older.enrolment_keys.values():
        if key.revoked or now >= key.expires or key.uses >= key.max_uses:
            continue
        since = _key_change(key, newer.enrolment_keys.get(key.id)) if newer else _UNKNOWN
        if since:
            uses = key.max_uses - key.uses
            left = f"{key.name}: {uses} use{'' if uses == 1 else 's'} left"
            yield Revived("enrolment-key", key.id, left, since)


def _schedules(older: Credentials, newer: Credentials | None) -> Iterator[Revived]:
    for schedule in older.schedules.values():
        if not schedule.enabled:
            continue
        since = _schedule_change(newer.schedules.get(schedule.id)) if newer else _UNKNOWN
        if since:
            yield Revived("schedule", schedule.id, f"of {schedule.target}: {schedule.name}", since)


def _pools(older: Credentials, newer: Credentials | None) -> Iterator[Revived]:
    """The pools that are others now; without `newer` none: only what uses them is a credential."""
    for name, pool in older.pools.items() if newer else ():
        current = newer.pools.get(name) if newer else None
        if current != pool:
            labels = labels_text(f"{key}={value}" for key, value in pool.labels.items())
            now = labels if pool.ice_type is None else f"{labels} ({pool.ice_type})"
            since = "deleted" if current is None else "changed: it had other ICEs"
            yield Revived("pool", pool.name, now, since)


def _webhooks(older: Credentials, newer: Credentials | None) -> Iterator[Revived]:
    for webhook in older.webhooks.values():
        if not webhook.enabled:
            continue
        since = _webhook_change(webhook, newer.webhooks.get(webhook.id)) if newer else _UNKNOWN
        if since:
            yield Revived("webhook", webhook.id, f"to {origin(webhook.url)}: {webhook.name}", since)


def _webhook_change(older: WebhookStanding, newer: WebhookStanding | None) -> str | None:
    if newer is None:
        return "deleted"
    if not newer.enabled:
        return "disabled"
    return None if newer.url == older.url else "given another URL"


def _schedule_change(newer: ScheduleStanding | None) -> str | None:
    if newer is None:
        return "deleted"
    return None if newer.enabled else "disabled"


def _ice_change(older: IceCredential, newer: IceCredential | None, now: datetime) -> str | None:
    """The change that invalidated `older`, or paused the ICE; None if there is none."""
    if newer is None:
        return "gone"
    if newer.status is Status.DEREGISTERED:
        return "deregistered"
    if newer.token != older.token:
        return f"its token was replaced (generation {newer.generation})"
    if newer.status is not older.status:
        # The newer row is bound to a key; the restored one binds to the first key that comes with the token.
        return "registered: its token could be registered again, by anyone who has it"
    pause = standing(newer.pause, now)
    if pause is not None and standing(older.pause, now) is None:
        return f"paused by {pause.by}: it would be sent work again"
    return None


def _key_change(older: EnrolmentCredential, newer: EnrolmentCredential | None) -> str | None:
    if newer is None:
        return None
    if newer.revoked:
        return "revoked"
    more = newer.uses - older.uses
    return f"used {more} more time{'' if more == 1 else 's'}" if more > 0 else None


def _unknown(user: UserCredential) -> str | None:
    return _UNKNOWN if user.password or user.subject else None


def _user_change(older: UserCredential, newer: UserCredential | None) -> str | None:
    if newer is None:
        return None
    if newer.disabled:
        return "disabled"
    reasons = []
    if newer.role != older.role:
        reasons.append(f"made {newer.role}")
    if older.subject is not None:
        if newer.subject is None:
            reasons.append("made local")
        elif (newer.issuer, newer.subject) != (older.issuer, older.subject):
            reasons.append("linked to another subject")
    elif older.password is not None and newer.subject is not None:
        reasons.append("linked to single sign-on, without a password")
    elif older.password is not None and newer.password != older.password:
        reasons.append("given another password")
    return " and ".join(reasons) or None
