"""`ice-gateway keys`: the life of the token keys; a running gateway follows within a second."""

from __future__ import annotations

import click

from gateway.cli.common import Desk, json_option, on_database, refuse, say, show_json, show_table
from gateway.core.times import to_text_or_none, utc_now
from gateway.services.key_rotation import KeyRefused, Keys


@click.group()
def keys() -> None:
    """List, add, promote and retire the keys that seal registration tokens."""


def _keys(desk: Desk) -> Keys:
    return Keys(engine=desk.engine, path=desk.settings.key_file, clock=utc_now)


@keys.command("list")
@json_option
@on_database
async def list_keys(desk: Desk, *, as_json: bool) -> None:
    """List the keys, the oldest first, and how many ICEs need each."""
    states = await _keys(desk).list()
    if as_json:
        show_json(
            [
                {
                    "key": state.kid,
                    "made": to_text_or_none(state.made),
                    "seals": state.seals,
                    "ices": state.ices,
                }
                for state in states
            ]
        )
        return
    show_table(
        ("KEY", "MADE", "DOES", "ICES"),
        [
            (
                state.kid,
                to_text_or_none(state.made),
                "opens and seals" if state.seals else "opens",
                str(len(state.ices)),
            )
            for state in states
        ],
    )


@keys.command()
@on_database
async def rotate(desk: Desk) -> None:
    """Add a key that opens tokens, and print its id; `promote` has it seal."""
    kid = await _keys(desk).rotate(desk.actor)
    say(kid, done="a key is added", remedy="`ice-gateway keys list` shows it")


@keys.command()
@click.argument("key", required=False)
@on_database
async def promote(desk: Desk, key: str | None) -> None:
    """Seal new tokens with KEY, or with the newest key."""
    _unless_refused(await _keys(desk).promote(desk.actor, key))


@keys.command()
@click.argument("key")
@on_database
async def retire(desk: Desk, key: str) -> None:
    """Take KEY away; refused while ICEs need it, which are listed."""
    _unless_refused(await _keys(desk).retire(desk.actor, key))


def _unless_refused(done: str | KeyRefused | None) -> None:
    if isinstance(done, KeyRefused):
        if done.ices:
            say("\n".join(done.ices), done=done.sentence)
        refuse(done.sentence)
