"""`ice-gateway keys`: rotates the token keys; a running gateway follows within a second.

Tested in tests/gateway/services/test_key_rotation.py.
"""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli.common import CommandContext, on_database, with_settings
from gateway.cli.output import print_output, refuse, show_list
from gateway.cli.parameters import FILE, json_option
from gateway.core.times import to_text_or_none, utc_now
from gateway.runtime.settings import Settings
from gateway.services.key_rotation import KeyRefused, Keys
from gateway.store import key_file


@click.group()
def keys() -> None:
    """List, add, promote and retire the keys that seal registration tokens."""


def _keys(context: CommandContext) -> Keys:
    return Keys(engine=context.engine, path=context.settings.key_file, clock=utc_now)


@keys.command("list")
@json_option
@on_database
async def list_keys(context: CommandContext, *, as_json: bool) -> None:
    """List the keys, oldest first, with the number of provisioned ICEs that need each."""
    documents = [
        {
            "key": state.kid,
            "made": to_text_or_none(state.made),
            "seals": state.seals,
            "ices": state.ices,
        }
        for state in await _keys(context).list()
    ]
    show_list(
        documents,
        ("KEY", "MADE", "DOES", "ICES"),
        as_json=as_json,
        seals=lambda seals: "opens and seals" if seals else "opens",
        ices=len,
    )


@keys.command()
@click.argument("file", required=False, type=FILE)
@with_settings
def create(settings: Settings, file: Path | None) -> None:
    """Make a new key FILE for a new database, before it is mounted where the gateway cannot write.

    Otherwise the gateway makes its key file itself. Without FILE it is the one of the settings.
    """
    path = (file or settings.key_file).absolute()
    if path.exists():
        refuse(f"{path} is already there, and is not replaced")
    try:
        key_file.create(path)
    except key_file.KeyFileUnusable as error:
        refuse(str(error))


@keys.command()
@on_database
async def rotate(context: CommandContext) -> None:
    """Add a key that opens tokens and print its id; `promote` makes it seal them."""
    kid = await _keys(context).rotate(context.actor)
    print_output(kid, done="a key is added", remedy="`ice-gateway keys list` shows it")


@keys.command()
@click.argument("key", required=False)
@on_database
async def promote(context: CommandContext, key: str | None) -> None:
    """Seal new tokens with KEY, or with the newest key."""
    _unless_refused(await _keys(context).promote(context.actor, key))


@keys.command()
@click.argument("key")
@on_database
async def retire(context: CommandContext, key: str) -> None:
    """Remove KEY; while provisioned ICEs need it, refuse and list them. Registered ICEs go on without it."""
    _unless_refused(await _keys(context).retire(context.actor, key))


def _unless_refused(done: str | KeyRefused | None) -> None:
    if isinstance(done, KeyRefused):
        if done.ices:
            print_output("\n".join(done.ices), done=done.sentence)
        refuse(done.sentence)
