"""`ice-gateway enrolments`: the machines that ask for an ICE, and the decisions of admins.

Tested in tests/gateway/cli/test_enrolments.py.
"""

from __future__ import annotations

import sys
from typing import Final

import click

from gateway.cli.admin_port import Admin, Decision, Refused
from gateway.cli.output import print_notice, print_output, show_json, show_members, show_table
from gateway.cli.parameters import json_option
from gateway.cli.target import with_admin
from gateway.core.enrolment import EnrolmentState

_OF_ONE: Final = frozenset({"not-found", "already-decided", "ice-exists", "invalid"})
"""Codes of refusals that concern one enrolment alone; after any other the next would be refused, too."""


@click.group()
def enrolments() -> None:
    """List and show the machines that ask for an ICE; approve or reject those that wait."""


@enrolments.command("list")
@click.option("--state", type=click.Choice([state.value for state in EnrolmentState]))
@json_option
@with_admin
async def list_enrolments(admin: Admin, *, state: str | None, as_json: bool) -> None:
    """List the machines that asked, the oldest first."""
    wanted = None if state is None else EnrolmentState(state)
    found = [each async for page in admin.enrolments(wanted) for each in page]
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "ICE", "USER", "HOST", "ADDRESS", "STATE", "REPLACES", "ASKED", "THUMBPRINT"),
        [
            (
                each.id,
                each.ice_name,
                each.provisionedto,
                each.hostname,
                each.address,
                each.state,
                "yes" if each.replaces else "no",
                each.createdon,
                each.thumbprint,
            )
            for each in found
        ],
    )


@enrolments.command()
@click.argument("enrolment_id", metavar="ID")
@json_option
@with_admin
async def show(admin: Admin, enrolment_id: str, *, as_json: bool) -> None:
    """Show one machine that asked."""
    document = await admin.enrolment(enrolment_id)
    if as_json:
        show_json(document)
    else:
        show_members(document)


def _add_decision(decision: Decision, summary: str) -> None:
    @enrolments.command(decision, help=summary)
    @click.argument("ids", metavar="ID...", nargs=-1, required=True)
    @with_admin
    async def decide(admin: Admin, ids: tuple[str, ...]) -> None:
        refused = False
        for enrolment_id in ids:
            try:
                done = await admin.decide_enrolment(decision, enrolment_id)
            except Refused as error:
                if error.code not in _OF_ONE:
                    raise
                print_notice(f"{enrolment_id}: {error}")
                refused = True
                continue
            print_output(
                f"{done.id}  {done.state}  {done.ice_name}",
                done=f"the enrolment {done.id} is {done.state}",
            )
        if refused:
            sys.exit(1)


_add_decision("approve", "Let machines have their ICE; each gets its token when it asks again.")
_add_decision("reject", "Refuse machines their ICE.")
