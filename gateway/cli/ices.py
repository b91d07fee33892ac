"""`ice-gateway ices`: acts on ICEs in the database; a running gateway follows within a second.

Tested in tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

from dataclasses import replace

import click

from gateway.cli.common import (
    CommandContext,
    json_option,
    on_database,
    on_new_database,
    print_notice,
    print_output,
    show_json,
    show_table,
    unwrap,
)
from gateway.core.accounts import fold_user
from gateway.core.ice import IceType, Status
from gateway.core.times import utc_now
from gateway.services.provisioning import Done, Issued
from gateway.services.schemas import IceDocument, ice_document
from gateway.store.ice_listing import BY_NAME, IceFilter, Ices, Listed, Mark

_PAGE = 1000


@click.group()
def ices() -> None:
    """Provision, list, reprovision, reregister, deregister and disconnect ICEs."""


@ices.command()
@click.argument("name")
@click.option(
    "--type",
    "ice_type",
    type=click.Choice([kind.value for kind in IceType]),
    required=True,
    help="normal: a person works with it; ci-cd: machines do.",
)
@click.option("--user", help="The user a normal ICE belongs to.")
@on_new_database
async def provision(context: CommandContext, name: str, ice_type: str, user: str | None) -> None:
    """Provision an ICE and print only its registration token, which is never shown again."""
    issued = unwrap(
        await context.services.provisioning.provision(context.actor, name, IceType(ice_type), user)
    )
    _show_token(issued)


@ices.command("list")
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--type", "ice_type", type=click.Choice([kind.value for kind in IceType]))
@click.option("--user", help="Only ICEs tagged to this user.")
@click.option(
    "--connected/--not-connected", default=None, help="Only ICEs that are (not) connected."
)
@json_option
@on_database
async def list_ices(
    context: CommandContext,
    status: str | None,
    ice_type: str | None,
    user: str | None,
    *,
    connected: bool | None,
    as_json: bool,
) -> None:
    """List ICEs by name."""
    table = Ices(context.engine)
    where = IceFilter(
        status=Status(status) if status else None,
        ice_type=IceType(ice_type) if ice_type else None,
        provisionedto=None if user is None else fold_user(user),
    )
    listings: list[Listed] = []
    after: Mark | None = None
    while page := await table.page(where, _PAGE, after=after):
        listings += page
        after = Mark.of(page[-1], BY_NAME)
    found = await _documents(context, listings)
    if connected is not None:
        found = [ice for ice in found if (ice.connection is not None) is connected]
    if as_json:
        show_json(found)
        return
    show_table(
        ("NAME", "TYPE", "USER", "STATUS", "CONNECTED", "PROVISIONED"),
        [
            (
                ice.ice_name,
                ice.ice_type,
                ice.provisionedto,
                ice.status,
                ice.connection.since if ice.connection else None,
                ice.provisionedon,
            )
            for ice in found
        ],
    )


@ices.command()
@click.argument("name")
@json_option
@on_database
async def show(context: CommandContext, name: str, *, as_json: bool) -> None:
    """Show one ICE."""
    [document] = await _documents(context, [await context.listed(name)])
    if as_json:
        show_json(document)
        return
    connection = document.connection
    lines = [
        f"{field:<15}{getattr(document, field) or '-'}"
        for field in document.__struct_fields__
        if field != "connection"
    ]
    connected = f"since {connection.since} from {connection.address}" if connection else "-"
    print_output("\n".join([*lines, f"{'connection':<15}{connected}"]))


def _add_action(action: str, summary: str) -> None:
    @ices.command(action, help=summary)
    @click.argument("name")
    @on_database
    async def act(context: CommandContext, name: str) -> None:
        ice = await context.ice(name)
        done = unwrap(await context.services.provisioning.actions[action](context.actor, ice))
        _warn_unconfirmed(done)
        if isinstance(done, Issued):
            _show_token(done)


for _action, _summary in {
    "reprovision": "Replace a token that was lost before registration; print the new one.",
    "reregister": "Let an ICE that crashed or moved register again; print its new token.",
    "deregister": "Deactivate an ICE that is no longer wanted; drop its connection.",
    "disconnect": "Close an ICE's connection; the ICE may reconnect.",
}.items():
    _add_action(_action, _summary)


def _warn_unconfirmed(done: Done) -> None:
    if done.unconfirmed:
        print_notice(f"not confirmed yet by {', '.join(done.unconfirmed)}")


def _show_token(issued: Issued) -> None:
    name = issued.ice.ice_name
    print_output(
        issued.token.reveal(),
        done=f"{name} is {issued.ice.status}",
        remedy=f"its token is lost: `ice-gateway ices reprovision {name}` makes another",
    )


async def _documents(context: CommandContext, found: list[Listed]) -> list[IceDocument]:
    # A gateway that crashed leaves its connections in the table.
    if any(listed.connection for listed in found) and not await context.engine.is_served():
        found = [replace(listed, connection=None) for listed in found]
    now = utc_now()
    return [ice_document(listed, now) for listed in found]
