"""The page of one ICE: its facts, session, operations, and a timeline that shows why it is offline.

Tested in tests/unit/admin/pages/test_ice.py, tests/browser/test_table.py and
tests/gateway/admin/test_operation_pages.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from aiohttp import web

from client.protocol import CLOSINGS, REFUSALS, CloseCode, RefusalCode
from gateway.admin.access import route
from gateway.admin.api.requests import MAX_NUMBER, Number, Query, find_ice
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import form_fields, gateway_url, is_fragment, notice, render
from gateway.admin.pages.event_text import actor_text, copies_text, timeline_text
from gateway.admin.pages.ices import CHANGED, LABELS, Row, form_error, table_row
from gateway.admin.pages.operations import operations_of_ice
from gateway.admin.pages.pausing import pause_of
from gateway.core.attention import Attention
from gateway.core.audit_event import AuditAction, LogEntry, Via
from gateway.core.ice import Action, Status
from gateway.core.labels import MAX_LABELS, LabelChanges, labels_of
from gateway.core.problems import Problem, invalid
from gateway.core.roles import Need
from gateway.core.start_commands import start_commands
from gateway.store.events import EventFilter, Events
from gateway.store.ice_listing import Listed
from gateway.store.sessions import ConnectionEvent, events_of

_EVENTS: Final = 200
_PATIENCE: Final = timedelta(seconds=60)
"""After the time at which an ICE was told to come back, in which it may try to."""
_REMEDIES: Final[dict[str, tuple[str, Action | None]]] = {
    RefusalCode.KEY_MISMATCH: (
        "Another machine, or this one with a new key, tries to use its token.",
        Action.REREGISTER,
    ),
    RefusalCode.DEREGISTERED: (
        "It tries to connect although it is deregistered.",
        Action.REREGISTER,
    ),
    RefusalCode.TOKEN_REPLACED: ("It still uses an older token: start it with the newest.", None),
    RefusalCode.TOKEN_EXPIRED: ("Its token was not used in time.", Action.REPROVISION),
    RefusalCode.TOKEN_INVALID: ("Its token is not the one in the table.", None),
    RefusalCode.PROOF_INVALID: (
        "Its proof is invalid: compare its gateway URL with public_url.",
        None,
    ),
    RefusalCode.USE_DPOP_NONCE: (
        "Its clock differs from the gateway's; it is admitted anyway.",
        None,
    ),
    RefusalCode.OVERLOADED: (
        "The gateway is full: ice.max_connections, or its file handles.",
        None,
    ),
}
_ENDINGS: Final = {
    1000: "The ICE closed the connection.",
    1001: "The ICE closed the connection, because it was stopped.",
    1005: "The ICE closed the connection and gave no reason.",
    1006: "The connection was lost.",
}
"""Close codes that are not the gateway's (RFC 6455 section 7.4.1), in words."""
_NEEDS: Final[dict[Attention, tuple[str, Action | None]]] = {
    Attention.REFUSED: (
        "One of its tokens was refused within the last 24 hours: the timeline says why.",
        None,
    ),
    Attention.TOKEN_EXPIRED: ("Its token was not used in time.", Action.REPROVISION),
    Attention.OWNER_DISABLED: (
        "Its user is disabled: deregister it, or give it to another user with a new token.",
        Action.DEREGISTER,
    ),
    Attention.OUTDATED: (
        "Its version is below the recommended one: install a newer client on its machine.",
        None,
    ),
}
"""Why an ICE needs attention, and the action that helps, if there is one."""
_MAX_FIELDS: Final = 4 * MAX_LABELS
"""Fields of the form for labels and note, which has up to three for each label."""


@dataclass(frozen=True, slots=True)
class TimelineItem:
    """One line of the timeline: an audit event, or something that happened to a connection."""

    at: datetime
    kind: str
    text: str
    who: str
    count: int = 1
    first: datetime | None = None


class ReplacedQuery(Query):
    """The query of the dialog with a token: the token's generation."""

    generation: Number = 0


