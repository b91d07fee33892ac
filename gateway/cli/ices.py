"""`ice-gateway ices`: acts on ICEs, on a database or over the API; a running gateway follows within a second.

Tested in tests/gateway/cli/test_cli.py and tests/gateway/cli/test_url.py.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path

import click

from gateway.cli.admin_port import Admin, Body
from gateway.cli.fleet import Fleet
from gateway.cli.many_ices import act_on_many
from gateway.cli.output import print_notice, print_output, show_json, show_members, show_table
from gateway.cli.parameters import FILE, FOLDER, MOMENT, Parsed, json_option, label_changes
from gateway.cli.target import with_admin, with_admin_of_new
from gateway.cli.token_folder import TokenFolder
from gateway.core.attention import Attention
from gateway.core.ice import IceType, Status
from gateway.core.times import to_text
from gateway.core.version_key import version_key
from gateway.services.schemas import (
    ConnectionDocument,
    IceDocument,
    PauseDocument,
    Provisioned,
    Renewed,
)


def _label(text: str) -> str:
    label_changes([text])
    return text


def _version(text: str) -> str:
    if version_key(text) is None:
        raise ValueError
    return text


_VERSION = Parsed("version", _version, "{!r} is no version as PEP 440 writes it, such as 2.4")
_SORTED_BY = ("name", "lastseen", "version", "provisionedon")


@click.group()
def ices() -> None:
    """Provision, list, label, pause, resume, reprovision, reregister, deregister and disconnect ICEs."""


@ices.command()
@click.argument("name", required=False)
@click.option(
    "--type",
    "ice_type",
    type=click.Choice([kind.value for kind in IceType]),
    help="normal: a person works with it; ci-cd: machines do.",
)
@click.option("--user", help="The user a normal ICE belongs to.")
@click.option(
    "--from",
    "file",
    type=FILE,
    help="Instead of NAME: a CSV file with the columns ice_name, ice_type, user and labels.",
)
@click.option(
    "--tokens",
    type=FOLDER,
    metavar="DIR",
    help="With --from: the folder that gets a file NAME.token for each ICE.",
)
@click.option("--add-users", is_flag=True, help="With --from: add missing users, as members.")
@click.option(
    "--reprovision-unused",
    is_flag=True,
    help="With --from: make tokens anew for provisioned ICEs without a token file.",
)
@with_admin_of_new
async def provision(
    admin: Admin,
    name: str | None,
    *,
    ice_type: str | None,
    user: str | None,
    file: Path | None,
    tokens: Path | None,
    add_users: bool,
    reprovision_unused: bool,
) -> None:
    """Provision an ICE and print only its registration token, which is never shown again."""
    if (name is None) is (file is None):
        raise click.UsageError("needs either NAME or --from")
    if file is None:
        if tokens is not None or add_users or reprovision_unused:
            raise click.UsageError("--tokens, --add-users and --reprovision-unused need --from")
        if ice_type is None:
            raise click.UsageError("Missing option '--type'")
        new = {"ice_name": name, "ice_type": ice_type, "provisionedto": user}
        _show_token(await admin.provision(new))
        return
    if ice_type is not None or user is not None:
        raise click.UsageError("--from takes type and user from the file")
    if tokens is None:
        raise click.UsageError("--from needs --tokens")
    fleet = Fleet(
        admin,
        TokenFolder(tokens),
        add_users=add_users,
        reprovision_unused=reprovision_unused,
    )
    await fleet.provision(file)


@ices.command("list")
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--type", "ice_type", type=click.Choice([kind.value for kind in IceType]))
@click.option("--user", "provisionedto", help="Only ICEs tagged to this user.")
@click.option(
    "--connected/--not-connected", default=None, help="Only ICEs that are (not) connected."
)
@click.option(
    "--inactive/--not-inactive", default=None, help="Only ICEs that were (not) unseen for long."
)
@click.option("--paused/--not-paused", default=None, help="Only ICEs that are (not) paused.")
@click.option(
    "--search",
    "--q",
    "q",
    metavar="WORDS",
    help="Words in name, user, host name, address, labels or note.",
)
@click.option(
    "--label",
    multiple=True,
    type=Parsed("KEY=VALUE", _label),
    help="May be repeated; all must hold.",
)
@click.option("--pool", help="Only ICEs of this pool.")
@click.option("--attention", type=click.Choice([reason.value for reason in Attention]))
@click.option("--version-below", type=_VERSION, help="Only ICEs with an older version.")
@click.option("--lastseen-before", type=MOMENT, help="RFC 3339 with a zone.")
@click.option("--lastseen-after", type=MOMENT, help="RFC 3339 with a zone.")
@click.option(
    "--sort",
    type=click.Choice([f"{sign}{key}" for key in _SORTED_BY for sign in ("", "-")]),
    default="name",
    show_default=True,
    help="With - in descending order.",
)
@json_option
@with_admin
async def list_ices(admin: Admin, *, as_json: bool, **filters: object) -> None:
    """List ICEs; `show` and --json print everything that is known of one."""
    found: list[IceDocument] = []
    async for page in admin.ices(_query(filters)):
        found += page
    if as_json:
        show_json(found)
        return
    show_table(
        ("NAME", "TYPE", "USER", "STATUS", "LAST SEEN", "VERSION"),
        [
            (
                ice.ice_name,
                ice.ice_type,
                ice.provisionedto,
                ice.status,
                "connected" if ice.connection else _to_the_second(ice.lastseen),
                _version_of(ice),
            )
            for ice in found
        ],
    )


def _to_the_second(moment: str | None) -> str | None:
    """A time of a document in 20 characters, so that a listing fits a terminal."""
    return None if moment is None else f"{moment.partition('.')[0]}Z"


def _version_of(ice: IceDocument) -> str | None:
    """The version of an ICE, or the last that was known."""
    said = ice.connection or ice.last
    return None if said is None else said.version


def _query(filters: dict[str, object]) -> list[tuple[str, str]]:
    """The options of a listing as parameters of the API."""
    query: list[tuple[str, str]] = []
    for name, given in filters.items():
        if isinstance(given, bool):
            query.append((name, str(given).lower()))
        elif isinstance(given, tuple):
            query += [(name, str(each)) for each in given]
        elif given is not None:
            query.append((name, to_text(given) if isinstance(given, datetime) else str(given)))
    return query


@ices.command()
@click.argument("name")
@json_option
@with_admin
async def show(admin: Admin, name: str, *, as_json: bool) -> None:
    """Show one ICE."""
    document = await admin.ice(name)
    if as_json:
        show_json(document)
        return
    show_members(
        document,
        connection=_connection_text,
        paused=_pause_text,
    )


def _connection_text(connection: ConnectionDocument) -> str:
    """Since when and from where, and what its user lets others send if that is not every kind."""
    text = f"since {connection.since} from {connection.address}"
    if connection.accepts is None:
        return text
    return f"{text}; others may send: {', '.join(connection.accepts) or 'nothing'}"


def _pause_text(pause: PauseDocument) -> str:
    until = "until it is resumed" if pause.until is None else f"until {pause.until}"
    return f"by {pause.by} since {pause.at}, {until}" + (pause.note and f": {pause.note}")


@ices.command()
@click.argument("name")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@with_admin
async def label(admin: Admin, name: str, changes: tuple[str, ...]) -> None:
    """Set labels of an ICE; KEY- removes one."""
    await admin.describe(name, {"labels": label_changes(changes, removals=True)})


@ices.command()
@click.argument("name")
@click.argument("text")
@with_admin
async def note(admin: Admin, name: str, text: str) -> None:
    """Set the note of an ICE, for people; an empty TEXT removes it."""
    await admin.describe(name, {"note": text})


def _add_renewal(action: str, summary: str) -> None:
    @ices.command(action, help=summary)
    @click.argument("name")
    @click.option("--user", help="The user that the ICE belongs to from now on.")
    @with_admin
    async def renew(admin: Admin, name: str, user: str | None) -> None:
        done = await admin.renew(action, name, {} if user is None else {"provisionedto": user})
        _warn_unconfirmed(done.unconfirmed)
        _show_token(done)


def _one_or_many(action: str) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Let a command for one ICE, which takes (admin, NAME, more), act on those that `--where` finds, too.

    `more` are the command's own options, which the body of the API has under the same names.
    """

    def decorated(one: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @click.argument("name", required=False)
        @click.option(
            "--where",
            multiple=True,
            metavar="FILTER=VALUE",
            help="Instead of NAME: ICEs that a filter of the API finds; may be repeated.",
        )
        @click.option(
            "--dry-run", is_flag=True, help="With --where: print their names, do nothing."
        )
        @click.option("--yes", is_flag=True, help="With --where: do not ask.")
        @with_admin
        @functools.wraps(one)
        async def act(
            admin: Admin,
            name: str | None,
            *,
            where: tuple[str, ...],
            dry_run: bool,
            yes: bool,
            **more: object,
        ) -> None:
            given = {field: value for field, value in more.items() if value is not None}
            if (name is None) is (not where):
                raise click.UsageError("needs either NAME or --where")
            if name is None:
                await act_on_many(admin, action, where, dry_run=dry_run, yes=yes, more=given)
                return
            if dry_run or yes:
                raise click.UsageError("--dry-run and --yes need --where")
            await one(admin, name, given)

        return act

    return decorated


def _add_end(action: str, summary: str) -> None:
    @ices.command(action, help=summary)
    @_one_or_many(action)
    async def end(admin: Admin, name: str, _: Body) -> None:
        _warn_unconfirmed((await admin.end(action, name)).unconfirmed)


@ices.command()
@click.option("--until", type=MOMENT, help="RFC 3339 with a zone; by default until it is resumed.")
@click.option("--note", metavar="TEXT", help="Why, for people.")
@_one_or_many("pause")
async def pause(admin: Admin, name: str, given: Body) -> None:
    """Send an ICE nothing new; it stays connected, and what runs goes on."""
    await admin.set_pause("pause", name, given)


@ices.command()
@_one_or_many("resume")
async def resume(admin: Admin, name: str, given: Body) -> None:
    """End the pause of an ICE."""
    before = await admin.ice(name)
    await admin.set_pause("resume", name, given)
    if before.paused is None:
        print_notice(f"{before.ice_name} was not paused")


for _add, _action, _summary in (
    (
        _add_renewal,
        "reprovision",
        "Replace a token that was lost before registration; print the new one.",
    ),
    (
        _add_renewal,
        "reregister",
        "Let an ICE that crashed or moved register again; print its new token.",
    ),
    (_add_end, "deregister", "Deactivate an ICE that is no longer wanted; drop its connection."),
    (_add_end, "disconnect", "Close an ICE's connection; the ICE may reconnect."),
):
    _add(_action, _summary)


def _warn_unconfirmed(unconfirmed: Sequence[str]) -> None:
    if unconfirmed:
        print_notice(f"not confirmed yet by {', '.join(unconfirmed)}")


def _show_token(issued: Provisioned | Renewed) -> None:
    name = issued.ice.ice_name
    print_output(
        issued.token,
        done=f"{name} is {issued.ice.status}",
        remedy=f"its token is lost: `ice-gateway ices reprovision {name}` makes another",
    )
