"""`ice-gateway migrate-store`.

Tested in tests/gateway/services/test_store_migration.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.cli.common import run, with_settings
from gateway.cli.output import print_notice, print_output, refuse
from gateway.core.times import utc_now
from gateway.runtime.database_url import ENCODE, file_of, names_server
from gateway.runtime.settings import Settings


@click.command()
@click.option("--from", "source", metavar="URL", help="sqlite:///PATH; without it the --database.")
@click.option("--to", "target", required=True, metavar="URL", help="postgresql://USER@HOST/NAME")
@with_settings
def migrate_store(settings: Settings, source: str | None, target: str) -> None:
    """Move a database from an SQLite file to PostgreSQL, all of it or nothing, while no gateway runs.

    The file stays as it was, marked as a copy. The key file is not moved: every node needs it.
    """
    path = file_of(source or settings.database_url)
    if path is None or not names_server(target):
        raise click.UsageError(
            f"it goes --from sqlite:///PATH --to postgresql://USER@HOST/NAME; {ENCODE}"
        )
    if not path.exists():
        refuse(f"there is no database {path}")
    run(_move(path, target))


async def _move(path: Path, target: str) -> None:
    from gateway.services.store_migration import count, move  # asyncpg is optional

    total = sum(count(path).values())
    with click.progressbar(
        length=total, label="moving", file=sys.stderr, show_pos=True, hidden=not sys.stderr.isatty()
    ) as bar:

        def progress(table: str, rows: int) -> None:
            bar.label = f"moving {table}"
            bar.update(rows)

        moved = await move(path, target, utc_now, print_notice, progress)
    lines = [f"{rows:>9,} rows of {table}" for table, rows in moved.counts.items()]
    head = f"audit log verified, head {moved.head}" if moved.head else "the audit log is empty"
    print_output("\n".join([*lines, head]), done=f"all of {path} is moved")
    print_notice(
        f"{path} stays, and is marked as a copy: no gateway on it admits anybody until"
        " `ice-gateway restore --confirm`"
    )
