"""`ices ACTION --where`: finds ICEs by the filters of the API, shows them, and acts on them.

Tested in tests/gateway/cli/test_many_ices.py.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import click

from gateway.cli.admin_port import Admin, Body
from gateway.cli.output import print_notice, print_output, refuse
from gateway.core.problems import problem
from gateway.core.times import utc_now
from gateway.services.schemas import BulkItem

_SHOWN: Final = 20
"""Names that a sentence has at most."""

_TRUE_OR_FALSE: Final = ("connected", "inactive", "paused")
"""The filters that are no text."""


def _filter_of(where: Sequence[str]) -> dict[str, object]:
    """`FILTER=VALUE` arguments as a filter of the API. Raises `click.UsageError`."""
    from gateway.admin.api.ices import IceFilters
    from gateway.web.responses import RequestRefused

    wanted: dict[str, object] = {}
    labels: list[str] = []
    for text in where:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in IceFilters.__struct_fields__:
            names = ", ".join(IceFilters.__struct_fields__)
            raise click.UsageError(f"--where {text}: FILTER=VALUE with one of {names}")
        if name in IceFilters.repeated:
            labels.append(value)
            wanted[name] = labels
        elif name in wanted:
            raise click.UsageError(f"--where {name} is given twice")
        elif name in _TRUE_OR_FALSE:
            if value not in ("true", "false"):
                raise click.UsageError(f"--where {name}=true or {name}=false")
            wanted[name] = value == "true"
        else:
            wanted[name] = value
    try:
        IceFilters.parse([text.split("=", 1) for text in where]).conditions(utc_now())  # type: ignore[misc]
    except RequestRefused as error:
        raise click.UsageError(f"--where {error.problem.detail}") from None
    return wanted


async def act_on_many(
    admin: Admin,
    action: str,
    where: Sequence[str],
    *,
    dry_run: bool,
    yes: bool,
    more: Body | None = None,
) -> None:
    """Find ICEs, show what would be done, ask, and do it with the generations that were shown.

    `more` are further members of the body.
    """
    body = {"action": action, **(more or {})}
    wanted = _filter_of(where)
    if not (dry_run or yes or sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: use --yes, or --dry-run")
    found = (await admin.bulk({**body, "filter": wanted, "dry_run": True})).items
    targets = [item for item in found if item.code is None]
    if not found:
        print_notice("no ICE matches")
        return
    _print_refused(found, f"{action} would be refused for")
    if not targets:
        refuse(f"{action} is possible for none of {count(len(found))}")
    names = [item.ice_name for item in targets]
    print_notice(f"{action} {count(len(targets))}: {some(names)}")
    if dry_run:
        print_output("\n".join(names))
        return
    if not yes and not click.confirm(f"{action} {count(len(targets))}?", err=True):
        refuse("nothing was changed")
    done = await admin.bulk(
        {
            **body,
            "ice_names": names,
            "generations": [item.generation for item in targets],
        }
    )
    if done.unconfirmed:
        print_notice(f"not confirmed yet by {', '.join(done.unconfirmed)}")
    refused = _print_refused(done.items, f"{action} was refused for")
    if refused:
        refuse(f"{action} was done for {len(targets) - refused:,} of {count(len(targets))}")
    print_notice(f"{action} was done for {count(len(targets))}")


def _print_refused(items: Sequence[BulkItem], summary: str) -> int:
    """Say for which ICEs and why; returns how many they are."""
    by_code: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.code is not None:
            by_code[item.code].append(item.ice_name)
    for code, names in by_code.items():
        reason = problem(code).title
        print_notice(f"{summary} {count(len(names))} ({code}: {reason}): {some(names)}")
    return sum(map(len, by_code.values()))


def count(number: int) -> str:
    """`1 ICE`, `2 ICEs`."""
    return f"{number:,} ICE{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are besides."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
