"""`ice-gateway operations`: requests work of an ICE, on a database or over the API; a running gateway sends it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

import click
import msgspec

from client.protocol import OperationKind
from gateway.cli.admin_port import Admin
from gateway.cli.output import (
    print_notice,
    print_output,
    print_stderr,
    refuse,
    show_json,
    show_members,
    show_table,
)
from gateway.cli.parameters import JSON, MOMENT, json_option
from gateway.cli.target import with_admin
from gateway.core.junit import report_of
from gateway.core.operation import UNFINISHED, State, Waits, in_words
from gateway.core.text import printable, printable_line, printable_lines
from gateway.core.times import to_text
from gateway.runtime.standard_streams import Unwritable, writing
from gateway.services.operation_schemas import OperationDocument

_MAX_FAILED: Final = 10
"""Failed tests that are named."""
_MAX_REASON: Final = 1000
"""Characters of an operation's error that are printed."""
_LONG_LINE: Final = 10_000
"""Characters of a line of a log that are printed before its end has come."""
_INTERRUPTED: Final = 130
_KINDS: Final = click.Choice([kind.value for kind in OperationKind])
_STATES: Final = click.Choice([state.value for state in State])
_NOTICED: Final = (
    Waits.OFFLINE,
    Waits.NO_ICE,
    Waits.ALL_OFFLINE,
    Waits.PAUSED,
    Waits.NOT_ACCEPTED,
)
"""Why an operation may wait for long, which the command says."""


class _Error(msgspec.Struct):
    """The documented shape of an operation's error."""

    code: str
    message: str


@click.group()
def operations() -> None:
    """Request operations of ICEs; list, show and cancel them."""


@operations.command()
@click.argument("name", required=False)
@click.option("--pool", metavar="POOL", help="Any one ICE of this pool, instead of the ICE NAME.")
@click.option("--kind", type=_KINDS, required=True, help="A kind that the ICE's type allows.")
@click.option(
    "--params",
    type=JSON,
    default="{}",
    help="JSON for the ICE; @- is stdin.",
)
@click.option("--run-at", type=MOMENT, help="When, for schedule: RFC 3339 with a zone.")
@click.option("--deadline", type=MOMENT, help="Until when; by default 24 hours.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A request with the same key returns the same operation.",
)
@click.option("--follow", is_flag=True, help="Wait for its end and print the result.")
@click.option(
    "--fail-on-tests",
    is_flag=True,
    help="Follow, and end with status 1 also if tests failed or none ran, by the result's JUnit report.",
)
@json_option
@with_admin
async def run(
    admin: Admin,
    name: str | None,
    *,
    pool: str | None,
    kind: str,
    params: bytes,
    run_at: datetime | None,
    deadline: datetime | None,
    idempotency_key: str | None,
    follow: bool,
    fail_on_tests: bool,
    as_json: bool,
) -> None:
    """Request an operation and print its id; with --follow, wait and print its result.

    With --follow, its log and its progress go to stderr.
    """
    follow = follow or fail_on_tests
    if (name is None) is (pool is None):
        raise click.UsageError("name either an ICE or a --pool")
    optional = {"run_at": run_at, "deadline": deadline, "idempotency_key": idempotency_key}
    given = {field: value for field, value in optional.items() if value is not None}
    operation = await admin.request_operation(
        name, {"kind": kind, "params": msgspec.Raw(params), **given}, pool=pool
    )
    if follow:
        print_notice(f"operation {operation.id}")
    await _say_why_it_waits(admin, operation)
    if follow:
        operation = await _follow(admin, operation)
    done = f"operation {operation.id} is {operation.state}"
    if as_json:
        show_json(operation, done=done)
    elif not follow:
        print_output(operation.id, done=done)
    elif operation.state is State.SUCCEEDED:
        show_json(operation.result, done=done)
    if follow and operation.state is not State.SUCCEEDED:
        refuse(_reason(operation))
    if fail_on_tests and (failure := _failed_tests(operation)) is not None:
        refuse(failure)


async def _say_why_it_waits(admin: Admin, operation: OperationDocument) -> None:
    """Print the reason if the operation may wait for long."""
    if not (_has_finished(operation) or await admin.is_served()):
        print_notice("no gateway runs on this database: the operation is sent when one does")
    elif operation.waits in _NOTICED:
        print_notice(_why_it_waits(operation))


def _why_it_waits(operation: OperationDocument) -> str:
    assert operation.waits is not None  # noqa: S101 - the callers look at it
    return f"{in_words(operation.waits, of_pool=operation.pool is not None)}: the operation waits"


def _failed_tests(operation: OperationDocument) -> str | None:
    """Which tests of the result failed, on one line; None if all passed or were skipped."""
    report = report_of(None if operation.result is None else bytes(operation.result))
    if report is None:
        return "the result has no JUnit report of tests"
    failed = report.failures + report.errors
    total = failed + report.skipped + report.passed
    if not total:
        return "no test ran"
    if not failed:
        return None
    names = [test.name for test in report.failed[:_MAX_FAILED]]
    return f"{failed} of {total} tests failed: {', '.join(names)}{', …' * (failed > len(names))}"


def _has_finished(operation: OperationDocument) -> bool:
    return operation.state not in UNFINISHED


