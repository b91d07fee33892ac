"""`ice-gateway nodes`: lists, drains and resumes the gateways of one database, on it or over the API.

Tested in tests/cluster/test_cluster.py and tests/cluster/test_node_pages.py.
"""

from __future__ import annotations

import click
import msgspec

from gateway.cli.admin_port import Admin
from gateway.cli.output import print_notice, print_output, show_list
from gateway.cli.parameters import json_option
from gateway.cli.target import with_admin


@click.group()
def nodes() -> None:
    """List the gateways that serve one database; drain or resume one."""


@nodes.command("list")
@click.option("--all", "with_gone", is_flag=True, help="List nodes that are gone, too.")
@json_option
@with_admin
async def list_nodes(admin: Admin, *, with_gone: bool, as_json: bool) -> None:
    """List the nodes that run. A node that is gone ended without a clean shutdown; --json lists it, too."""
    found = await admin.nodes()
    if not (with_gone or as_json):
        gone = [node.name for node in found if node.state == "gone"]
        found = [node for node in found if node.state != "gone"]
        if gone:
            print_notice(f"gone, see --all: {', '.join(gone)}")
    if not found and not as_json:
        print_notice(
            "no node serves this database; a single gateway on an SQLite file is not a node"
        )
        return
    show_list(
        [msgspec.structs.asdict(node) for node in found],
        ("NAME", "STATE", "ICES", "LEASE", "SEEN", "VERSION", "SINCE", "URL"),
        as_json=as_json,
        lease_left=lambda seconds: f"{seconds:.0f} s" if seconds else None,
    )


@nodes.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Drain the last node that serves, too.")
@with_admin
async def drain(admin: Admin, name: str, *, force: bool) -> None:
    """Let the node NAME admit no ICE and send its ICEs to the others, until `resume`."""
    await _set_draining(admin, name, draining=True, force=force)


@nodes.command()
@click.argument("name")
@with_admin
async def resume(admin: Admin, name: str) -> None:
    """Let a drained node admit ICEs again."""
    await _set_draining(admin, name, draining=False)


async def _set_draining(admin: Admin, name: str, *, draining: bool, force: bool = False) -> None:
    before = {node.name: node.state for node in await admin.nodes() if node.state != "gone"}
    await admin.set_draining(name, draining=draining, force=force)
    again = " already" if before.pop(name, None) == ("drained" if draining else "serves") else ""
    if not draining:
        summary = f"{name} serves{again}"
    elif "serves" in before.values():
        summary = f"{name} is drained{again}: its ICEs go to the other nodes"
    else:
        summary = f"{name} is drained{again}; no other node serves, so its ICEs wait"
    print_output(summary, done=summary)
