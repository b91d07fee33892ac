"""`ice-gateway operations`: requests work of an ICE in the database; a running gateway sends it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import click
import msgspec

from client.protocol import JsonTooComplex, OperationKind, check_json
from gateway.cli.common import (
    CommandContext,
    Parsed,
    json_option,
    on_database,
    print_notice,
    print_output,
    refuse,
    show_json,
    show_table,
    unwrap,
)
from gateway.core.json_input import check_syntax
from gateway.core.operation import Operation, State
from gateway.core.text import decoded, printable
from gateway.core.times import utc_now
from gateway.node.expiry import OperationExpiry
from gateway.services.operation_requests import OperationRequest
from gateway.services.schemas import OperationDocument, operation_document, progress_document
from gateway.store.operations import OperationFilter, Operations

_POLL_INTERVAL: Final = 0.2
"""Seconds between two reads of an operation that is followed."""
_PAGE: Final = 200
_MAX_REASON: Final = 1000
"""Characters of an operation's error that are printed."""
_INTERRUPTED: Final = 130
_AWARE: Final[Any] = Annotated[datetime, msgspec.Meta(tz=True)]
_MOMENT: Final = Parsed[datetime](
    "time",
    functools.partial(msgspec.convert, type=_AWARE),
    "RFC 3339 with a zone, such as 2026-11-22T18:00:00Z",
)
_KINDS: Final = click.Choice([kind.value for kind in OperationKind])
_STATES: Final = click.Choice([state.value for state in State])


class _Error(msgspec.Struct):
    """The documented shape of an operation's error."""

    code: str
    message: str


def _json(value: str) -> bytes:
    """JSON as bytes, from the argument itself, from @FILE, or from standard input with @-."""
    try:
        if value == "@-":
            text = sys.stdin.buffer.read()
        else:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
        text = decoded(text).strip().encode()
        check_syntax(text)
        check_json(text)
    except OSError as error:
        raise click.BadParameter(f"{value[1:]} cannot be read: {error.strerror}") from None
    except JsonTooComplex as error:
        raise click.BadParameter(str(error)) from None
    return text


@click.group()
def operations() -> None:
    """Request operations of ICEs; list, show and cancel them."""