@operations.command("list")
@click.argument("name", required=False)
@click.option("--pool", metavar="POOL", help="Only those that were requested of this pool.")
@click.option("--schedule", metavar="ID", help="Only those of this schedule.")
@click.option("--state", type=_STATES)
@click.option("--kind", type=_KINDS)
@click.option("--requested-by", metavar="USER", help="Only those that this user requested.")
@click.option("--since", type=MOMENT, help="Only those requested then or later.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@with_admin
async def list_operations(
    admin: Admin,
    name: str | None,
    state: str | None,
    kind: str | None,
    *,
    pool: str | None,
    schedule: str | None,
    requested_by: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the operations of all ICEs or of one, newest first."""
    if name is not None:
        await admin.ice(name)  # refuse an unknown name
    filters = {
        "ice_name": name,
        "pool": pool,
        "schedule": schedule,
        "state": state,
        "kind": kind,
        "requested_by": requested_by,
        "since": None if since is None else to_text(since),
    }
    query = [(field, value) for field, value in filters.items() if value is not None]
    found: list[OperationDocument] = []
    async for page in admin.operations(query, limit=limit, brief=not as_json):
        found += page
    if as_json:
        show_json(found)
        return
    shown = (
        "id",
        "ice_name",
        "pool",
        "kind",
        "state",
        "waits",
        "requested_by",
        "created",
        "finished",
    )
    show_table(
        ("ID", "ICE", "POOL", "KIND", "STATE", "WAITS", "BY", "CREATED", "FINISHED"),
        [[getattr(operation, field) for field in shown] for operation in found],
    )


@operations.command()
@click.argument("operation_id", metavar="ID")
@json_option
@with_admin
async def show(admin: Admin, operation_id: str, *, as_json: bool) -> None:
    """Show one operation with its progress and result."""
    document = await admin.operation(operation_id)
    if as_json:
        show_json(document)
        return
    show_members(document)


@operations.command("log")
@click.argument("operation_id", metavar="ID")
@with_admin
async def show_log(admin: Admin, operation_id: str) -> None:
    """Print what the ICE logged of an operation, the newest part of it.

    On a terminal, characters that could control it are shown as escapes.
    """
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    try:
        with writing(sys.stdout):
            async for text in admin.operation_log(operation_id):
                shown = printable_lines(text) if on_terminal else text
                sys.stdout.buffer.write(shown.encode())
            sys.stdout.buffer.flush()
    except Unwritable as error:
        refuse(f"the log could not be written to stdout: {error}")


@operations.command()
@click.argument("operation_id", metavar="ID")
@with_admin
async def cancel(admin: Admin, operation_id: str) -> None:
    """Cancel an operation; the gateway asks the ICE to stop."""
    await admin.cancel(operation_id)


def _reason(operation: OperationDocument) -> str:
    """Why an operation did not succeed, on one line."""
    if operation.error is None:
        return f"the operation has {operation.state}"
    stored = bytes(operation.error)
    try:
        error = msgspec.json.decode(stored, type=_Error)
        text = f"{error.code}: {error.message}"
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # an ICE may send any JSON
        text = stored.decode(errors="replace")
    line = printable_line(text)
    return f"{operation.state}: {line if len(line) <= _MAX_REASON else line[:_MAX_REASON] + '…'}"


async def _follow(admin: Admin, operation: OperationDocument) -> OperationDocument:
    """Show log, progress and why it waits of an operation until it has finished; return its last state."""
    last, said = operation, operation.waits
    with _progress_display() as (show, print_line):
        show(operation)
        log = _whole_lines(print_line)
        try:
            async for news in admin.follow(operation):
                if isinstance(news, str):
                    log(news)
                    continue
                last = news
                if last.waits not in (None, said):
                    said = last.waits
                    print_line(f"ice-gateway: {_why_it_waits(last)}")
                if not _has_finished(last):
                    show(last)
            log("")
        except asyncio.CancelledError:
            print_notice(f"the operation goes on: ice-gateway operations show {operation.id}")
            sys.exit(_INTERRUPTED)
    return last


def _whole_lines(print_line: Callable[[str], None]) -> Callable[[str], None]:
    """A function that takes the texts of a log and prints each line when it is whole or long; an empty text ends it."""
    rest = ""

    def take(text: str) -> None:
        nonlocal rest
        *lines, rest = (rest + text).split("\n")
        if len(rest) > _LONG_LINE or (rest and not text):
            lines, rest = [*lines, rest], ""
        for line in lines:
            print_line(printable_lines(line.removesuffix("\r")))

    return take


@contextlib.contextmanager
def _progress_display() -> Iterator[
    tuple[Callable[[OperationDocument], None], Callable[[str], None]]
]:
    """A function that shows progress, and one that prints a line.

    Progress is a bar on a terminal, otherwise a line for each change.
    """
    if not sys.stderr.isatty():
        yield _line_by_line(), print_stderr
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

        def show(operation: OperationDocument) -> None:
            fraction, message = _progress(operation)
            bar.update(
                task,
                description=operation.state,
                total=None if fraction is None else 1.0,
                completed=fraction or 0,
                message=message,
            )

        yield (
            show,
            lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
        )


def _line_by_line() -> Callable[[OperationDocument], None]:
    last = ""

    def show(operation: OperationDocument) -> None:
        nonlocal last
        fraction, message = _progress(operation)
        percent = "" if fraction is None else f"{fraction:.0%}"
        line = " ".join(part for part in (operation.state, percent, message) if part)
        if line != last:
            last = line
            print_notice(line)

    return show


def _progress(operation: OperationDocument) -> tuple[float | None, str]:
    progress = operation.progress
    if progress is None:
        return None, ""
    return progress.fraction, printable(progress.message or "")