def routes() -> list[web.RouteDef]:
    """The routes of an ICE's page."""
    description = "/ices/{ice_name}/description"
    return [
        route("GET", "/ices/{ice_name}", page, need=Need.CALLER, finds=find_ice),
        route("GET", "/ices/{ice_name}/replaced", replaced, need=Need.ACT, finds=find_ice),
        route("GET", description, ask_description, need=Need.ACT, finds=find_ice),
        route("POST", description, describe, need=Need.ACT, finds=find_ice),
    ]


async def page(request: web.Request, listed: Listed) -> web.StreamResponse:
    """The page of an ICE, or only its live part if htmx asks for that."""
    caller, admin = request[CALLER], admin_context(request)
    row = table_row(listed, acts=caller.grants.acts)
    connection_events = await events_of(admin.engine.fetch, listed.ice.ice_name)
    timeline = [_connection_event(item) for item in connection_events]
    if caller.grants.reads_events:
        timeline += map(_event, await admin.events.last_of(listed.ice.ice_name, _EVENTS))
    reason, remedy = why_offline(row, connection_events, admin.clock())
    remedy = remedy if remedy in row.actions else None
    reasons = listed.attention(admin.clock())
    needs = _NEEDS
    if Attention.DUPLICATE in reasons:
        copies = await _copies(admin.events, listed.ice.ice_name)
        needs = needs | {Attention.DUPLICATE: (copies, Action.REREGISTER)}
    attention = [
        (sentence, action if action in row.actions and action != remedy else None)
        for sentence, action in map(needs.__getitem__, reasons)
    ]
    helpful = {remedy, *(action for _, action in attention)}
    waits = listed.ice.status is Status.PROVISIONED
    dead = listed.ice.status is Status.DEREGISTERED or listed.ice.expired(admin.clock())
    context = {
        "title": listed.ice.ice_name,
        "row": row,
        "inactive": listed.is_inactive(admin.clock()),
        "timeline": sorted(timeline, key=lambda item: item.at, reverse=True),
        "reason": reason,
        "remedy": remedy,
        "attention": attention,
        "actions": [action for action in row.actions if action not in helpful],
        "commands": []
        if dead
        else start_commands(gateway_url(request), listed.ice.ice_name, with_token=waits),
        "labels": LABELS,
        **pause_of(request, listed),
        **await operations_of_ice(request, listed),
    }
    return render(request, "ice_live.html" if is_fragment(request) else "ice.html", context)


async def _copies(events: Events, ice_name: str) -> str:
    """Which two copies of an ICE run, and what to do."""
    about = EventFilter(ice_name=ice_name, action=AuditAction.DUPLICATE)
    where = [f", {copies_text(one.event)}" for one in await events.before(MAX_NUMBER, 1, about)]
    return (
        f"Two copies of it run{''.join(where)}: a state folder or an image was copied. Stop one copy, and"
        " provision a new name for it. If you do not know it, reregister, and give the new token to the other."
    )


async def replaced(request: web.Request, listed: Listed) -> web.StreamResponse:
    """A warning for the dialog that shows a token, once that token was replaced."""
    query = ReplacedQuery.of(request)
    context = {"replaced": listed.ice.generation != query.generation}
    return render(request, "token_replaced.html", context)


async def ask_description(request: web.Request, listed: Listed) -> web.StreamResponse:
    """The form for labels and note."""
    context = {"ice": listed.ice, "labels": listed.labels, "note": listed.note}
    return render(request, "description.html", context)


