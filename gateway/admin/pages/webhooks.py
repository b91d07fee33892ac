"""The page of webhooks, and the page of one: its deliveries, what was set aside, and a test.

Tested in tests/gateway/admin/test_webhook_pages.py and tests/browser/test_webhooks.py.
"""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, unwrap
from gateway.admin.api.webhooks import find_webhook
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import (
    form,
    is_fragment,
    render,
    render_table,
    toast,
)
from gateway.admin.pages.ices import form_error
from gateway.core.audit_event import Via
from gateway.core.problems import Problem
from gateway.core.roles import Need
from gateway.core.webhook import EVENTS, MAX_WEBHOOKS, Notice, Webhook
from gateway.services.webhooks import WantedChanges, WantedWebhook
from gateway.store.webhooks import KEPT, Delivery

CHANGED: Final = "webhooks-changed"
"""The event on which the page reloads what may have changed."""
SECRET_FILE: Final = "webhook.secret"  # noqa: S105 - the name of a file
_FIELD_IDS: Final = {name: f"webhook_{name}" for name in ("name", "url", "events")}
"""The element of an invalid field."""


class PageQuery(Query):
    """The query of the page's address."""


def routes() -> list[web.RouteDef]:
    """The routes of `/webhooks`."""
    one = "/webhooks/{id}"
    acts = [
        ("GET", f"{one}/change", ask_change),
        ("POST", f"{one}/change", change),
        ("POST", f"{one}/enable", enable),
        ("POST", f"{one}/disable", disable),
        ("POST", f"{one}/test", test),
        ("POST", f"{one}/set-aside/{{message}}/send", send_again),
        ("GET", f"{one}/delete", confirm),
        ("POST", f"{one}/delete", delete),
    ]
    return [
        route("GET", "/webhooks", page, need=Need.SEE_ALL),
        route("GET", "/new-webhook", ask, need=Need.ACT),
        route("POST", "/webhooks", create, need=Need.ACT),
        route("GET", one, show, need=Need.SEE_ALL, finds=find_webhook),
        *(
            route(method, path, handler, need=Need.ACT, finds=find_webhook)
            for method, path, handler in acts
        ),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The webhooks, oldest first, or only their table if htmx asks for that."""
    PageQuery.of(request)
    table = admin_context(request).webhooks
    rows = await table.all()
    content = {
        "title": "Webhooks",
        "rows": rows,
        "set_aside": await table.set_aside_counts(),
        "full": len(rows) >= MAX_WEBHOOKS,
        "makes": request[CALLER].grants.acts,
    }
    return render_table(request, "webhooks", content)


async def show(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """The page of one webhook, or only what may change of it."""
    table = admin_context(request).webhooks
    content = {
        "title": webhook.name,
        "section": "Webhooks",
        "webhook": webhook,
        "deliveries": [one.delivery for one in await table.deliveries(webhook.id, KEPT)],
        "set_aside": await table.set_aside(webhook.id),
        "acts": request[CALLER].grants.acts,
    }
    name = "webhook_live.html" if is_fragment(request) else "webhook.html"
    return render(request, name, content)


async def ask(request: web.Request) -> web.StreamResponse:
    """The form of a new webhook."""
    return _form(request, None)


async def ask_change(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """The form of a webhook as it is."""
    return _form(request, webhook)


def _form(request: web.Request, webhook: Webhook | None) -> web.StreamResponse:
    notices = list(map(str, Notice))
    actions = sorted(EVENTS - {"*", *notices})
    content = {"webhook": webhook, "notices": notices, "actions": actions}
    return render(request, "webhook_form.html", content)


async def create(request: web.Request) -> web.StreamResponse:
    """Make a webhook and show its secret once; a refusal appears in the form."""
    fields = await form(request)
    service = admin_context(request).services.webhooks
    made = await service.create(actor(request, Via.PAGE), WantedWebhook(**_given(fields)))
    if isinstance(made, Problem):
        return form_error(request, made, _FIELD_IDS, "#dialog-fault")
    content = {
        "webhook": made.webhook,
        "token": made.secret.reveal(),
        "filename": SECRET_FILE,
    }
    return render(request, "webhook_made.html", content, status=201, trigger={CHANGED: {}})


async def change(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Change a webhook; a refusal appears in the form."""
    fields = await form(request)
    changes = WantedChanges(**_given(fields))
    service = admin_context(request).services.webhooks
    done = await service.change(actor(request, Via.PAGE), webhook.id, changes)
    if isinstance(done, Problem):
        return form_error(request, done, _FIELD_IDS, "#dialog-fault")
    return toast(request, f"The webhook {done.name} is changed.", changed=CHANGED)


def _given(fields: dict[str, str]) -> dict[str, Any]:
    """What the form says; the service checks it."""
    given: dict[str, Any] = {name: fields.get(name, "").strip() for name in ("name", "url")}
    return given | {"events": re.findall(r"[^\s,]+", fields.get("events", ""))}


async def enable(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Enable a webhook."""
    return await _switch(request, webhook, enabled=True)


async def disable(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Disable a webhook."""
    return await _switch(request, webhook, enabled=False)


async def _switch(request: web.Request, webhook: Webhook, *, enabled: bool) -> web.StreamResponse:
    await form(request)
    service = admin_context(request).services.webhooks
    changes = WantedChanges(enabled=enabled)
    unwrap(await service.change(actor(request, Via.PAGE), webhook.id, changes))
    became = "enabled" if enabled else "disabled"
    return toast(request, f"The webhook {webhook.name} is {became}.", changed=CHANGED)


async def test(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Send a test now, and say what became of it."""
    await form(request)
    sent = unwrap(await admin_context(request).services.webhooks.test(webhook.id))
    return _outcome(request, "The test", sent)


async def send_again(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Send a message that was set aside once more, and say what became of it."""
    await form(request)
    message = request.match_info["message"]
    sent = unwrap(await admin_context(request).services.webhooks.send_again(webhook.id, message))
    return _outcome(request, f"The message {message}", sent)


def _outcome(request: web.Request, what: str, sent: Delivery) -> web.StreamResponse:
    if sent.error is None:
        sentence = f"{what} was taken: {sent.status} in {sent.elapsed_ms} ms."
    else:
        sentence = f"{what} was not taken: {sent.error}."
    return toast(request, sentence, changed=CHANGED)


async def confirm(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Ask before deleting a webhook."""
    return render(request, "webhook_delete.html", {"webhook": webhook})


async def delete(request: web.Request, webhook: Webhook) -> web.StreamResponse:
    """Delete a webhook, and go to the others."""
    await form(request)
    service = admin_context(request).services.webhooks
    unwrap(await service.delete(actor(request, Via.PAGE), webhook.id))
    return web.Response(status=204, headers={"HX-Redirect": "./webhooks"})
