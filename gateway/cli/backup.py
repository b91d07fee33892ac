"""`ice-gateway backup` and `ice-gateway restore`.

Tested in tests/gateway/services/test_restore.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from gateway.cli.common import (
    CommandContext,
    current_actor,
    on_database,
    open_context,
    run,
    with_settings,
)
from gateway.cli.output import print_notice, print_output, refuse, show_table
from gateway.cli.parameters import FOLDER
from gateway.core.times import to_text, utc_now
from gateway.runtime.settings import Settings
from gateway.services.backup import Backup, BackupRefused, GatewayFiles, back_up
from gateway.services.restore import Restored, Review, confirm, review, without_key
from gateway.services.restore import restore as put_back
from gateway.store import key_file

_RESTORED: Final = "the backup is restored, no ICE is admitted until `restore --confirm`"


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@on_database
async def backup(context: CommandContext, folder: Path) -> None:
    """Copy the database and the key file into DIR, which must be new, while a gateway may run.

    The backup holds the keys of all tokens: keep it as safe as the gateway itself.
    """
    place = GatewayFiles.of(context.settings)
    try:
        manifest = await back_up(context.engine, place, folder, context.actor, utc_now)
    except BackupRefused as error:
        refuse(str(error))
    print_output(
        f"backup of {manifest.at} in {folder}: schema {manifest.schema}\n"
        f"head of its audit log, to be kept elsewhere, too: {manifest.head}",
        done=f"the backup is in {folder}",
    )


@click.command()
@click.argument("folder", metavar="(DIR | --confirm)", type=FOLDER, required=False)
@click.option(
    "--confirm",
    "confirming",
    is_flag=True,
    help="List what a restored table may have revived, then let ICEs be admitted again.",
)
@click.option("--yes", is_flag=True, help="With --confirm: do not ask.")
@with_settings
def restore(settings: Settings, folder: Path | None, *, confirming: bool, yes: bool) -> None:
    """Put the backup in DIR in the place of the database, while no gateway runs.

    The database that was there is put aside, not lost. No ICE is admitted until `restore --confirm`.
    """
    if (folder is None) is not confirming or (yes and not confirming):
        raise click.UsageError(
            "give either DIR, or --confirm (with --yes where there is no terminal)"
        )
    if folder is None:
        run(_confirm(settings, yes=yes))
    else:
        run(_restore(settings, folder))


async def _restore(settings: Settings, folder: Path) -> None:
    try:
        done = await put_back(
            Backup.find(folder), GatewayFiles.of(settings), current_actor(), utc_now
        )
    except BackupRefused as error:
        refuse(str(error))
    _show_restored(done)
    async with open_context(settings) as context:
        found = await review(context.engine.fetch, utc_now())
        if found is not None:
            _show(found, await _without_key(context), done=_RESTORED)
    print_notice(
        "no ICE is admitted until: ice-gateway restore --confirm --database"
        f" {settings.database_shown}"
    )


def _show_restored(done: Restored) -> None:
    manifest = done.manifest
    lines = [f"restored the backup of {manifest.at} (head of its audit log: {manifest.head})"]
    if done.database_aside is not None:
        lines.append(f"the database that was there is now {done.database_aside}")
    if done.keys_aside is not None:
        lines.append(
            f"the key file now has the backup's keys, too; the old file is {done.keys_aside}"
        )
    print_output("\n".join(lines), done=_RESTORED)


async def _confirm(settings: Settings, *, yes: bool) -> None:
    async with open_context(settings, create=False) as context:
        found = await review(context.engine.fetch, utc_now())
        if found is None:
            refuse("nothing waits for a confirmation: the database is no copy, or was confirmed")
        _show(found, await _without_key(context))
        if not yes:
            if not sys.stdin.isatty():
                refuse(
                    "there is no terminal to ask on, so nothing was confirmed: look, then add --yes"
                )
            if not click.confirm("Let ICEs be admitted again?"):
                refuse("nothing was confirmed: no ICE is admitted")
        if not await confirm(context.engine, found, context.actor, utc_now):
            refuse("another admin has confirmed it meanwhile")
    print_output("confirmed: ICEs are admitted again", done="ICEs are admitted again")


async def _without_key(context: CommandContext) -> list[str]:
    ring = key_file.read(context.settings.key_file)
    return [] if ring is None else await without_key(context.engine.fetch, ring)


def _show(found: Review, without: Sequence[str], *, done: str = "") -> None:
    if without:
        print_output(
            f"The key of their tokens was retired, so reprovision them: {', '.join(without)}",
            done=done,
        )
    copied = to_text(found.mark.copied)
    if found.reasons:
        heading = (
            f"What was taken back after {copied} cannot be told: {'; '.join(found.reasons)}.\n"
            "So this is all that is good in the restored table:"
        )
    elif found.found:
        heading = f"Taken back after {copied}, and good again in the restored table:"
    else:
        heading = f"Nothing was taken back after {copied}, as {' and '.join(found.compared)} shows."
    print_output(heading, done=done)
    if not found.found:
        return
    show_table(
        ("WHAT", "NAME", "NOW", "SINCE THEN"),
        [(item.what, item.name, item.now, item.since) for item in found.found],
        done=done,
    )
    print_output(
        "What must not come back: deregister (or reprovision), disable, revoke it. Then confirm.",
        done=done,
    )
