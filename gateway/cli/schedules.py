"""`ice-gateway schedules`: operations that are requested at the times of a cron expression.

Tested in tests/gateway/cli/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec

from gateway.cli.admin_port import Admin
from gateway.cli.output import print_output, print_stderr, show_json, show_members, show_table
from gateway.cli.parameters import JSON, Parsed, duration_option, json_option
from gateway.cli.target import with_admin
from gateway.core.cron import checked_expression
from gateway.core.schedule import MAX_SECONDS
from gateway.runtime.setting_types import duration_between, duration_text
from gateway.services.schedule_schemas import OccurrenceDocument, ScheduleDocument

C = TypeVar("C", bound=Callable[..., Any])
_SECONDS: Final = duration_option(
    duration_between(1, MAX_SECONDS), f"from 1s to {duration_text(MAX_SECONDS)}"
)
_CRON: Final = Parsed("cron", checked_expression)
_ID: Final = click.argument("schedule_id", metavar="ID")


def _settings(command: C) -> C:
    """Add the options of what a schedule is asked to do."""
    for option in reversed(
        (
            click.option(
                "--params", type=JSON, metavar="JSON|@FILE", help="JSON for the ICE; @- is stdin."
            ),
            click.option("--timezone", metavar="ZONE", help="IANA name, such as Europe/Berlin."),
            click.option(
                "--timeout", type=_SECONDS, help="Until the deadline of an operation, such as 2h."
            ),
            click.option(
                "--grace", type=_SECONDS, help="How late an occurrence may be, such as 10m."
            ),
        )
    ):
        command = option(command)
    return command


def _body(**given: Any) -> dict[str, Any]:
    """The members that were given, as the API takes them."""
    body = {name: value for name, value in given.items() if value is not None}
    if "params" in body:
        body["params"] = msgspec.Raw(body["params"])
    for name in {"timeout", "grace"} & body.keys():
        body[name] = int(body[name])
    return body


@click.group()
def schedules() -> None:
    """Make, list, show, change, delete and run schedules."""


@schedules.command("list")
@click.option("--ice", "ice_name", metavar="NAME", help="Only those of this ICE.")
@click.option("--pool", metavar="NAME", help="Only those of this pool.")
@click.option("--q", metavar="TEXT", help="A part of the name, or of that of the ICE or pool.")
@json_option
@with_admin
async def list_schedules(admin: Admin, *, as_json: bool, **filters: str | None) -> None:
    """List schedules, the newest first, with their next occurrence."""
    query = [(name, value) for name, value in filters.items() if value is not None]
    found = [one async for page in admin.schedules(query) for one in page]
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "NAME", "ICE OR POOL", "CRON", "TIMEZONE", "NEXT", "LAST", "BY"),
        [
            (
                *(one.id, one.name, one.ice_name or one.pool, one.cron, one.timezone),
                *(_next(one), _outcome(one.last), one.requested_by),
            )
            for one in found
        ],
    )


def _next(schedule: ScheduleDocument) -> str:
    if not schedule.enabled:
        return "disabled"
    return schedule.fault or schedule.next[0]


def _outcome(occurrence: OccurrenceDocument | None) -> str | None:
    """What became of an occurrence, in a word."""
    if occurrence is None:
        return None
    return occurrence.skipped or f"operation {occurrence.operation}"


@schedules.command()
@_ID
@json_option
@with_admin
async def show(admin: Admin, schedule_id: str, *, as_json: bool) -> None:
    """Show one schedule with its next five occurrences."""
    document = await admin.schedule(schedule_id)
    if as_json:
        show_json(document)
    else:
        show_members(document, next=", ".join)


@schedules.command()
@click.argument("name")
@click.option("--ice", "ice_name", metavar="NAME", help="The ICE that gets the operations.")
@click.option("--pool", metavar="NAME", help="The pool, any ICE of which gets each of them.")
@click.option(
    "--cron",
    type=_CRON,
    required=True,
    help="Minute, hour, day of month, month, day of week, such as '30 2 * * MON-FRI'.",
)
@_settings
@click.option("--disabled", is_flag=True, help="Request nothing until it is enabled.")
@with_admin
async def create(admin: Admin, name: str, *, disabled: bool, **given: Any) -> None:
    """Make a schedule called NAME and print its id."""
    if (given["ice_name"] is None) == (given["pool"] is None):
        raise click.UsageError("name an ICE with --ice, or a pool with --pool")
    made = await admin.create_schedule(_body(name=name, enabled=not disabled, **given))
    if made.next:
        print_stderr(f"the next occurrence is {made.next[0]}")
    print_output(made.id, done=f"the schedule {made.id} is made")


@schedules.command()
@_ID
@click.option("--name")
@click.option("--cron", type=_CRON)
@_settings
@click.option(
    "--enable/--disable", "enabled", default=None, help="Let it request operations, or not."
)
@with_admin
async def change(admin: Admin, schedule_id: str, **given: Any) -> None:
    """Change a schedule; from then on it requests operations in the name of the user who changed it."""
    body = _body(**given)
    if not body:
        raise click.UsageError("say what to change: see --help")
    await admin.change_schedule(schedule_id, body)


@schedules.command()
@_ID
@with_admin
async def delete(admin: Admin, schedule_id: str) -> None:
    """Delete a schedule and its history; its operations stay."""
    await admin.delete_schedule(schedule_id)


@schedules.command()
@_ID
@with_admin
async def run(admin: Admin, schedule_id: str) -> None:
    """Request an operation of a schedule now, even if it is disabled, and print its id."""
    operation = await admin.run_schedule(schedule_id)
    print_output(operation.id, done=f"operation {operation.id} is requested")


@schedules.command()
@_ID
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@with_admin
async def occurrences(admin: Admin, schedule_id: str, *, limit: int, as_json: bool) -> None:
    """List what became of the occurrences of a schedule, the newest first."""
    found: list[OccurrenceDocument] = []
    async for page in admin.occurrences(schedule_id, limit=limit):
        found += page
    if as_json:
        show_json(found)
        return
    show_table(
        ("AT", "COUNT", "OPERATION", "SKIPPED"),
        [(one.at, str(one.count), one.operation, one.skipped) for one in found],
    )
