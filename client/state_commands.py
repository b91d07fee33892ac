"""`ice-client accept` and `ice-client status`: they work on the state folder, and connect to no gateway.

Tested in tests/client/test_client_cli.py, tests/client/test_client_consent.py and tests/client/test_client_status.py.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from client import consent, status
from client.credentials import IdentityProblem
from client.identity import DamagedDecision, FolderUnusable, StateFolder
from client.options import option, uses_folder
from client.output import MUST_ACT, REFUSED, default_folder, fail
from client.protocol import Accepts, OperationKind

# --- accept ------------------------------------------------------------------------------------


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice([kind.value for kind in OperationKind]))
@click.option("--none", "nothing", is_flag=True, help="Others may send nothing.")
@click.option("--all", "everything", is_flag=True, help="Others may send every kind.")
@uses_folder
def accept(
    kinds: tuple[str, ...],
    *,
    nothing: bool,
    everything: bool,
    state_dir: Path | None,
) -> None:
    """Say which KINDs others than this ICE's user may send it; without any, show it.

    Others are admins, API tokens, pools and other users' schedules. A running client follows within 5 seconds.
    """
    given = [bool(kinds), nothing, everything]
    if sum(given) > 1:
        raise click.UsageError("Give kinds, --none or --all, one of them.")
    folder = StateFolder(state_dir or default_folder())
    try:
        if any(given):
            accepts = None if everything else consent.checked(kinds)
            folder.store_decision(Accepts(accepts=accepts))
        decision, state = folder.decision(), folder.state()
    except (FolderUnusable, DamagedDecision) as problem:
        fail(REFUSED, problem)
    except IdentityProblem as problem:
        fail(MUST_ACT, problem)
    found = state.accepts if decision is None else decision.accepts
    click.echo(f"others may send: {consent.described(found)}")
    if any(given) and state.gateway is None:
        click.echo(
            f"ice-client: no client was started with the state folder {folder.path} yet", err=True
        )
    if state.ice_type == "ci-cd":
        click.echo("ice-client: this ICE is ci-cd, for which it counts for nothing", err=True)


# --- status ------------------------------------------------------------------------------------


@click.command(name="status")
@uses_folder
@option("--json", "as_json", is_flag=True, help="Print an object.")
def show_status(*, state_dir: Path | None, as_json: bool) -> None:
    """Say whether this ICE is registered and connected, and if not, what to do.

    Exit status: 0 connected, 1 not connected, 3 a person must act first.
    """
    try:
        folder = StateFolder(state_dir or default_folder())
        found = status.Found(
            folder=str(folder.path.absolute()),
            named=state_dir is not None,
            exists=folder.exists(),
            has_key=folder.key() is not None,
            token=folder.token(),
            # Read before the state: a client that ends in between has then written its state.
            running=folder.in_use(),
            state=folder.state(),
            decision=_decision(folder),
        )
    except FolderUnusable as problem:
        fail(REFUSED, problem)
    except IdentityProblem as problem:
        fail(MUST_ACT, problem)
    report = status.report(found)
    if as_json:
        # `json.dumps` writes ASCII, which keeps a folder name that is not UTF-8.
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        click.echo("\n".join(status.lines(found, report, now)))
    if not report.connected:
        sys.exit(MUST_ACT if report.must_act else REFUSED)


def _decision(folder: StateFolder) -> Accepts | None:
    """What `accept` has stored; if it is damaged, the client goes on with what counted before."""
    try:
        return folder.decision()
    except DamagedDecision as problem:
        click.echo(f"ice-client: {problem}", err=True)
        return None
