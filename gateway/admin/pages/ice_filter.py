"""The filter of the table of ICEs as the page's address has it, and the counts above the table.

Tested in tests/gateway/admin/test_ice_list.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal, Self

import msgspec
from aiohttp import web

from gateway.admin.api.ices import IceFilters
from gateway.admin.api.requests import LongText, Text
from gateway.core.accounts import fold_user
from gateway.core.attention import Attention
from gateway.core.ice import Status
from gateway.core.labels import labels_of, labels_text
from gateway.core.problems import invalid
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import Counts
from gateway.store.ice_order import Order, SortKey
from gateway.web.responses import RequestRefused

ATTENTION: Final = {reason: reason.replace("-", " ").capitalize() for reason in Attention} | {
    Attention.OWNER_DISABLED: "User disabled"
}
"""Why an ICE needs attention, in words."""
ANY: Final = "any"
"""Any of these reasons."""
UNSEEN: Final = {
    "1h": ("1 hour", timedelta(hours=1)),
    "1d": ("1 day", timedelta(days=1)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
}
"""For how long an ICE was not seen, as the filter offers it."""


class Presence(enum.StrEnum):
    """Whether an ICE is connected."""

    CONNECTED = "connected"
    OFFLINE = "offline"
    """It could be connected: it is registered, unless the filter names another status."""
    INACTIVE = "inactive"
    """It is offline, and was not seen for too long."""


class TableQuery(IceFilters):
    """The query of the page's address: filters, order and page of the table.

    `condition` is why an ICE needs attention, or `ANY`; `labels` is the text of the filter's field; `new` is an ICE
    that is shown whatever the filter.
    """

    user: Text | None = None
    presence: Presence | None = None
    condition: Text | None = None
    unseen: Literal["1h", "1d", "7d", "30d"] | None = None
    labels: LongText | None = None
    sort: str = "name"
    desc: bool = False
    page: int = 1
    new: Text | None = None

    @classmethod
    def of(cls, request: web.Request) -> Self:
        """The query of a request, as the fields of the filter show it. Raises `RequestRefused`."""
        query = super().of(request)
        if query.connected is not None:
            presence = Presence.CONNECTED if query.connected else Presence.OFFLINE
            query = msgspec.structs.replace(query, presence=presence, connected=None)
        if query.inactive:
            query = msgspec.structs.replace(query, presence=Presence.INACTIVE, inactive=None)
        if query.attention is not None:
            query = msgspec.structs.replace(query, condition=query.attention.value, attention=None)
        if query.condition not in (None, ANY, *Attention):
            raise RequestRefused(invalid("condition", f"choose {ANY}, {', '.join(Attention)}"))
        if query.labels is not None:
            query = msgspec.structs.replace(query, label=_pairs(query.labels), labels=None)
        return query

    def conditions(self, now: datetime) -> IceFilter:
        """The filter at `now` without its pool; the page's field names the owner `user`."""
        where = super().conditions(now)
        if self.user is not None:
            where = replace(where, provisionedto=fold_user(self.user))
        if self.presence is Presence.CONNECTED:
            where = replace(where, connected=True)
        elif self.presence is Presence.OFFLINE:
            where = replace(where, connected=False, status=self.status or Status.REGISTERED)
        elif self.presence is Presence.INACTIVE:
            where = replace(where, inactive=True)
        if self.condition == ANY:
            where = replace(where, needs_attention=True)
        elif self.condition is not None:
            where = replace(where, attention=Attention(self.condition))
        if self.unseen is not None:
            before = now - UNSEEN[self.unseen][1]
            where = replace(where, lastseen_before=min(where.lastseen_before or before, before))
        return where

    def order(self) -> Order:
        """The order; by name if the address names an unknown one."""
        by = SortKey(self.sort) if self.sort in set(SortKey) else SortKey.NAME
        return Order(by, self.desc)

    @property
    def is_filter(self) -> bool:
        """Whether it may leave ICEs out."""
        return bool(self.address(sort="name", desc=False, page=1, new=None))

    @property
    def labels_text(self) -> str:
        """The labels as the filter's field shows them."""
        return labels_text(self.label)

    def with_label(self, pair: str) -> str:
        """The address of the ICEs that also have this label."""
        labels = self.label if pair in self.label else [*self.label, pair]
        return self.address(label=labels, page=1)


def _pairs(text: str) -> list[str]:
    """The labels of the filter's field. Raises `RequestRefused`."""
    labels = labels_of(text)
    if isinstance(labels, str):
        raise RequestRefused(invalid("label", labels))
    return [f"{key}={value}" for key, value in labels.items()]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many ICEs there are of one kind, and the address that lists them."""

    name: str
    number: int
    address: str
    mark: str
    shape: str = "shape"


def tallies(counts: Counts, needing: int) -> list[Tally]:
    """The counts above the table; `needing` ICEs need attention, some for several reasons."""
    reasons = {
        reason: Tally(ATTENTION[reason], number, f"condition={reason}", "attention")
        for reason, number in counts.attention.items()
    }
    waiting, gone = Status.PROVISIONED, Status.DEREGISTERED
    inactive = Tally("Inactive", counts.inactive, "presence=inactive", "offline", "ring")
    paused = Tally("Paused", counts.paused, "paused=true", "paused", "bars")
    return [
        Tally("Connected", counts.connected, "presence=connected", "online", "dot"),
        Tally("Offline", counts.offline, "presence=offline", "offline", "ring"),
        *([inactive] if inactive.number else []),
        *([paused] if paused.number else []),
        Tally(
            "Waiting for first start",
            counts.status[waiting],
            f"status={waiting}",
            f"status {waiting}",
        ),
        reasons.pop(Attention.TOKEN_EXPIRED),
        Tally("Deregistered", counts.status[gone], f"status={gone}", f"status {gone}"),
        Tally("Needs attention", needing, f"condition={ANY}", "attention"),
        *(tally for tally in reasons.values() if tally.number),
    ]
