"""The JSON objects that API and commands show; the OpenAPI document describes the same classes.

Tested in tests/gateway/admin/api/test_ices.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from client.protocol import OperationKind
from gateway.core.attention import Attention
from gateway.core.audit_event import LogEntry
from gateway.core.consent import kinds_in_order
from gateway.core.hash_chain import Verdict
from gateway.core.ice import Ice, IceType, Status
from gateway.core.revocation import Drop
from gateway.core.times import to_text, to_text_or_none
from gateway.store.ice_listing import Counts, Listed
from gateway.store.nodes import NodeRecord
from gateway.store.sessions import Connection, ConnectionEvent

S = TypeVar("S", bound=msgspec.Struct)
Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]


class ConnectionDocument(msgspec.Struct, kw_only=True):
    """An ICE's session; `version`, `platform` and `hostname` come from the ICE's hello.

    `accepts` are the kinds that others than its tagged user may send, null for all; before its hello, and in news
    of it, null stands for what is not known yet.
    """

    session: str
    node: str
    since: Time
    address: str
    version: str | None
    platform: str | None
    hostname: str | None
    accepts: list[OperationKind] | None


class LastDocument(msgspec.Struct):
    """What was known of an ICE's newest session; the ICE itself reported all but the address."""

    address: str
    version: str | None
    platform: str | None
    hostname: str | None


class PauseDocument(msgspec.Struct):
    """Who paused an ICE, when, until when (null: until it is resumed), and why."""

    by: str
    at: Time
    until: Time | None
    note: str


class IceDocument(msgspec.Struct, kw_only=True):
    """An ICE; `expireson` is null once it is registered or deregistered.

    `inactive`: it is registered, not connected, and was not seen for `ice.inactive_after`. `attention` says why a person should look at it; `last` stays when the newest session ends.
    """

    ice_name: str
    ice_type: IceType
    provisionedto: str | None
    status: Status
    generation: int
    provisionedon: Time
    registeredon: Time | None
    deregisteredon: Time | None
    expireson: Time | None
    lastseen: Time | None
    inactive: bool
    labels: dict[str, str]
    note: str
    paused: PauseDocument | None
    attention: list[Attention]
    last: LastDocument | None
    connection: ConnectionDocument | None


class IceCounts(msgspec.Struct):
    """How many ICEs match; `offline` are registered and not connected, `inactive` those of them not seen for long."""

    total: int
    status: dict[Status, int]
    connected: int
    offline: int
    inactive: int
    paused: int
    attention: dict[Attention, int]


class PresenceDocument(msgspec.Struct):
    """News of an ICE: its session after it connected or said hello, or null after it disconnected."""

    ice_name: str
    connection: ConnectionDocument | None


class RefusedDocument(msgspec.Struct):
    """News of an ICE with a genuine token that was refused; counted as in `ConnectionEvents`."""

    ice_name: str
    code: str | None
    at: Time
    first: Time
    count: int
    address: str


class ResetDocument(msgspec.Struct):
    """The log does not have the event of the id that was sent: the stream goes on after event `seq`."""

    seq: int


class IcePage(msgspec.Struct):
    """ICEs by name; `next` is the cursor of the next page, null at the end."""

    items: list[IceDocument]
    next: str | None


class Provisioned(msgspec.Struct):
    """A new ICE with its token, which is shown only this once."""

    ice: IceDocument
    token: str


class Renewed(msgspec.Struct):
    """An ICE with its new token, which is shown only this once."""

    ice: IceDocument
    token: str
    dropped: list[Drop]
    unconfirmed: list[str]


class Ended(msgspec.Struct):
    """An ICE whose sessions were ended; `unconfirmed` are nodes that did not confirm in time."""

    ice: IceDocument
    dropped: list[Drop]
    unconfirmed: list[str]


class BulkItem(msgspec.Struct, omit_defaults=True):
    """One ICE of a bulk action, with the HTTP status and code that the single action would have.

    `token` is shown only this once; `generation` is what a dry run found.
    """

    ice_name: str
    status: int
    code: str | None = None
    token: str | None = None
    generation: int | None = None


class BulkAnswer(msgspec.Struct):
    """What a bulk action did."""

    items: list[BulkItem]
    dropped: list[Drop]
    unconfirmed: list[str]


class ConnectionEventDocument(msgspec.Struct):
    """An event of a connection: admitted, refused or closed; repeated refusals are counted together."""

    event: str
    code: str | int | None
    at: Time
    first: Time
    count: int
    address: str


