"""What the commands with `--from FILE.csv` share: they read a file, list its faults, and send requests at once.

Tested in tests/gateway/cli/test_fleet.py and tests/gateway/cli/test_user_links.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from gateway.cli.admin_port import Refused
from gateway.cli.output import print_stderr, refuse
from gateway.core.csv_table import CsvFault
from gateway.core.text import decoded, printable_line
from gateway.store.engine import StoreUnavailable

_MAX_FILE: Final = 64 * 1024 * 1024
_AT_ONCE: Final = 32
"""Requests for single users or ICEs at a time."""
T = TypeVar("T")
R = TypeVar("R")


def read_file(file: Path) -> str:
    """The text of the file; what cannot be read ends the command."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE + 1)
        text = decoded(data)
    except OSError as error:
        refuse(f"{file} cannot be read: {error.strerror}", os.EX_CONFIG)
    except UnicodeDecodeError:
        refuse(f"{file} is not text in UTF-8")
    if len(data) > _MAX_FILE:
        refuse(f"{file} is longer than {_MAX_FILE // 1024 // 1024} MiB")
    return text


def refuse_faults(faults: Sequence[CsvFault]) -> None:
    """List the faults and end the command, if there are any."""
    if faults:
        for fault in faults:
            print_stderr(printable_line(str(fault)))
        refuse(f"{len(faults):,} fault{'' if len(faults) == 1 else 's'}; nothing was done")


async def at_once(call: Callable[[T], Awaitable[R]], values: Sequence[T]) -> list[R]:
    """The results for all values, some at a time; the first failure ends it."""
    results: dict[int, R] = {}
    rest = iter(enumerate(values))

    async def work() -> None:
        for place, value in rest:
            results[place] = await call(value)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(values))):
                group.create_task(work())
    except* (Refused, StoreUnavailable) as errors:
        raise errors.exceptions[0] from None
    return [results[place] for place in range(len(values))]
