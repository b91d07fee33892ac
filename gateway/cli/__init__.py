"""The `ice-gateway` command: a file per noun.

Exit status: 0 done; 1 refused, or the output could not be written; 2 wrong usage; 78 (`EX_CONFIG`) an
operator must correct a setting or a file.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from gateway import __version__
from gateway.cli.api_tokens import api_tokens
from gateway.cli.audit import audit
from gateway.cli.backup import backup, restore
from gateway.cli.common import refuse
from gateway.cli.doctor import doctor
from gateway.cli.ices import ices
from gateway.cli.keys import keys
from gateway.cli.migrate_store import migrate_store
from gateway.cli.nodes import nodes
from gateway.cli.operations import operations
from gateway.cli.serve import demo, serve
from gateway.cli.users import users
from gateway.runtime.standard_streams import discard, open_missing


class _Group(click.Group):
    """Runs a command with standard streams that are open."""

    def main(self, *args: Any, **options: Any) -> Any:
        open_missing()
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
@click.version_option(__version__, prog_name="ice-gateway")
def main() -> None:
    """Provision ICE agents, admit those with a genuine token, drop them when they are deregistered."""


COMMANDS = (
    *(serve, users, api_tokens, ices, operations, keys, nodes),
    *(audit, backup, restore, migrate_store, doctor, demo),
)
for command in COMMANDS:
    main.add_command(command)
