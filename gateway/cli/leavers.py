"""`users disable --ices`: reads what becomes of a leaver's ICEs, and says what became of them.

Tested in tests/gateway/cli/test_leavers.py.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from gateway.cli.admin_port import Admin, AnswerLost, Disabled
from gateway.cli.many_ices import count, some
from gateway.cli.output import print_notice, print_output, refuse
from gateway.cli.parameters import FOLDER, Parsed
from gateway.cli.token_folder import TokenFolder
from gateway.core.ice import Status
from gateway.services.leavers import became
from gateway.store.engine import StoreUnavailable

_OPTION: Final = "--ices"
_TO: Final = "to"
_SIMPLE: Final = ("keep", "deregister")
_METAVAR: Final = "|".join((*_SIMPLE, f"{_TO} USER"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What becomes of the ICEs: `keep`, `deregister`, or for `to` the next user."""

    what: str
    next_user: str | None = None

    @property
    def body(self) -> object:
        """The `ices` of PATCH /users/{name}."""
        return self.what if self.next_user is None else {_TO: self.next_user}


def _wanted(text: str) -> Wanted:
    """The value of the option, whose two words `DisableCommand` has joined. Raises ValueError."""
    what, _, user = text.partition(" ")
    if text in _SIMPLE:
        return Wanted(text)
    if what == _TO and user:
        return Wanted(what, user)
    raise ValueError


class DisableCommand(click.Command):
    """A command whose option `--ices` takes a second word after `to`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the two words, so that no user name is taken for the argument."""
        return super().parse_args(ctx, _joined(args))


def _joined(args: list[str]) -> list[str]:
    end = args.index("--") if "--" in args else len(args)
    for place in range(end):
        if args[place] == f"{_OPTION}={_TO}":
            start = place
        elif args[place : place + 2] == [_OPTION, _TO]:
            start = place + 1
        else:
            continue
        return [*args[:start], " ".join(args[start : start + 2]), *args[start + 2 :]]
    return args


ices_option = click.option(
    _OPTION,
    "wanted",
    type=Parsed("ices", _wanted, f"{{!r}} is none of {_METAVAR}"),
    metavar=_METAVAR,
    default=Wanted(_SIMPLE[0]),
    help="What becomes of their ICEs: they stay (the default), are deregistered, or belong to another user.",
)
tokens_option = click.option(
    "--tokens",
    type=FOLDER,
    metavar="DIR",
    help="With --ices to: the folder that gets a file NAME.token for each ICE.",
)


async def disable_leaver(admin: Admin, name: str, wanted: Wanted, tokens: Path | None) -> None:
    """Disable a user and say what became of their ICEs; new tokens are written to the folder."""
    if (wanted.next_user is None) is not (tokens is None):
        raise click.UsageError("--ices to USER needs --tokens, and --tokens needs it")
    folder = None if tokens is None else TokenFolder(tokens)
    if folder is not None:
        await _check(admin, name, folder)
    try:
        done = await admin.disable_user(name, wanted.body)
    except (AnswerLost, StoreUnavailable) as error:
        if folder is None:
            raise
        refuse(
            f"{error}; it is not known whether it was done. `ice-gateway ices list --user"
            f" {wanted.next_user}` says who has the ICEs: reprovision those that are provisioned"
        )
    if done.left.unconfirmed:
        print_notice(f"not confirmed yet by {', '.join(done.left.unconfirmed)}")
    if folder is not None:
        _write(folder, done)
    names: dict[str, list[str]] = {}
    for ice in done.left.items:
        names.setdefault(became(ice.action, ice.status), []).append(ice.ice_name)
    lines = [
        line
        for sentence, found in names.items()
        for line in (f"ICEs of {done.user}, {sentence}:", *found)
    ]
    if lines:
        print_output("\n".join(lines), done=f"{done.user} is disabled")


async def _check(admin: Admin, name: str, folder: TokenFolder) -> None:
    """Refuse a folder that cannot take the tokens, before anything is changed."""
    try:
        folder.make()
        with tempfile.TemporaryFile(dir=folder.path):
            pass
        async for page in admin.ices([("provisionedto", name)]):
            for ice in page:
                if ice.status is not Status.DEREGISTERED and folder.holds(ice.ice_name):
                    refuse(f"{folder.file(ice.ice_name)} is there already; nothing was done")
    except OSError as error:
        refuse(f"{folder.path} cannot be used: {error.strerror}; nothing was done", os.EX_CONFIG)


def _write(folder: TokenFolder, done: Disabled) -> None:
    """Write the new tokens; a failure ends the command with status 1."""
    tokens = [(ice.ice_name, ice.token) for ice in done.left.items if ice.token is not None]
    try:
        failed = folder.write(tokens)
    except OSError as error:
        failed = {name: error.strerror or str(error) for name, _ in tokens}
    if failed:
        reasons = ", ".join(sorted(set(failed.values())))
        refuse(
            f"{done.user} is disabled, but the tokens of {count(len(failed))} could not be written"
            f" ({reasons}): {some(list(failed))}; `ice-gateway ices reprovision` makes others"
        )