@operations.command()
@click.argument("name")
@click.option("--kind", type=_KINDS, required=True, help="A kind that the ICE's type allows.")
@click.option(
    "--params",
    type=Parsed("JSON|@FILE", _json, "has to be JSON"),
    default="{}",
    help="JSON for the ICE; @- is stdin.",
)
@click.option("--run-at", type=_MOMENT, help="When, for schedule: RFC 3339 with a zone.")
@click.option("--deadline", type=_MOMENT, help="Until when; by default 24 hours.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A request with the same key returns the same operation.",
)
@click.option("--follow", is_flag=True, help="Wait for its end and print the result.")
@json_option
@on_database
async def run(
    context: CommandContext,
    name: str,
    *,
    kind: str,
    params: bytes,
    run_at: datetime | None,
    deadline: datetime | None,
    idempotency_key: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Request an operation and print its id; with --follow, wait and print its result."""
    listed = await context.listed(name)
    wanted = OperationRequest(OperationKind(kind), params, run_at, deadline, idempotency_key)
    operation = unwrap(await context.services.operations.request(context.actor, listed.ice, wanted))
    if not (operation.is_finished or await context.engine.is_served()):
        print_notice("no gateway runs on this database: the operation is sent when one does")
    elif operation.state is State.QUEUED and operation.is_due(utc_now()) and not listed.connection:
        print_notice(f"{listed.ice.ice_name} is not connected: the operation is sent when it is")
    if follow:
        print_notice(f"operation {operation.id}")
        operation = await _follow(context, operation)
    done = f"operation {operation.id} is {operation.state}"
    if as_json:
        show_json(operation_document(operation), done=done)
    elif not follow:
        print_output(operation.id, done=done)
    elif operation.state is State.SUCCEEDED:
        show_json(operation_document(operation).result, done=done)
    if follow and operation.state is not State.SUCCEEDED:
        refuse(_reason(operation))


@operations.command("list")
@click.argument("name", required=False)
@click.option("--state", type=_STATES)
@click.option("--kind", type=_KINDS)
@click.option("--requested-by", metavar="USER", help="Only those that this user requested.")
@click.option("--since", type=_MOMENT, help="Only those requested then or later.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@on_database
async def list_operations(  # noqa: PLR0917 - the options
    context: CommandContext,
    name: str | None,
    state: str | None,
    kind: str | None,
    requested_by: str | None,
    since: datetime | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List the operations of all ICEs or of one, newest first."""
    if name is not None:
        await context.ice(name)  # refuse an unknown name
    where = OperationFilter(
        name,
        State(state) if state else None,
        OperationKind(kind) if kind else None,
        requested_by,
        since,
    )
    rows = Operations(context.engine.fetch)
    found: list[OperationDocument] = []
    before, more = None, True
    while more and len(found) < limit:
        size = min(limit - len(found), _PAGE)
        page, more = await rows.page(where, size, before, brief=not as_json)
        found += [operation_document(item.operation) for item in page]
        before = page[-1].number if page else None
    if as_json:
        show_json(found)
        return
    shown = ("id", "ice_name", "kind", "state", "requested_by", "created", "finished")
    show_table(
        ("ID", "ICE", "KIND", "STATE", "BY", "CREATED", "FINISHED"),
        [[getattr(operation, name) for name in shown] for operation in found],
    )


@operations.command()
@click.argument("operation_id", metavar="ID")
@json_option
@on_database
async def show(context: CommandContext, operation_id: str, *, as_json: bool) -> None:
    """Show one operation with its progress and result."""
    operation = await Operations(context.engine.fetch).find(operation_id)
    if operation is None:
        refuse("there is no such operation")
    document = operation_document(operation)
    if as_json:
        show_json(document)
        return
    lines = []
    for field in document.__struct_fields__:
        value = getattr(document, field)
        if not (value is None or isinstance(value, str)):
            value = printable(msgspec.json.encode(value).decode())
        lines.append(f"{field:<15}{value or '-'}")
    print_output("\n".join(lines))


@operations.command()
@click.argument("operation_id", metavar="ID")
@on_database
async def cancel(context: CommandContext, operation_id: str) -> None:
    """Cancel an operation; the gateway asks the ICE to stop."""
    unwrap(await context.services.operations.cancel(context.actor, operation_id))


def _reason(operation: Operation) -> str:
    """Why an operation did not succeed, on one line."""
    if operation.error is None:
        return f"the operation has {operation.state}"
    try:
        error = msgspec.json.decode(operation.error, type=_Error)
        text = f"{error.code}: {error.message}"
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # an ICE may send any JSON
        text = operation.error.decode(errors="replace")
    line = printable(" ".join(text.split()))
    return f"{operation.state}: {line if len(line) <= _MAX_REASON else line[:_MAX_REASON] + '…'}"


async def _follow(context: CommandContext, operation: Operation) -> Operation:
    """Show the progress of an operation until it has finished; return its last state."""
    expiry = OperationExpiry(context.engine, utc_now, keep=0, ended=lambda _: None)
    rows = Operations(context.engine.fetch)
    with _progress_display() as show:
        show(operation)
        try:
            while not operation.is_finished:
                await asyncio.sleep(_POLL_INTERVAL)
                if operation.deadline <= utc_now() and not await context.engine.is_served():
                    await expiry.end_overdue()  # no gateway runs to expire it
                found = await rows.find(operation.id)
                if found is None:
                    refuse("there is no such operation any more")
                operation = found
                if not operation.is_finished:
                    show(operation)
        except asyncio.CancelledError:
            print_notice(f"the operation goes on: ice-gateway operations show {operation.id}")
            sys.exit(_INTERRUPTED)
    return operation


@contextlib.contextmanager
def _progress_display() -> Iterator[Callable[[Operation], None]]:
    """A function that shows progress: a bar on a terminal, otherwise a line for each change."""
    if not sys.stderr.isatty():
        yield _line_by_line()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, message="")

        def show(operation: Operation) -> None:
            fraction, message = _progress(operation)
            bar.update(
                task,
                description=operation.state,
                total=None if fraction is None else 1.0,
                completed=fraction or 0,
                message=message,
            )

        yield show


def _line_by_line() -> Callable[[Operation], None]:
    last = ""

    def show(operation: Operation) -> None:
        nonlocal last
        fraction, message = _progress(operation)
        percent = "" if fraction is None else f"{fraction:.0%}"
        line = " ".join(part for part in (operation.state, percent, message) if part)
        if line != last:
            last = line
            print_notice(line)

    return show


def _progress(operation: Operation) -> tuple[float | None, str]:
    progress = progress_document(operation)
    if progress is None:
        return None, ""
    return progress.fraction, printable(progress.message or "")
