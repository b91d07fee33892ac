"""`ice-gateway pools`: ICEs that have the same labels, any of which may get an operation.

Tested in tests/gateway/cli/test_pools.py.
"""

from __future__ import annotations

import click

from gateway.cli.admin_port import Admin
from gateway.cli.output import print_stderr, show_json, show_members, show_table
from gateway.cli.parameters import json_option, label_changes
from gateway.cli.target import with_admin
from gateway.core.ice import IceType
from gateway.core.labels import labels_text
from gateway.services.pool_schemas import PoolDocument


@click.group()
def pools() -> None:
    """Make, list, show, change and delete pools of ICEs."""


@pools.command("list")
@json_option
@with_admin
async def list_pools(admin: Admin, *, as_json: bool) -> None:
    """List all pools, with the numbers of their ICEs."""
    found = [pool async for page in admin.pools() for pool in page]
    if as_json:
        show_json(found)
        return
    show_table(
        ("NAME", "TYPE", "LABELS", "ICES", "CONNECTED", "BUSY", "DESCRIPTION"),
        [
            (
                pool.name,
                pool.ice_type,
                _labels(pool),
                str(pool.ices.total),
                str(pool.ices.connected),
                str(pool.ices.busy),
                pool.description,
            )
            for pool in found
        ],
    )


def _labels(pool: PoolDocument) -> str:
    return labels_text(f"{key}={value}" for key, value in pool.labels.items())


@pools.command()
@click.argument("name")
@json_option
@with_admin
async def show(admin: Admin, name: str, *, as_json: bool) -> None:
    """Show one pool; `ices list --pool NAME` lists its ICEs."""
    document = await admin.pool(name)
    if as_json:
        show_json(document)
    else:
        show_members(document)


@pools.command("set")
@click.argument("name")
@click.option(
    "--label",
    multiple=True,
    required=True,
    metavar="KEY=VALUE",
    help="A label that the ICEs have; may be repeated: they have all of them.",
)
@click.option(
    "--type",
    "ice_type",
    type=click.Choice([kind.value for kind in IceType]),
    help="Only ICEs of this type; without it, of both.",
)
@click.option("--description", default="", help="What people should know of the pool.")
@with_admin
async def set_pool(
    admin: Admin, name: str, *, label: tuple[str, ...], ice_type: str | None, description: str
) -> None:
    """Make the pool NAME, or replace its labels, type and description."""
    wanted = {"labels": label_changes(label), "ice_type": ice_type, "description": description}
    ices = (await admin.set_pool(name, wanted)).ices
    print_stderr(f"{name}: ICEs: {ices.total}, connected: {ices.connected}, busy: {ices.busy}")


@pools.command()
@click.argument("name")
@with_admin
async def delete(admin: Admin, name: str) -> None:
    """Delete a pool in which no operation waits, and revoke its API tokens; its ICEs stay."""
    await admin.delete_pool(name)
