"""Handlers that run a pytest suite, which must be one of those in the client's own settings.

    ice-client run --gateway URL --handlers client.examples.pytest_suites --config ice-client.toml

    [suites]
    smoke = "/srv/suites/smoke"

An operation's params are `{"suite": "smoke"}`. The output is sent live. The result has pytest's exit status, the
counts, and the JUnit report. Failing tests are a result, too; the operation fails only if pytest could not run
them.

Tested in tests/client/test_client_handlers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from client import platform
from client.agent import IceClient
from client.examples.pytest_process import folder_of, not_run, run_pytest, suites_of
from client.handlers import Settings
from client.operations import Operation, OperationFailed, Report

KINDS: Final = ("execute", "remote-execute", "schedule")
_RAN: Final = (0, 1, 5)  # pytest's exit codes: all passed, some failed, no tests found
_COUNTS: Final = ("tests", "failures", "errors", "skipped")


def register(ice: IceClient, settings: Settings) -> None:
    """Add handlers that run the suites in `settings`. Raises `BadHandlers`."""
    suites = suites_of(settings)

    async def run(operation: Operation, report: Report) -> dict[str, Any]:
        params = operation.params
        if not isinstance(params, Mapping) or set(params) != {"suite"}:
            raise OperationFailed("bad-params", 'params must be {"suite": NAME}')
        return await _run(operation, report, folder_of(params["suite"], suites))

    for kind in KINDS:
        ice.operation(kind)(run)


async def _run(operation: Operation, report: Report, folder: Path) -> dict[str, Any]:
    with platform.scratch_folder() as scratch:
        junit = Path(scratch, "junit.xml")
        status, output = await run_pytest(operation, report, folder, f"--junitxml={junit}", ".")
        return _result(status, output, junit)


def _result(status: int, output: str, path: Path) -> dict[str, Any]:
    if status not in _RAN or not path.exists():
        raise not_run(status, output)
    junit = path.read_text(encoding="utf-8", errors="replace")
    [suite] = ET.fromstring(junit).iter("testsuite")  # noqa: S314 - pytest wrote it
    counts = {name: int(suite.get(name, 0)) for name in _COUNTS}
    return {"exit": status, **counts, "junit": junit}
