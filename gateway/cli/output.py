"""What the commands print: notices, errors of one line, tables and JSON.

Tested in tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import click
import msgspec

from gateway.core.text import compact, pretty, printable, printable_line
from gateway.runtime.standard_streams import Unwritable, writing

_MAX_GROWTH: Final = 4
"""How many times as long as compact JSON the indented form may be."""


def refuse(reason: str, status: int = 1) -> NoReturn:
    """Print the reason on one line of stderr, and exit with this status."""
    print_notice(reason)
    sys.exit(status)


def print_notice(sentence: str) -> None:
    """Print a sentence for the operator on one line of stderr; stdout is for the command's answer."""
    print_stderr(f"ice-gateway: {printable_line(sentence)}")


def print_stderr(line: str) -> None:
    """Print a line on stderr; an error while writing is ignored."""
    with contextlib.suppress(Unwritable), writing(sys.stderr):
        click.echo(line, err=True)


def print_output(text: str, *, done: str = "", remedy: str = "") -> None:
    """Print the command's answer on stdout; if that fails, exit with status 1.

    Args:
        text: the answer.
        done: what the command has done already, for the error; a sentence without a full stop.
        remedy: what the operator can do about the lost answer, likewise.
    """
    try:
        with writing(sys.stdout):
            click.echo(text)
    except Unwritable as error:
        before = f"{done}, but " if done else ""
        after = f"; {remedy}" if remedy else ""
        refuse(f"{before}the output could not be written to stdout: {error}{after}")


def show_json(value: object, *, done: str = "") -> None:
    """Print JSON, indented unless that makes it much longer; `done` as for `print_output`."""
    encoded = msgspec.json.encode(value)
    text, complete = pretty(encoded, _MAX_GROWTH * len(encoded) + 10_000)
    print_output(text if complete else compact(encoded), done=done)


def show_list(
    documents: Sequence[Mapping[str, object]],
    headings: Sequence[str],
    *,
    as_json: bool,
    **cells: Callable[[Any], object],
) -> None:
    """Print documents as JSON, or as a table with a column for each member, which `cells` may show otherwise."""
    if as_json:
        show_json(documents)
        return
    rows = [
        [_cell(cells[name](value) if name in cells else value) for name, value in one.items()]
        for one in documents
    ]
    show_table(headings, rows)


def show_members(document: msgspec.Struct, **lines: Callable[[Any], str]) -> None:
    """Print a document, a line for each member, which `lines` may show otherwise than as text or JSON."""
    shown = []
    for name in document.__struct_fields__:
        value = getattr(document, name)
        if value and name in lines:
            value = lines[name](value)
        elif value and not isinstance(value, str):
            value = msgspec.json.encode(value).decode()
        shown.append(f"{name:<15}{printable(value or '-')}")
    print_output("\n".join(shown))


def _cell(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str | None]], *, done: str = ""
) -> None:
    """Print a table on a terminal, otherwise plain columns; `done` as for `print_output`.

    Characters that could control a terminal are escaped.
    """
    cells = [[printable(value or "-") for value in row] for row in rows]
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD)
        for heading in headings:
            table.add_column(heading)
        for row in cells:
            table.add_row(*(Text(value) for value in row))
        console = Console()
        with console.capture() as drawn:
            console.print(table, end="")
        print_output(drawn.get(), done=done)
        return
    lines = [list(headings), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print_output(
        "\n".join(
            "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
            for row in lines
        ),
        done=done,
    )
