"""`ice-gateway nodes`: who serves the database, drained and resumed."""

from __future__ import annotations

import click

from gateway.cli.common import Desk, json_option, on_database, refuse, show_json, show_table
from gateway.store import nodes as rows
from gateway.store.nodes import Node, Nodes


@click.group()
def nodes() -> None:
    """List the gateways that serve a database on PostgreSQL; let one drain, or resume."""


@nodes.command("list")
@json_option
@on_database
async def list_nodes(desk: Desk, *, as_json: bool) -> None:
    """List the nodes; one whose lease has run out has ended without saying so."""
    _check(desk)
    found = await Nodes(desk.engine.fetch).all()
    if as_json:
        show_json([_document(node) for node in found])
        return
    headings = ("NAME", "STATE", "LEASE", "SEEN", "VERSION", "SINCE", "URL")
    show_table(
        headings,
        [
            (
                node.name,
                _state(node),
                f"{node.left:.0f} s",
                str(node.seen_seq),
                node.version,
                node.since,
                node.url,
            )
            for node in found
        ],
    )


@nodes.command()
@click.argument("name")
@on_database
async def drain(desk: Desk, name: str) -> None:
    """Let the node NAME admit nobody, and send its ICEs to the others, until `resume`."""
    await _set(desk, name, draining=True)


@nodes.command()
@click.argument("name")
@on_database
async def resume(desk: Desk, name: str) -> None:
    """Let a drained node admit ICEs again."""
    await _set(desk, name, draining=False)


async def _set(desk: Desk, name: str, *, draining: bool) -> None:
    _check(desk)
    if not await desk.engine.write(
        lambda transaction: rows.set_draining(transaction, name, draining=draining)
    ):
        refuse(f"there is no node {name}; see `ice-gateway nodes list`")


def _check(desk: Desk) -> None:
    if not desk.engine.shared:
        refuse(f"{desk.engine.name} is served by one gateway: nodes need PostgreSQL")


def _state(node: Node) -> str:
    if node.left <= 0:
        return "gone"
    return "drained" if node.draining else "serves"


def _document(node: Node) -> dict[str, object]:
    return {
        "name": node.name,
        "state": _state(node),
        "lease_left": round(node.left, 3),
        "seen_seq": node.seen_seq,
        "version": node.version,
        "since": node.since,
        "url": node.url,
    }
