"""`ice-gateway nodes`: who serves the database, drained and resumed."""

from __future__ import annotations

from dataclasses import replace

import click

from gateway.cli.common import (
    CommandContext,
    on_database,
    print_notice,
    print_output,
    show_json,
    show_table,
    unwrap,
)
from gateway.core.times import to_text
from gateway.store.nodes import Node


@click.group()
def nodes() -> None:
    """List the gateways that serve one database; let one drain, or resume."""


@nodes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@on_database
async def list_nodes(context: CommandContext, *, as_json: bool) -> None:
    """List the nodes; one that is gone has ended without saying so."""
    found = await context.services.nodes.all()
    if context.engine.shared and not await context.engine.is_served():
        found = [replace(node, gone=True) for node in found]  # nobody is left to mark them
    if as_json:
        show_json([_document(node) for node in found])
        return
    if not found:
        print_notice("no node serves this database; a gateway alone on an SQLite file is none")
        return
    headings = ("NAME", "STATE", "ICES", "LEASE", "SEEN", "VERSION", "SINCE", "URL")
    show_table(
        headings,
        [
            (
                node.name,
                node.state,
                str(node.connected),
                None if node.gone else f"{node.lease:.0f} s",
                str(node.seen_seq),
                node.version,
                to_text(node.since),
                node.url,
            )
            for node in found
        ],
    )


@nodes.command()
@click.argument("name")
@on_database
async def drain(context: CommandContext, name: str) -> None:
    """Let the node NAME admit nobody, and send its ICEs to the others, until `resume`."""
    await _set(context, name, draining=True)


@nodes.command()
@click.argument("name")
@on_database
async def resume(context: CommandContext, name: str) -> None:
    """Let a drained node admit ICEs again."""
    await _set(context, name, draining=False)


async def _set(context: CommandContext, name: str, *, draining: bool) -> None:
    done = unwrap(await context.services.nodes.set_draining(context.actor, name, draining=draining))
    again = "" if done.changed else " already"
    if not draining:
        told = f"{name} serves{again}"
    elif done.others:
        told = f"{name} is drained{again}: its ICEs go to the other nodes"
    else:
        told = f"{name} is drained{again}; no other node serves, so its ICEs wait"
    print_output(told, done=told)


def _document(node: Node) -> dict[str, object]:
    return {
        "name": node.name,
        "state": node.state,
        "connected": node.connected,
        "lease_left": 0.0 if node.gone else node.lease,
        "seen_seq": node.seen_seq,
        "version": node.version,
        "since": to_text(node.since),
        "url": node.url,
    }