async def describe(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Save labels and note; what the person did not change stays as it is by now."""
    fields = await form_fields(request, max_fields=_MAX_FIELDS)
    changes, note = _description(fields)
    if isinstance(changes, Problem):
        refused: Problem | None = changes
    else:
        bulk = admin_context(request).services.bulk
        caller = actor(request, Via.PAGE)
        refused = await bulk.label_one(caller, listed.ice.ice_name, changes, note)
    if refused is not None:
        elements = {"note": "note", "labels": "new-labels"}
        return form_error(request, refused, elements, "#dialog-fault")
    return notice(request, "Saved", f"Labels and note of {listed.ice.ice_name}.", changed=CHANGED)


def _description(fields: list[tuple[str, str]]) -> tuple[LabelChanges | Problem, str | None]:
    """The changes that the form asks for, and the note if it was changed."""
    given = dict(fields)
    added = labels_of(given.get("labels", ""))
    if isinstance(added, str):
        return invalid("labels", added), None
    edited = {
        name.removeprefix("value."): value.strip()
        for name, value in fields
        if name.startswith("value.") and value != given.get(f"was.{name.removeprefix('value.')}")
    }
    removed = dict.fromkeys(value for name, value in fields if name == "remove")
    note = given.get("note", "").replace("\r\n", "\n")
    before = given.get("was_note", "").replace("\r\n", "\n")
    return edited | removed | added, None if note == before else note


def why_offline(
    row: Row, connection_events: list[ConnectionEvent], now: datetime
) -> tuple[str | None, str | None]:
    """Why the ICE is not connected, and the action that helps, if there is one.

    For a connected ICE: why another attempt has been refused since it connected.
    """
    ice, connection = row.ice, row.listed.connection
    if connection is not None:
        refused = next((item for item in connection_events if item.kind == "refused"), None)
        if refused is None or refused.at < connection.since:
            return None, None
        return f"Another attempt was refused since. {_refusal(refused)}", None
    latest = next((item for item in connection_events if item.kind != "admitted"), None)
    closed = next((item for item in connection_events if item.kind == "closed"), None)
    if ice.status is Status.DEREGISTERED:
        return "It was deregistered: it is no longer admitted.", Action.REREGISTER
    if ice.expired(now):
        return "Its token expired before it registered.", Action.REPROVISION
    if latest is not None and latest.at >= ice.provisionedon and latest.code in _REMEDIES:
        return _refusal(latest), _REMEDIES[latest.code][1]
    if ice.status is Status.PROVISIONED:
        return (
            "It has not been started with its newest token yet. If that is lost, reprovision it.",
            Action.REPROVISION,
        )
    if closed is not None and closed.code is not None:
        outlook = _comes_back(closed)
        if outlook:
            due = closed.at + timedelta(seconds=closed.retry_after or 0) + _PATIENCE
            outlook += ", and it has not." if now > due else "."
        else:
            outlook = "It has not tried to reconnect: is it running?"
        return f"{_ending(closed)} {outlook}", None
    return "It has not tried to connect: is it running?", None


def _refusal(refused: ConnectionEvent) -> str:
    code = refused.code or ""
    known = REFUSALS.get(code)
    sentence = f"{known.summary}. " if known else ""
    if code in _REMEDIES:
        sentence = f"{_REMEDIES[code][0]} "
    return f"{sentence}Last refused: {code}, from {refused.address}."


def _ending(closed: ConnectionEvent) -> str:
    """How a connection ended, in words."""
    code = int(closed.code or 0)
    rule = CLOSINGS.get(code)
    return rule.sentence if rule else _ENDINGS.get(code, "The ICE closed the connection.")


def _comes_back(closed: ConnectionEvent) -> str:
    """What the ICE was told about its return, without a full stop."""
    if closed.code != str(CloseCode.RESTART.value):
        return ""
    if closed.retry_after is None:
        return "It was told to come back"
    return f"It was told to come back in {math.ceil(closed.retry_after)} s"


def _event(entry: LogEntry) -> TimelineItem:
    event = entry.event
    return TimelineItem(event.at, "event", timeline_text(event), actor_text(event.actor))


def _connection_event(item: ConnectionEvent) -> TimelineItem:
    if item.kind == "admitted":
        text = "connected"
    elif item.kind == "refused":
        known = REFUSALS.get(item.code or "")
        text = f"refused: {item.code}" + (f": {known.summary}" if known else "")
    else:
        outlook = _comes_back(item)
        text = f"connection closed: {item.code}: {_ending(item)}" + (outlook and f" {outlook}.")
    return TimelineItem(item.at, item.kind, text, item.address, item.count, item.first)
