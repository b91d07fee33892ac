"""`ice-gateway audit`: verifies, exports and prunes the audit log.

Tested in tests/gateway/services/test_audit.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final

import click

from gateway.cli.admin_port import Admin
from gateway.cli.common import CommandContext, on_database
from gateway.cli.output import print_output, refuse, show_json
from gateway.cli.parameters import DURATION, AbsolutePath, Parsed, json_option
from gateway.cli.target import with_admin
from gateway.core.hash_chain import Head
from gateway.core.times import utc_now
from gateway.runtime.standard_streams import Unwritable, writing
from gateway.services.audit_export import FORMATS

_HEAD: Final = Parsed(
    "seq:digest", Head.parse, "a head is what `ice-gateway audit head` printed: SEQ:DIGEST"
)


@click.group()
def audit() -> None:
    """Verify, export and prune the audit log."""


@audit.command()
@json_option
@with_admin
async def head(admin: Admin, *, as_json: bool) -> None:
    """Print number and digest of the newest event; keep them on another machine."""
    newest = await admin.audit_head()
    if as_json:
        show_json(newest)
    else:
        print_output(str(Head(newest.seq, newest.digest)))


@audit.command()
@click.option("--head", "kept", type=_HEAD, help="An earlier output of `audit head`.")
@with_admin
async def verify(admin: Admin, kept: Head | None) -> None:
    """Verify that no event up to the given head was changed or removed."""
    verdict = await admin.audit_verdict(None if kept is None else str(kept))
    if verdict.fault is not None:
        refuse(verdict.fault)
    unproven = f"\nnot proven: {verdict.unproven}" if verdict.unproven else ""
    print_output(f"proven: {verdict.proven}{unproven}")


@audit.command("export")
@click.option(
    "--format", "name", type=click.Choice(FORMATS), default="jsonl", help="By default jsonl."
)
@click.option(
    "--output",
    type=AbsolutePath(dir_okay=False, allow_dash=True),
    default="-",
    help="Write to this file instead of stdout.",
)
@with_admin
async def export_log(admin: Admin, name: str, output: Path) -> None:
    """Write all events, oldest first."""
    target = "stdout" if str(output) == "-" else output
    try:
        with _opened(output) as file:
            async for part in admin.audit_export(name):
                file.write(part)
    except Unwritable as error:
        refuse(f"{target} cannot be written: {error}")
    except OSError as error:
        refuse(f"{target} cannot be written: {error.strerror}")


@contextlib.contextmanager
def _opened(output: Path) -> Iterator[BinaryIO]:
    """stdout, or a file that only its owner can read, since the log names users and addresses."""
    if str(output) == "-":
        with writing(sys.stdout):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(output, flags, 0o600), "wb") as file:
        yield file


@audit.command()
@click.option(
    "--keep",
    type=DURATION,
    required=True,
    metavar="DURATION",
    help="Keep events younger than this, such as 365d.",
)
@on_database
async def prune(context: CommandContext, keep: float) -> None:
    """Delete old events and record a checkpoint, so that the rest of the chain still verifies."""
    before = utc_now() - timedelta(seconds=keep)
    pruned = await context.services.audit.prune(context.actor, before)
    if isinstance(pruned, str):
        refuse(pruned)
    if pruned.count:
        summary = f"pruned {pruned.count} events, up to number {pruned.seq}"
    else:
        summary = "no event is older than that"
    print_output(summary, done=summary)
