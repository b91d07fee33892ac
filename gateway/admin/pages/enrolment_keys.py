"""The page of enrolment keys: make, list and revoke what machines enrol with.

Tested in tests/gateway/admin/test_enrolment_pages.py and tests/browser/test_enrolment.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.admin.pages.base import (
    PAGE,
    Page,
    form,
    gateway_url,
    pages_of,
    render,
    render_table,
    toast,
)
from gateway.admin.pages.enrolment import KEY_STATES, PageQuery, key_states
from gateway.admin.pages.ices import LABELS, form_error
from gateway.core.audit_event import Via
from gateway.core.enrolment import ACTOR_PREFIX, ANY_USER, MAX_USES, EnrolmentKey, KeyState
from gateway.core.ice import IceType
from gateway.core.labels import labels_of
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.core.start_commands import KEY_FILE, enrol_commands, silent_enrol_commands
from gateway.services.enrolment_keys import NewKey

CHANGED: Final = "keys-changed"
"""The event on which the page reloads the table."""
LIFETIMES: Final = {f"{days}d": timedelta(days=days) for days in (1, 7, 30, 90)}
_FIELD_IDS: Final = {
    "name": "key_name",
    "name_prefix": "key_prefix",
    "max_uses": "key_uses",
    "expires": "key_expires",
    "labels": "key_labels",
}
"""The element of an invalid field, by the problem's field."""


@dataclass(frozen=True, slots=True)
class Row:
    """A key and its present state."""

    key: EnrolmentKey
    state: KeyState


def routes() -> list[web.RouteDef]:
    """The routes of `/enrolment/keys`."""
    keys, one = "/enrolment/keys", "/enrolment/keys/{id}/revoke"
    return [
        route("GET", keys, page, need=Need.SEE_ALL),
        route("GET", f"{keys}/new", ask, need=Need.ACT),
        route("POST", keys, create, need=Need.ACT),
        route("GET", one, confirm, need=Need.ACT),
        route("POST", one, revoke, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The keys, newest first, or only their table if htmx asks for that."""
    context = admin_context(request)
    total = await context.enrolments.count_keys()
    shown = Page.of(min(PageQuery.of(request).page, pages_of(total)))
    found = await context.enrolments.keys_before(PAGE, None, shown.offset)
    states = await key_states(request, found)
    content = {
        "title": "Enrolment keys",
        "section": "Enrolment",
        "rows": [Row(key, states[key.id]) for key in found],
        "states": KEY_STATES,
        "any_user": ANY_USER,
        "actor_prefix": ACTOR_PREFIX,
        "labels": LABELS,
        "waiting": await context.enrolments.waiting(context.clock()),
        "keys": total,
    }
    return render_table(request, "enrolment_keys", content | shown.context(total))


async def ask(request: web.Request) -> web.StreamResponse:
    """The form of a new key."""
    content = {"lifetimes": LIFETIMES, "max_uses": MAX_USES}
    return render(request, "enrolment_key_new.html", content)


async def create(request: web.Request) -> web.StreamResponse:
    """Make a key and show its secret once; a refusal appears in the form."""
    new = _new_key(await form(request), admin_context(request).clock())
    if isinstance(new, Problem):
        return form_error(request, new, _FIELD_IDS, "#dialog-fault")
    service = admin_context(request).services.enrolment_keys
    made = await service.create_key(actor(request, Via.PAGE), new)
    if isinstance(made, Problem):
        return form_error(request, made, _FIELD_IDS, "#dialog-fault")
    url, names_user = gateway_url(request), made.key.provisionedto == ANY_USER
    content = {
        "key": made.key,
        "token": made.secret.reveal(),
        "filename": KEY_FILE,
        "commands": enrol_commands(url, names_user=names_user),
        "silent": silent_enrol_commands(url, names_user=names_user),
        "names_user": names_user,
    }
    return render(request, "enrolment_key_made.html", content, status=201, trigger={CHANGED: {}})


def _new_key(fields: dict[str, str], now: datetime) -> NewKey | Problem:
    """What the form asks for; the service checks the rest."""
    try:
        ice_type = IceType(fields.get("ice_type", ""))
    except ValueError:
        return invalid("ice_type", "choose Normal or CI/CD")
    lifetime = LIFETIMES.get(fields.get("expires_in", ""))
    if lifetime is None:
        return invalid("expires", f"choose {', '.join(LIFETIMES)}")
    uses = fields.get("max_uses", "")
    if not re.fullmatch("[0-9]{1,9}", uses, re.ASCII):
        return invalid("max_uses", f"must be 1 to {MAX_USES:,}")
    labels = labels_of(fields.get("labels", ""))
    if isinstance(labels, str):
        return invalid("labels", labels)
    user = fields.get("provisionedto", "").strip() or None
    return NewKey(
        fields.get("name", "").strip(),
        ice_type,
        fields.get("name_prefix", "").strip(),
        now + lifetime,
        user if ice_type is IceType.NORMAL else None,
        int(uses),
        fields.get("approval") == "true",
        labels,
    )


async def confirm(request: web.Request) -> web.StreamResponse:
    """Ask before revoking a key."""
    found = await admin_context(request).enrolments.key(request.match_info["id"])
    key = unwrap(found or problem("not-found", "There is no such enrolment key."))
    return render(request, "enrolment_key_revoke.html", {"key": key})


async def revoke(request: web.Request) -> web.StreamResponse:
    """Revoke a key for good."""
    await form(request)
    service = admin_context(request).services.enrolment_keys
    key = unwrap(await service.revoke_key(actor(request, Via.PAGE), request.match_info["id"]))
    return toast(request, f"The enrolment key {key.name} is revoked.", changed=CHANGED)
