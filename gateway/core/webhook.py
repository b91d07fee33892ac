"""The rules of a webhook: what one may be, which messages it gets, and when a failed one is sent again. Pure.

Source: docs/webhooks.md and Standard Webhooks 1.0.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.core.addresses import Network, is_loopback, may_be_dialled, parse_address
from gateway.core.audit_event import AuditAction
from gateway.core.ice import Action
from gateway.core.operation import NotValid

MAX_WEBHOOKS: Final = 50
"""Each sends one message at a time, so this also bounds the connections to receivers."""
MAX_NAME: Final = 128
MAX_URL: Final = 2_000
ALL: Final = "*"
"""In `events`: every action and every notice."""
ANSWER_TIME: Final = 10.0
"""Seconds in which a receiver has to answer."""
GIVE_UP: Final = timedelta(hours=72)
"""A message that was not taken for this long is set aside."""
_FIRST_WAIT: Final = 5.0
_LONGEST_WAIT: Final = 3600.0
"""Seconds between two attempts."""
_DOUBLINGS: Final = 10
"""Doublings after which the longest wait is reached."""


class Notice(enum.StrEnum):
    """What a webhook may get besides the actions of the audit log."""

    AWAY = "ice.away"
    """A registered ICE has not been connected for `notices.away_after`."""
    BACK = "ice.back"
    """Such an ICE is connected again."""
    FINISHED = "operation.finished"
    """An operation has ended, in whatever state."""


GAP: Final = "gap"
"""The type of a message that stands for what could not be sent: events that were pruned, or too many notices."""
TEST: Final = "test"
"""The type of a message that an admin asked for."""
EVENTS: Final = frozenset({ALL, *Action, *AuditAction, *Notice})
"""What the `events` of a webhook may name."""


class Failing(msgspec.Struct, frozen=True):
    """A message that was not taken yet: `attempts` since the time `since`, the last one with `error`.

    `message` is its id; `retry` is when it is sent again.
    """

    message: str
    since: datetime
    attempts: int
    retry: datetime
    error: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """A row of `webhooks`.

    `position` is the number of the last event that was sent to it or that it does not want. `secret` is sealed
    (`core.webhook_secret`). It gets no notices of what happened before `enabledon`.
    """

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    enabled: bool
    enabledon: datetime
    secret: str
    position: int
    failing: Failing | None
    createdby: str
    createdon: datetime

    def wants(self, event_type: str) -> bool:
        """Whether it gets messages of this type, which is an action or a notice."""
        return event_type in self.events or ALL in self.events

    @property
    def follows_log(self) -> bool:
        """Whether it wants any event of the audit log."""
        return any(name not in _NOTICES for name in self.events)

    @property
    def takes_notices(self) -> bool:
        """Whether it wants any notice."""
        return any(self.wants(notice) for notice in Notice)


_NOTICES: Final = frozenset(map(str, Notice))


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send; once it is taken, the webhook is at `position`, and the notice of this number is done."""

    id: str
    type: str
    body: bytes
    position: int
    notice: int | None = None


@dataclass(frozen=True, slots=True)
class Next:
    """What a webhook is sent next: the message, None for none; `position` is the last event that is done before it."""

    message: Message | None
    position: int


def body_of(event_type: str, at: str, data: Any) -> bytes:
    """The body of a message (Standard Webhooks, Event payload)."""
    return msgspec.json.encode({"type": event_type, "timestamp": at, "data": data})


def check_events(events: Sequence[str]) -> tuple[str, ...]:
    """The events of a webhook, each once. Raises `NotValid`."""
    unknown = [name for name in events if name not in EVENTS]
    if unknown:
        raise NotValid(
            "events", f"{unknown[0]} is no action of the audit log, no notice, and not *"
        )
    if not events:
        raise NotValid("events", "name at least one, or * for all")
    return tuple(dict.fromkeys(events))


def check_name(name: str) -> str:
    """The name of a webhook. Raises `NotValid`."""
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise NotValid("name", f"needs 1 to {MAX_NAME} printable characters")
    return name


def check_url(url: str, allowed: Sequence[Network]) -> str:
    """The URL of a webhook. Raises `NotValid`; what its host name resolves to is checked when it is dialled."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise NotValid("url", "is not a URL") from error
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise NotValid("url", f"needs at most {MAX_URL} characters of printable ASCII, no space")
    if parts.scheme not in ("https", "http") or not host or port == 0:
        raise NotValid("url", "needs https://host[:port][/path]")
    if "@" in parts.netloc or "#" in url:
        raise NotValid("url", "may hold no user, password or fragment")
    if parts.scheme == "http" and not is_loopback(host):
        raise NotValid("url", "needs https: plain http is for this machine itself (loopback) only")
    fault = target_fault(host, allowed)
    if fault is not None:
        raise NotValid("url", fault)
    return url


def target_fault(
    host: str, allowed: Sequence[Network], *, loopback_only: bool = False
) -> str | None:
    """Why the gateway does not connect to this address; None if it may, or if `host` is a name."""
    address = parse_address(host)
    if address is None:
        if ":" in host:  # an IPv6 address with a zone
            return "may not name an address with a zone"
        return None
    if loopback_only and not address.is_loopback:
        return f"{address} is not this machine: plain http is for loopback only"
    if not may_be_dialled(address, allowed):
        return f"{address} is not a public address, and webhooks.allow names no network of it"
    return None


def origin(url: str) -> str:
    """A URL without its path and query, which may hold a credential of the receiver."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def wait_after(attempts: int) -> float:
    """Seconds from the `attempts`th failed attempt to the next one: 5, 10, 20 … up to an hour."""
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempts - 1, _DOUBLINGS))


def failed(before: Failing | None, message_id: str, now: datetime, error: str) -> Failing:
    """The state of a message after an attempt that failed with `error`; `before` is the state before it."""
    if before is None or before.message != message_id:
        since, attempts = now, 1
    else:
        since, attempts = before.since, before.attempts + 1
    retry = now + timedelta(seconds=wait_after(attempts))
    return Failing(message_id, since, attempts, retry, error)


def seconds_left(failing: Failing, now: datetime) -> float:
    """Seconds until a message is sent again; 0 if it is due.

    A clock that was set back does not make the wait longer than it was.
    """
    left = (failing.retry - now).total_seconds()
    return 0.0 if left <= 0 or left > wait_after(failing.attempts) else left


def gives_up(failing: Failing, now: datetime) -> bool:
    """Whether a message has failed for so long that it is set aside."""
    return now - failing.since >= GIVE_UP
