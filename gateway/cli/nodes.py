"""`ice-gateway nodes`: lists, drains and resumes the gateways of one database.

Tested in tests/cluster/test_cluster.py.
"""

from __future__ import annotations

from dataclasses import replace

import click
import msgspec

from gateway.cli.common import (
    CommandContext,
    on_database,
    print_notice,
    print_output,
    show_list,
    unwrap,
)
from gateway.services.schemas import node_document


@click.group()
def nodes() -> None:
    """List the gateways that serve one database; drain or resume one."""


@nodes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
async def list_nodes(context: CommandContext, *, as_json: bool) -> None:
    """List the nodes; a node that is gone ended without a clean shutdown."""
    found = await context.services.nodes.all()
    if context.engine.shared and not await context.engine.is_served():
        found = [replace(node, gone=True) for node in found]  # no node is left to mark them
    if not found and not as_json:
        print_notice(
            "no node serves this database; a single gateway on an SQLite file is not a node"
        )
        return
    documents = [msgspec.structs.asdict(node_document(node)) for node in found]
    show_list(
        documents,
        ("NAME", "STATE", "ICES", "LEASE", "SEEN", "VERSION", "SINCE", "URL"),
        as_json=as_json,
        lease_left=lambda seconds: f"{seconds:.0f} s" if seconds else None,
    )


@nodes.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Drain the last node that serves, too.")
@on_database
async def drain(context: CommandContext, name: str, *, force: bool) -> None:
    """Let the node NAME admit no ICE and send its ICEs to the others, until `resume`."""
    await _set_draining(context, name, draining=True, force=force)


@nodes.command()
@click.argument("name")
@on_database
async def resume(context: CommandContext, name: str) -> None:
    """Let a drained node admit ICEs again."""
    await _set_draining(context, name, draining=False)


async def _set_draining(
    context: CommandContext, name: str, *, draining: bool, force: bool = False
) -> None:
    done = unwrap(
        await context.services.nodes.set_draining(
            context.actor, name, draining=draining, force=force
        )
    )
    again = "" if done.changed else " already"
    if not draining:
        summary = f"{name} serves{again}"
    elif done.others:
        summary = f"{name} is drained{again}: its ICEs go to the other nodes"
    else:
        summary = f"{name} is drained{again}; no other node serves, so its ICEs wait"
    print_output(summary, done=summary)
