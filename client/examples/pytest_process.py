"""Runs pytest in a process of its own for the examples `pytest_suites` and `pytest_debug`.

The suites are folders that the client's own settings name. Tests run in the suite's folder, with this Python,
which needs pytest; they leave nothing there. Their output is sent live.

Tested in tests/client/test_client_handlers.py.
"""

from __future__ import annotations

import asyncio
import codecs
import importlib.util
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from client import platform
from client.handlers import BadHandlers, Settings
from client.operations import Operation, OperationFailed, Report

_PROGRESS: Final = re.compile(
    r"^(?P<test>\S.*) (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS).*\[ *(?P<percent>\d+)%\]$"
)
_LAST_LINES: Final = 20
"""Lines of pytest's output in the error if it could not run."""
_MAX_LINE: Final = 2000
"""Characters of a line that are looked at; the output has all of them."""
_CHUNK: Final = 65_536
_OUTPUT_TIMEOUT: Final = 1.0
"""Seconds for reading the rest of the output once pytest has ended."""


def suites_of(settings: Settings) -> dict[str, Path]:
    """The folders in the table `suites`. Raises `BadHandlers`, also where pytest is missing."""
    if importlib.util.find_spec("pytest") is None:
        raise BadHandlers(
            f"pytest is not installed (python -m pip install pytest, for {sys.executable})"
        )
    table = settings.get("suites")
    if not isinstance(table, Mapping) or not table:
        raise BadHandlers(
            "the settings have no suites: give --config FILE with a table [suites] of folders by name"
        )
    suites = {}
    for name, folder in table.items():
        path = Path(folder) if isinstance(folder, str) else None
        if path is None or not path.is_absolute() or not path.is_dir():
            raise BadHandlers(
                f"suites.{name} must be the absolute path of a folder, not {folder!r}"
            )
        suites[name] = path
    return suites


def folder_of(name: object, suites: Mapping[str, Path]) -> Path:
    """The folder of a suite, whose name is a key of the settings' table and never a path."""
    if not isinstance(name, str) or name not in suites:
        raise OperationFailed("no-such-suite", f"this ICE has the suites {', '.join(suites)}")
    return suites[name]


async def run_pytest(
    operation: Operation,
    report: Report,
    folder: Path,
    *arguments: str,
    program: Sequence[str] = ("-m", "pytest"),
) -> tuple[int, str]:
    """Run pytest in `folder`, and return its exit status and the last lines of its output.

    `program` starts it. Whatever it started ends with it. Raises `OperationFailed`.
    """
    output: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-B", *program, "-v", "--color=no"),
            *("-p", "no:cacheprovider", f"--rootdir={folder}", *arguments),
            cwd=folder,
            env=platform.environment(operation.id, COLUMNS="200", PYTHONUNBUFFERED="1"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            **platform.OWN_GROUP,
        )
    except OSError as error:
        raise OperationFailed("not-run", f"pytest cannot be started: {error}") from error
    following = asyncio.create_task(_follow(process, output, operation, report))
    try:
        # Not the end of its output, which processes that it left behind may keep open.
        status = await platform.exit_status(process)
    finally:
        await _end(operation.id, process, following)
    return status, "\n".join(output)


def not_run(status: int, output: str) -> OperationFailed:
    """The failure of an operation whose tests could not be run."""
    return OperationFailed("not-run", f"pytest ended with {status}:\n{output}")


async def _end(
    operation: str, process: asyncio.subprocess.Process, following: asyncio.Task[None]
) -> None:
    """End pytest and all processes that it started, and read the rest of its output."""
    try:
        await platform.end_group(process)
    finally:
        platform.end_processes_of([operation])
    await asyncio.wait({following}, timeout=_OUTPUT_TIMEOUT)
    following.cancel()
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no public way


async def _follow(
    process: asyncio.subprocess.Process, output: deque[str], operation: Operation, report: Report
) -> None:
    """Send the output, and the progress that it shows; `output` keeps its last lines."""
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while chunk := await process.stdout.read(_CHUNK):
        text = decoder.decode(chunk)
        await operation.log(text)
        *whole, rest = (line[:_MAX_LINE] for line in (rest + text).split("\n"))
        lines = [line.rstrip() for line in whole]
        output.extend(lines)
        found = [match for match in map(_PROGRESS.match, lines) if match]
        if found:
            await report(int(found[-1]["percent"]) / 100, found[-1]["test"])
    await operation.log(decoder.decode(b"", final=True))
    output.append(rest)
