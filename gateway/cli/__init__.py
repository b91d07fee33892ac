"""The `ice-gateway` command: a file per noun or verb; `api_*` work over the API, `database_*` on the database.

Exit status: 0 done; 1 refused, or the output could not be written; 2 wrong usage; 78 (`EX_CONFIG`) an
operator must correct a setting or a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gateway import __version__
from gateway.cli.api_tokens import api_tokens
from gateway.cli.audit import audit
from gateway.cli.backup import backup, restore
from gateway.cli.common import Elsewhere, refuse_misplaced_url
from gateway.cli.config import config
from gateway.cli.doctor import doctor
from gateway.cli.enrolment_keys import enrolment_keys
from gateway.cli.enrolments import enrolments
from gateway.cli.ices import ices
from gateway.cli.keys import keys
from gateway.cli.migrate_store import migrate_store
from gateway.cli.nodes import nodes
from gateway.cli.operations import operations
from gateway.cli.output import refuse
from gateway.cli.parameters import FILE
from gateway.cli.pools import pools
from gateway.cli.schedules import schedules
from gateway.cli.serve import demo, serve
from gateway.cli.users import users
from gateway.cli.webhooks import webhooks
from gateway.runtime.logs import configure_command
from gateway.runtime.standard_streams import discard, open_missing


class _Group(click.Group):
    """Runs a command with standard streams that are open."""

    def main(self, *args: Any, **options: Any) -> Any:
        open_missing()
        configure_command()
        try:
            return super().main(*args, **options)
        except OSError as error:
            # Such as click's own help on a full disk; the commands handle their own output.
            if sys.stdout is not None:
                discard(sys.stdout)
            refuse(f"the output could not be written to stdout: {error.strerror or error}")


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--url",
    metavar="URL",
    envvar="ICE_GATEWAY_URL",
    help="Work over the API of the gateway there (or ICE_GATEWAY_URL), instead of on a database.",
)
@click.option(
    "--token-file",
    type=FILE,
    envvar="ICE_GATEWAY_TOKEN_FILE",
    help="File with an API token, for --url (or ICE_GATEWAY_TOKEN_FILE).",
)
@click.option(
    "--ca-file",
    type=FILE,
    envvar="ICE_GATEWAY_CA_FILE",
    help="More certificates to trust, in PEM, for --url (or ICE_GATEWAY_CA_FILE).",
)
@click.option("--insecure", is_flag=True, help="Allow plain http to another machine, for --url.")
@click.version_option(__version__, prog_name="ice-gateway")
@click.pass_context
def main(
    context: click.Context,
    *,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    insecure: bool,
) -> None:
    """Provision ICE agents, admit those with a genuine token, drop them when they are deregistered."""
    if url is not None:
        typed = _is_typed(context, "url")
        context.obj = Elsewhere(url, typed, token_file, ca_file, insecure)
        if context.invoked_subcommand not in _OVER_THE_API:
            refuse_misplaced_url()
        return
    for name in ("token_file", "ca_file", "insecure"):
        if _is_typed(context, name):
            raise click.UsageError(f"--{name.replace('_', '-')} needs --url")


def _is_typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


COMMANDS = (
    *(serve, users, api_tokens, ices, pools, enrolment_keys, enrolments, operations, schedules),
    *(webhooks, keys, nodes),
    *(audit, backup, restore, migrate_store, config, doctor, demo),
)
for command in COMMANDS:
    main.add_command(command)
_OVER_THE_API = {
    command.name
    for command in (
        *(users, api_tokens, ices, pools, enrolment_keys, enrolments, operations),
        *(schedules, webhooks, nodes, audit),
    )
}
