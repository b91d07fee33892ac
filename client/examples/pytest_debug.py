"""A handler for `debug` that runs one pytest test and returns how it failed, with the source of each frame.

    ice-client run --gateway URL --handlers client.examples.pytest_debug --config ice-client.toml

    [suites]
    smoke = "/srv/suites/smoke"

An operation's params are `{"suite": "smoke", "test": "test_login.py::test_login"}`. The output is sent live. A test
that fails is a result, too; the operation fails only if pytest could not run exactly this test.

Tested in tests/client/test_client_pytest_debug.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from client import platform
from client.agent import IceClient
from client.examples.pytest_process import folder_of, not_run, run_pytest, suites_of
from client.handlers import Settings
from client.operations import Operation, OperationFailed, Report
from client.protocol import MAX_VALUE

_RAN: Final = (0, 1)  # pytest's exit codes: passed or skipped, failed
_MAX_NAME: Final = 1000
_PROGRAM: Final = Path(__file__).with_name("pytest_failure.py")


def register(ice: IceClient, settings: Settings) -> None:
    """Add a handler for the suites in `settings`. Raises `BadHandlers`."""
    suites = suites_of(settings)

    async def debug(operation: Operation, report: Report) -> dict[str, Any]:
        params = operation.params
        if not isinstance(params, Mapping) or set(params) != {"suite", "test"}:
            raise OperationFailed("bad-params", 'params must be {"suite": NAME, "test": TEST}')
        folder = folder_of(params["suite"], suites)
        return await _run(operation, report, folder, _argument(params["test"], folder))

    ice.operation("debug")(debug)


def _argument(test: object, folder: Path) -> str:
    """The test for pytest, which can be no option, and no file outside the suite."""
    file, separator, _ = str(test).partition("::")
    if not isinstance(test, str) or not separator or len(test) > _MAX_NAME or "\0" in test:
        raise OperationFailed("bad-params", "test must be FILE::NAME, or FILE::CLASS::NAME")
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise OperationFailed("no-such-test", f"the suite has no file {file}")
    return f"./{test}"


async def _run(operation: Operation, report: Report, folder: Path, test: str) -> dict[str, Any]:
    with platform.scratch_folder() as scratch:
        record = Path(scratch, "record.json")
        program = (str(_PROGRAM), str(record))
        status, output = await run_pytest(operation, report, folder, test, program=program)
        recorded = _read(record)
        if status not in _RAN or recorded is None:
            raise not_run(status, output)
    return {"exit": status, **recorded}


def _read(record: Path) -> dict[str, Any] | None:
    """The record; None if there is none. The test may have written anything there."""
    try:
        with record.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_VALUE), type=dict[str, Any])
    except (OSError, ValueError, RecursionError):
        return None
