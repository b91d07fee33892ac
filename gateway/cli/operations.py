"""`ice-gateway operations`: work for an ICE, requested in the table; a running gateway sends it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import click
import msgspec

from client.protocol import JsonTooComplex, OperationKind, check_json
from gateway.cli.common import (
    Desk,
    json_option,
    on_database,
    refuse,
    say,
    show_json,
    show_table,
    tell,
    unwrap,
)
from gateway.core.json_input import NotJson, check_syntax
from gateway.core.operation import Operation, State
from gateway.core.problems import problem
from gateway.core.text import decoded, printable
from gateway.core.times import utc_now
from gateway.node.expiry import OperationExpiry
from gateway.services.operation_requests import OperationRequest
from gateway.services.schemas import OperationDocument, operation_document, progress_document
from gateway.store.ices import Ices
from gateway.store.operations import OperationFilter, Operations

_LOOK_EVERY: Final = 0.2
"""Seconds between two looks at an operation that is followed."""
_PAGE: Final = 200
_MAX_REASON: Final = 1000
"""Characters of an operation's error that are told."""
_INTERRUPTED: Final = 130
_AWARE: Final[Any] = Annotated[datetime, msgspec.Meta(tz=True)]
_KINDS: Final = click.Choice([kind.value for kind in OperationKind])
_STATES: Final = click.Choice([state.value for state in State])


class _Error(msgspec.Struct):
    """An operation's error as it should be."""

    code: str
    message: str


class _Moment(click.ParamType[datetime]):
    name = "time"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            moment: datetime = msgspec.convert(value, _AWARE)
        except msgspec.ValidationError:
            self.fail("RFC 3339 with a zone, such as 2026-11-22T18:00:00Z", param, ctx)
        return moment


class _Json(click.ParamType[bytes]):
    """JSON as bytes: given itself, as @FILE, or as @- for standard input."""

    name = "JSON|@FILE"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        try:
            if value == "@-":
                text = sys.stdin.buffer.read()
            else:
                text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
            text = decoded(text).strip().encode()
            check_syntax(text)
            check_json(text)
        except OSError as error:
            self.fail(f"{value[1:]} cannot be read: {error.strerror}", param, ctx)
        except JsonTooComplex as error:
            self.fail(str(error), param, ctx)
        except (UnicodeError, NotJson):
            self.fail("has to be JSON", param, ctx)
        return text


@click.group()
def operations() -> None:
    """Run operations at ICEs; list, show and cancel them."""


