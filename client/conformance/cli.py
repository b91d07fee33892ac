"""The command `ice-client conformance`.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Final

import click

from client.conformance.sentences import CONNECTION, ENROLMENT, Sentence

_USAGE: Final = 2


@click.command()
@click.argument("command", nargs=-1, required=True)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="A new or empty folder, which gets a folder for each scenario, with the program's output.",
)
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice([one.value for one in Sentence]),
    metavar="SENTENCE",
    help="Try this sentence; may be repeated.  [default: all]",
)
@click.option(
    "--enrolment",
    is_flag=True,
    help="Try the sentences about enrolment: the program gets an enrolment key in place of a token.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Scenarios at the same time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 300),
    default=10.0,
    show_default=True,
    help="Seconds for what the program should do at once; it may be slow to start.",
)
def conformance(
    *,
    command: tuple[str, ...],
    state_dir: Path,
    names: tuple[str, ...],
    enrolment: bool,
    as_json: bool,
    jobs: int,
    timeout: float,
) -> None:
    """Try an ICE program, started by COMMAND, against each sentence of docs/protocol.md.

    {gateway}, {token_file} and {state_dir} in COMMAND are filled in; the environment has them as
    ICE_CLIENT_GATEWAY, ICE_CLIENT_TOKEN_FILE and ICE_CLIENT_STATE_DIR. With --enrolment there is
    {enrolment_key_file} and ICE_CLIENT_ENROLMENT_KEY_FILE. Put -- before COMMAND.

    Exit status: 0 all passed, 1 some did not, 2 usage.
    """
    # Here, because no other command needs them.
    from client.conformance.program import NotStarted  # noqa: PLC0415
    from client.conformance.report import Report  # noqa: PLC0415
    from client.conformance.runner import run, status_of  # noqa: PLC0415
    from client.conformance.stage import Kit, Waits  # noqa: PLC0415

    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        if any(state_dir.iterdir()):
            raise click.UsageError(f"{state_dir} is not empty: name a new folder.")
    except OSError as error:
        raise click.UsageError(f"{state_dir} cannot be used: {error.strerror}") from None
    asked = ENROLMENT if enrolment else CONNECTION
    chosen = frozenset(one for one in asked if one in names or not names)
    if len(chosen) < len(set(names)):
        raise click.UsageError("The sentences about enrolment, and no others, need --enrolment.")
    # aiohttp warns of what the scenarios do on purpose.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    kit = Kit(command, state_dir.absolute(), Waits(timeout=timeout), Report(chosen))
    try:
        asyncio.run(run(kit, jobs, lambda line: click.echo(line, err=True)))
    except NotStarted as problem:
        click.echo(f"ice-client: {problem}", err=True)
        sys.exit(_USAGE)
    if as_json:
        click.echo(json.dumps(kit.report.as_json(), indent=2))
    else:
        click.echo("\n".join(kit.report.lines()))
    sys.exit(status_of(kit))