class ConnectionEvents(msgspec.Struct):
    """The last 50 events of an ICE's connections, newest first."""

    items: list[ConnectionEventDocument]


class EventDocument(msgspec.Struct):
    """An event of the audit log."""

    seq: int
    at: Time
    actor: str
    via: str
    address: str
    action: str
    ice_name: str | None
    generation: int | None
    detail: dict[str, Any]


class EventPage(msgspec.Struct):
    """Events, oldest first; `next` is the `after` of the next page, null at the end."""

    items: list[EventDocument]
    next: int | None


class NodeDocument(msgspec.Struct, kw_only=True):
    """A gateway of the database; `lease_left` is in seconds, `seen_seq` the last event that it has acted on."""

    name: str
    state: Literal["serves", "drained", "gone"]
    connected: int
    lease_left: float
    seen_seq: int
    version: str
    since: Time
    url: str


class NodePage(msgspec.Struct):
    """Nodes by name; `next` is the cursor of the next page, null at the end."""

    items: list[NodeDocument]
    next: str | None


class HeadDocument(msgspec.Struct):
    """Number and digest of an event."""

    seq: int
    digest: str


class VerdictDocument(msgspec.Struct):
    """Whether the audit log is as it was written at time `at`: the first fault, what is proven and what is not.

    `head` is the newest event if there is no fault.
    """

    fault: str | None
    proven: str
    unproven: str
    head: HeadDocument | None
    at: Time


class ProblemDocument(msgspec.Struct):
    """A refusal (RFC 9457); programs can rely on `code`, `detail` tells people what to do."""

    status: int
    title: str
    detail: str
    code: str


def described(shape: type[S], item: object, **given: Any) -> S:
    """A document of the values `given` and of the attributes of `item`, its times as text."""
    for name in shape.__struct_fields__:
        if name not in given:
            value = getattr(item, name)
            given[name] = to_text(value) if isinstance(value, datetime) else value
    return shape(**given)


def connection_document(connection: Connection | None) -> ConnectionDocument | None:
    """Describe the open session of an ICE, if it has one."""
    if connection is None:
        return None
    given = connection.accepts
    accepts = None if given is None or given is msgspec.UNSET else kinds_in_order(given)
    fields = {"since": to_text(connection.since), "accepts": accepts}
    return ConnectionDocument(**msgspec.structs.asdict(connection) | fields)


def ice_document(listed: Listed, now: datetime) -> IceDocument:
    """Describe an ICE with its connection."""
    # Not by `described`, which takes twice as long: a listing has thousands.
    ice: Ice = listed.ice
    paused = listed.paused(now)
    return IceDocument(
        ice_name=ice.ice_name,
        ice_type=ice.ice_type,
        provisionedto=ice.provisionedto,
        status=ice.status,
        generation=ice.generation,
        provisionedon=to_text(ice.provisionedon),
        registeredon=to_text_or_none(ice.registeredon),
        deregisteredon=to_text_or_none(ice.deregisteredon),
        expireson=to_text_or_none(ice.expireson),
        lastseen=to_text_or_none(listed.lastseen),
        inactive=listed.is_inactive(now),
        labels=listed.labels,
        note=listed.note,
        paused=None if paused is None else described(PauseDocument, paused),
        attention=listed.attention(now),
        last=None if listed.last is None else described(LastDocument, listed.last),
        connection=connection_document(listed.connection),
    )


def counts_document(counts: Counts) -> IceCounts:
    """Describe how many ICEs there are."""
    return described(IceCounts, counts)


def connection_event_document(connection_event: ConnectionEvent) -> ConnectionEventDocument:
    """Describe an event of a connection; close codes are numbers."""
    kind, code = connection_event.kind, connection_event.code
    number = int(code) if code is not None and kind == "closed" else code
    return described(ConnectionEventDocument, connection_event, event=kind, code=number)


def event_document(entry: LogEntry) -> EventDocument:
    """Describe an event of the audit log with its number."""
    event = entry.event
    return EventDocument(
        entry.seq,
        to_text(event.at),
        event.actor.name,
        event.actor.via,
        event.actor.address,
        event.action,
        event.ice_name,
        event.generation,
        event.detail,
    )


def node_document(node: NodeRecord) -> NodeDocument:
    """Describe a node."""
    return described(NodeDocument, node, lease_left=0.0 if node.gone else node.lease)


def verdict_document(verdict: Verdict, at: datetime) -> VerdictDocument:
    """Describe a verdict."""
    head = None if verdict.head is None else described(HeadDocument, verdict.head)
    return described(VerdictDocument, verdict, head=head, at=to_text(at))