@operations.command()
@click.argument("name")
@click.option("--kind", type=_KINDS, required=True, help="What the ICE's type allows.")
@click.option("--params", type=_Json(), default="{}", help="JSON for the ICE; @- is stdin.")
@click.option("--run-at", type=_Moment(), help="When, for schedule: RFC 3339 with a zone.")
@click.option("--deadline", type=_Moment(), help="Until when; 24 hours where it is not given.")
@click.option("--idempotency-key", metavar="KEY", help="The same key is the same operation.")
@click.option("--follow", is_flag=True, help="Wait for its end and print the result.")
@json_option
@on_database
async def run(
    desk: Desk,
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
    """Request an operation and print its id; with --follow wait for it, and print its result."""
    listed = await Ices(desk.engine).find(name)
    if listed is None:
        refuse(problem("not-registered").detail)
    wanted = OperationRequest(OperationKind(kind), params, run_at, deadline, idempotency_key)
    operation = unwrap(await desk.services.operations.request(desk.actor, listed.ice, wanted))
    if not (operation.is_finished or await desk.engine.is_served()):
        tell("no gateway runs on this database: the operation is sent when one does")
    elif operation.state is State.QUEUED and operation.is_due(utc_now()) and not listed.connection:
        tell(f"{listed.ice.ice_name} is not connected: the operation is sent when it is")
    if follow:
        tell(f"operation {operation.id}")
        operation = await _follow(desk, operation)
    done = f"operation {operation.id} is {operation.state}"
    if as_json:
        show_json(operation_document(operation), done=done)
    elif not follow:
        say(operation.id, done=done)
    elif operation.state is State.SUCCEEDED:
        show_json(operation_document(operation).result, done=done)
    if follow and operation.state is not State.SUCCEEDED:
        refuse(_reason(operation))


@operations.command("list")
@click.argument("name", required=False)
@click.option("--state", type=_STATES)
@click.option("--kind", type=_KINDS)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@on_database
async def list_operations(
    desk: Desk, name: str | None, state: str | None, kind: str | None, limit: int, *, as_json: bool
) -> None:
    """List operations, of all ICEs or of one, newest first."""
    if name is not None and await Ices(desk.engine).find(name) is None:
        refuse(problem("not-registered").detail)
    where = OperationFilter(
        name, State(state) if state else None, OperationKind(kind) if kind else None
    )
    rows = Operations(desk.engine.fetch)
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
    show_table(
        ("ID", "ICE", "KIND", "STATE", "BY", "CREATED", "FINISHED"),
        [
            (
                one.id,
                one.ice_name,
                one.kind,
                one.state,
                one.requested_by,
                one.created,
                one.finished,
            )
            for one in found
        ],
    )


@operations.command()
@click.argument("operation_id", metavar="ID")
@json_option
@on_database
async def show(desk: Desk, operation_id: str, *, as_json: bool) -> None:
    """Show one operation: how far it is, what it came to."""
    operation = await desk.services.operations.find(operation_id)
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
    say("\n".join(lines))


@operations.command()
@click.argument("operation_id", metavar="ID")
@on_database
async def cancel(desk: Desk, operation_id: str) -> None:
    """End an operation; the ICE that works on it is told to stop."""
    unwrap(await desk.services.operations.cancel(desk.actor, operation_id))


def _reason(operation: Operation) -> str:
    """Why it has no result, in a line."""
    if operation.error is None:
        return f"the operation has {operation.state}"
    try:
        error = msgspec.json.decode(operation.error, type=_Error)
        said = f"{error.code}: {error.message}"
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # an ICE may have said anything
        said = operation.error.decode(errors="replace")
    line = printable(" ".join(said.split()))
    return f"{operation.state}: {line if len(line) <= _MAX_REASON else line[:_MAX_REASON] + '…'}"


async def _follow(desk: Desk, operation: Operation) -> Operation:
    """Tell how far it is until it has finished."""
    clerk = OperationExpiry(desk.engine, utc_now, keep=0, ended=lambda _: None)
    rows = Operations(desk.engine.fetch)
    with _narrator() as narrate:
        narrate(operation)
        try:
            while not operation.is_finished:
                await asyncio.sleep(_LOOK_EVERY)
                if operation.deadline <= utc_now() and not await desk.engine.is_served():
                    await clerk.end_overdue()  # nobody else does
                found = await rows.find(operation.id)
                if found is None:
                    refuse("there is no such operation any more")
                operation = found
                if not operation.is_finished:
                    narrate(operation)
        except asyncio.CancelledError:
            tell(f"the operation goes on: ice-gateway operations show {operation.id}")
            sys.exit(_INTERRUPTED)
    return operation


@contextlib.contextmanager
def _narrator() -> Iterator[Callable[[Operation], None]]:
    """What tells how far an operation is: a bar on a terminal, otherwise a line for each news."""
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
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, said="")

        def show(operation: Operation) -> None:
            fraction, said = _progress(operation)
            total = None if fraction is None else 1.0
            bar.update(
                task, description=operation.state, total=total, completed=fraction or 0, said=said
            )

        yield show


def _line_by_line() -> Callable[[Operation], None]:
    told = ""

    def show(operation: Operation) -> None:
        nonlocal told
        fraction, said = _progress(operation)
        percent = "" if fraction is None else f"{fraction:.0%}"
        line = " ".join(part for part in (operation.state, percent, said) if part)
        if line != told:
            told = line
            tell(line)

    return show


def _progress(operation: Operation) -> tuple[float | None, str]:
    progress = progress_document(operation)
    if progress is None:
        return None, ""
    return progress.fraction, printable(progress.message or "")
