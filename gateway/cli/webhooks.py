"""`ice-gateway webhooks`: other systems to which the gateway posts events.

Tested in tests/gateway/cli/test_webhooks.py.
"""

from __future__ import annotations

from typing import Any, Final

import click

from gateway.cli.admin_port import Admin, Refused
from gateway.cli.output import print_output, print_stderr, show_json, show_members, show_table
from gateway.cli.parameters import json_option
from gateway.cli.target import with_admin
from gateway.services.webhook_schemas import (
    DeliveryDocument,
    FailingDocument,
    WebhookDocument,
)

_ID: Final = click.argument("webhook_id", metavar="ID")
_EVENTS_HELP: Final = "An action of the audit log, ice.away, ice.back, operation.finished, or '*' for all; may be repeated."


@click.group()
def webhooks() -> None:
    """Make, list, show, change, delete and test webhooks, which post events to other systems."""


@webhooks.command("list")
@click.option("--q", metavar="TEXT", help="A part of the name.")
@json_option
@with_admin
async def list_webhooks(admin: Admin, *, q: str | None, as_json: bool) -> None:
    """List webhooks, the oldest first."""
    found = await admin.webhooks([] if q is None else [("q", q)])
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "NAME", "URL", "EVENTS", "POSITION", "STATE", "SET ASIDE"),
        [
            (
                *(one.id, one.name, one.url, ", ".join(one.events), str(one.position)),
                *(_state(one), str(one.set_aside)),
            )
            for one in found
        ],
    )


def _state(webhook: WebhookDocument) -> str:
    if not webhook.enabled:
        return "disabled"
    return "ok" if webhook.failing is None else _failing_text(webhook.failing)


def _failing_text(failing: FailingDocument) -> str:
    return f"failing since {failing.since}: {failing.error}"


@webhooks.command()
@_ID
@json_option
@with_admin
async def show(admin: Admin, webhook_id: str, *, as_json: bool) -> None:
    """Show one webhook; its secret is never shown again."""
    document = await admin.webhook(webhook_id)
    if as_json:
        show_json(document)
    else:
        show_members(document, events=", ".join, failing=_failing_text)


@webhooks.command()
@click.argument("name")
@click.option("--url", required=True, help="Where messages are posted: https://HOST[:PORT][/PATH].")
@click.option("--event", "events", multiple=True, required=True, help=_EVENTS_HELP)
@click.option("--disabled", is_flag=True, help="Send nothing until it is enabled.")
@with_admin
async def create(admin: Admin, *, disabled: bool, events: tuple[str, ...], **given: str) -> None:
    """Make a webhook called NAME and print only its secret, which is never shown again."""
    made = await admin.create_webhook({**given, "events": list(events), "enabled": not disabled})
    webhook = made.webhook
    print_stderr(f"made the webhook {webhook.id}; stdout has its secret, this once")
    print_output(
        made.secret,
        done=f"the webhook {webhook.id} is made",
        remedy=f"its secret is lost: `ice-gateway webhooks delete {webhook.id}`, and make another",
    )


@webhooks.command()
@_ID
@click.option("--name")
@click.option("--url")
@click.option("--event", "events", multiple=True, help=_EVENTS_HELP)
@click.option("--enable/--disable", "enabled", default=None, help="Send to it, or not.")
@with_admin
async def change(admin: Admin, webhook_id: str, *, events: tuple[str, ...], **given: Any) -> None:
    """Change a webhook; a message that was not taken is sent again at once."""
    body = {name: value for name, value in given.items() if value is not None}
    if events:
        body["events"] = list(events)
    if not body:
        raise click.UsageError("say what to change: see --help")
    await admin.change_webhook(webhook_id, body)


@webhooks.command()
@_ID
@with_admin
async def delete(admin: Admin, webhook_id: str) -> None:
    """Delete a webhook, and what waits or is set aside for it."""
    await admin.delete_webhook(webhook_id)


@webhooks.command()
@_ID
@with_admin
async def test(admin: Admin, webhook_id: str) -> None:
    """Send a test now, and say what became of it; status 1 if it was not taken."""
    _report(await admin.test_webhook(webhook_id))


def _report(sent: DeliveryDocument) -> None:
    """Print the outcome of an attempt. Raises `Refused` if the message was not taken."""
    if sent.error is not None:
        raise Refused("not-taken", f"{sent.error} ({sent.elapsed_ms} ms)")
    print_output(f"{sent.status} in {sent.elapsed_ms} ms", done="the message was taken")


@webhooks.command()
@_ID
@json_option
@with_admin
async def deliveries(admin: Admin, webhook_id: str, *, as_json: bool) -> None:
    """List the last 100 attempts to send to a webhook, the newest first."""
    found = await admin.deliveries(webhook_id)
    if as_json:
        show_json(found)
        return
    show_table(
        ("AT", "MESSAGE", "TYPE", "STATUS", "MS", "ERROR"),
        [
            (
                *(one.at, one.message, one.type),
                None if one.status is None else str(one.status),
                *(str(one.elapsed_ms), one.error),
            )
            for one in found
        ],
    )


@webhooks.command("set-aside")
@_ID
@json_option
@with_admin
async def set_aside(admin: Admin, webhook_id: str, *, as_json: bool) -> None:
    """List the messages that a webhook did not take for 72 hours, the newest first."""
    found = await admin.set_aside(webhook_id)
    if as_json:
        show_json(found)
        return
    show_table(
        ("AT", "MESSAGE", "TYPE", "ATTEMPTS", "ERROR"),
        [(one.at, one.message, one.type, str(one.attempts), one.error) for one in found],
    )


@webhooks.command("send-again")
@_ID
@click.argument("message")
@with_admin
async def send_again(admin: Admin, webhook_id: str, message: str) -> None:
    """Send a message that was set aside once more; status 1 if it was not taken."""
    _report(await admin.send_again(webhook_id, message))
