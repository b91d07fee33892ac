"""Handlers that run a pytest suite: one of those that the client's own settings name, never another.

    ice-client run --gateway URL --handlers client.examples.pytest_suites --config ice-client.toml

    [suites]
    smoke = "/srv/suites/smoke"

An operation's params are `{"suite": "smoke"}`. The tests run in a process of their own, in the suite's
folder, by this Python, which needs pytest; they leave nothing there. The result is their exit status, how many there were, and
the JUnit report. That tests fail is a result, too; an operation fails where they could not be run.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from client import platform
from client.agent import IceClient
from client.handlers import BadHandlers, Settings
from client.operations import Operation, OperationFailed, Report

KINDS: Final = ("execute", "remote-execute", "schedule")
_RAN: Final = (0, 1)  # pytest's exit codes: all passed, some failed
_NONE_FOUND: Final = 5
_PROGRESS: Final = re.compile(
    r"^(?P<test>\S.*) (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS).*\[ *(?P<percent>\d+)%\]$"
)
_SAID: Final = 20
"""Lines of pytest's output that are told where it could not run."""
_DRAIN: Final = 1.0
"""Seconds for the rest of the output, once all that wrote it should have ended."""
_COUNTS: Final = ("tests", "failures", "errors", "skipped")


def register(ice: IceClient, settings: Settings) -> None:
    """Have the suites of `settings` run. Raises `BadHandlers`."""
    if importlib.util.find_spec("pytest") is None:
        raise BadHandlers(
            f"pytest is not installed (python -m pip install pytest, for {sys.executable})"
        )
    suites = _suites(settings)

    async def run(operation: Operation, report: Report) -> dict[str, Any]:
        return await _run(operation.id, _named(operation.params, suites), report)

    for kind in KINDS:
        ice.operation(kind)(run)


def _suites(settings: Settings) -> dict[str, Path]:
    table = settings.get("suites")
    if not isinstance(table, Mapping) or not table:
        raise BadHandlers(
            "the settings name no suites: give --config FILE with a table [suites] of folders by name"
        )
    suites = {}
    for name, folder in table.items():
        path = Path(folder) if isinstance(folder, str) else None
        if path is None or not path.is_absolute() or not path.is_dir():
            raise BadHandlers(
                f"suites.{name} has to be the absolute path of a folder, not {folder!r}"
            )
        suites[name] = path
    return suites


def _named(params: object, suites: Mapping[str, Path]) -> Path:
    """The folder of the suite that `params` name: a key of our table, and never a part of a path."""
    if not isinstance(params, Mapping) or set(params) != {"suite"}:
        raise OperationFailed("bad-params", 'params have to be {"suite": NAME}')
    name = params["suite"]
    if not isinstance(name, str) or name not in suites:
        raise OperationFailed("no-such-suite", f"this ICE has the suites {', '.join(suites)}")
    return suites[name]


async def _run(operation: str, folder: Path, report: Report) -> dict[str, Any]:
    with platform.scratch_folder() as scratch:
        junit = scratch / "junit.xml"
        said: deque[str] = deque(maxlen=_SAID)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-B", "-m", "pytest", "-v", "--color=no"),
                *("-p", "no:cacheprovider", f"--junitxml={junit}", f"--rootdir={folder}", "."),
                cwd=folder,
                env=platform.environment(operation, COLUMNS="200", PYTHONUNBUFFERED="1"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                **platform.OWN_GROUP,
            )
        except OSError as error:
            raise OperationFailed("not-run", f"pytest cannot be started: {error}") from error
        following = asyncio.create_task(_follow(process, said, report))
        try:
            # Its end, not that of its output: what it leaves behind may hold that open.
            status = await platform.ended(process)
        finally:
            await _end(operation, process, following)
        if status not in (*_RAN, _NONE_FOUND) or not junit.exists():
            raise OperationFailed("not-run", "\n".join([f"pytest ended with {status}:", *said]))
        return _result(status, junit.read_text(encoding="utf-8", errors="replace"))


async def _end(
    operation: str, process: asyncio.subprocess.Process, following: asyncio.Task[None]
) -> None:
    """End a suite with all that it has started, and read what is left of its output."""
    try:
        await platform.end_group(process)
    finally:
        platform.end_processes_of([operation])
    await asyncio.wait({following}, timeout=_DRAIN)
    following.cancel()
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no other way


async def _follow(process: asyncio.subprocess.Process, said: deque[str], report: Report) -> None:
    """Tell how far it is, until the end of its output. `said` are its last lines."""
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    while line := await _line(process.stdout):
        text = line.decode(errors="replace").rstrip()
        said.append(text)
        found = _PROGRESS.match(text)
        if found is not None:
            await report(int(found["percent"]) / 100, found["test"])


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # longer than any that we look for
        return b"...\n"


def _result(status: int, junit: str) -> dict[str, Any]:
    [suite] = ET.fromstring(junit).iter("testsuite")  # noqa: S314 - pytest wrote it, for us
    counts = {name: int(suite.get(name, 0)) for name in _COUNTS}
    return {"exit": status, **counts, "junit": junit}
