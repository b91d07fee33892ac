"""One ICE: its facts, its session, and one timeline that answers 'why is it offline?'."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiohttp import web

from client.protocol import CLOSINGS, REFUSALS, RefusalCode
from gateway.admin.access import route
from gateway.admin.api.requests import find_ice
from gateway.admin.context import CALLER
from gateway.admin.pages.base import is_fragment, parts, render
from gateway.admin.pages.ices import WORDS, Row, row_of
from gateway.admin.pages.operations import operations_of
from gateway.core.audit_event import Entry
from gateway.core.codes import AuditAction
from gateway.core.ice import Action, Status
from gateway.core.roles import Need
from gateway.store.ices import Listed
from gateway.store.sessions import Happening

_EVENTS: Final = 200
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
        "Its proof does not hold: compare its gateway URL with public_url.",
        None,
    ),
    RefusalCode.USE_DPOP_NONCE: (
        "Its clock and the gateway's differ; it is admitted all the same.",
        None,
    ),
    RefusalCode.OVERLOADED: (
        "The gateway has no room: ice.max_connections, or its file handles.",
        None,
    ),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the timeline."""

    at: datetime
    kind: str
    text: str
    who: str
    count: int = 1
    first: datetime | None = None


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    return [route("GET", "/ices/{ice_name}", page, need=Need.CALLER, finds=find_ice)]


async def page(request: web.Request, listed: Listed) -> web.StreamResponse:
    """The page of an ICE, or what is live on it."""
    caller, here = request[CALLER], parts(request)
    row = row_of(listed, acts=caller.grants.acts)
    happenings = await here.happenings.of(listed.ice.ice_name)
    entries = (
        await here.events.last_of(listed.ice.ice_name, _EVENTS)
        if (caller.grants.reads_events)
        else []
    )
    moments = [_event(entry) for entry in entries] + [_happening(item) for item in happenings]
    reason, remedy = why_offline(row, happenings, here.clock())
    context = {
        "title": listed.ice.ice_name,
        "row": row,
        "moments": sorted(moments, key=lambda moment: moment.at, reverse=True),
        "reason": reason,
        "remedy": remedy if remedy in row.actions else None,
        "words": WORDS,
        **await operations_of(request, listed),
    }
    return render(request, "ice_live.html" if is_fragment(request) else "ice.html", context)


def why_offline(
    row: Row, happenings: list[Happening], now: datetime
) -> tuple[str | None, str | None]:
    """The sentence that answers it, and the action that mends it, if one does."""
    ice = row.ice
    if row.listed.connection is not None:
        return None, None
    latest = next((item for item in happenings if item.kind != "admitted"), None)
    closed = next((item for item in happenings if item.kind == "closed"), None)
    if ice.status is Status.DEREGISTERED:
        return "It was deregistered: it is not admitted any more.", Action.REREGISTER
    if ice.expired(now):
        return "Its token has expired before it registered.", Action.REPROVISION
    if latest is not None and latest.at >= ice.provisionedon and latest.code in _REMEDIES:
        sentence, remedy = _REMEDIES[latest.code]
        return f"{sentence} Last refused: {latest.code}, from {latest.address}.", remedy
    if ice.status is Status.PROVISIONED:
        return (
            "It has not been started with its newest token yet. If that is lost, reprovision it.",
            Action.REPROVISION,
        )
    if closed is not None and closed.code is not None:
        rule = CLOSINGS.get(int(closed.code))
        ended = rule.sentence if rule else "The ICE has closed the connection, or it was lost."
        return f"{ended} It has not tried to come back: is it running?", None
    return "It has not tried to connect: is it running?", None


def _event(entry: Entry) -> Moment:
    event = entry.event
    about = f"generation {event.generation}"
    if event.action in (AuditAction.REQUEST_OPERATION, AuditAction.CANCEL_OPERATION):
        about = f"{event.detail['kind']} {event.detail['operation']}"
    return Moment(event.at, "event", f"{event.action} ({about})", event.actor.name)


def _happening(item: Happening) -> Moment:
    if item.kind == "admitted":
        text = "connected"
    elif item.kind == "refused":
        known = REFUSALS.get(item.code or "")
        text = f"refused: {item.code}" + (f": {known.summary}" if known else "")
    else:
        rule = CLOSINGS.get(int(item.code or 0))
        text = f"connection closed: {item.code}" + (f": {rule.sentence}" if rule else "")
    return Moment(item.at, item.kind, text, item.address, item.count, item.first)
