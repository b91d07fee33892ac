"""Runs one pytest test and records how it failed: a program that `pytest_debug` starts in its own process.

    python pytest_failure.py RECORD ARGUMENTS...

RECORD is the file for the record, ARGUMENTS are those of pytest. It is started by its path, because a suite may
have a package of the name `client`.

Tested in tests/client/test_client_pytest_debug.py.
"""

from __future__ import annotations

import json
import linecache
import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest

MAX_FRAMES: Final = 50
"""Frames of a failure, of the outermost and the innermost ones half each."""
MAX_MESSAGE: Final = 4000
"""Characters of the exception."""
CONTEXT: Final = 5
"""Lines of source before and after that of a frame."""
MAX_LINE: Final = 300
"""Characters of a line of source."""


class Recorder:
    """A plugin of pytest that writes the record at the end of the session."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._test: dict[str, Any] = {"outcome": "passed", "duration": 0.0, "failure": None}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse to run several tests; pytest refuses to run none."""
        if len(session.items) > 1:
            raise pytest.UsageError(f"{len(session.items)} tests have this name: name one")
        if session.items:
            self._test["test"] = session.items[0].nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Record the first failure of setup, call and teardown."""
        report = yield
        self._test["duration"] += call.duration
        if report.failed and self._test["failure"] is None:
            self._test["outcome"] = "failed" if report.when == "call" else "error"
            self._test["failure"] = {"when": report.when, **_failure(report, call, item)}
        elif report.skipped and self._test["outcome"] == "passed":
            self._test["outcome"] = "skipped"
        return report

    def pytest_sessionfinish(self) -> None:
        """Write the record, unless there was no test."""
        if "test" in self._test:
            text = json.dumps(self._test, ensure_ascii=False)
            self._record.write_bytes(text.encode(errors="replace"))  # of lone surrogates


def _failure(
    report: pytest.TestReport, call: pytest.CallInfo[None], item: pytest.Item
) -> dict[str, Any]:
    if call.excinfo is None:  # such as a strict xfail that passed
        return {"type": None, "message": report.longreprtext[:MAX_MESSAGE], "frames": []}
    error = call.excinfo.value
    message = "".join(traceback.format_exception_only(error)).strip()
    return {
        "type": type(error).__qualname__,
        "message": message[:MAX_MESSAGE],
        **_frames(call.excinfo.tb, item.config.rootpath),
    }


def _frames(trace: TracebackType, root: Path) -> dict[str, Any]:
    """The frames from the first one of the suite on, outermost first, and how many of them are left out."""
    found = [
        (Path(frame.f_code.co_filename), frame.f_code.co_qualname, line)
        for frame, line in traceback.walk_tb(trace)
    ]
    ours = [number for number, (file, *_) in enumerate(found) if file.is_relative_to(root)]
    found = found[ours[0] if ours else 0 :]
    omitted = max(len(found) - MAX_FRAMES, 0)
    half = MAX_FRAMES // 2
    kept = [*found[:half], *found[-half:]] if omitted else found
    frames = [
        {
            "file": (file.relative_to(root) if file.is_relative_to(root) else file).as_posix(),
            "line": line,
            "function": function,
            "source": _source(file, line),
        }
        for file, function, line in kept
    ]
    return {"frames": frames, "frames_omitted": omitted}


def _source(file: Path, line: int) -> list[dict[str, Any]]:
    """The lines around this one; none where the source is missing."""
    lines = linecache.getlines(str(file))
    first = max(line - CONTEXT, 1)
    around = lines[first - 1 : line + CONTEXT]
    return [
        {"line": number, "text": text.rstrip("\r\n")[:MAX_LINE]}
        for number, text in enumerate(around, first)
    ]


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())  # as `python -m pytest` does
    sys.exit(pytest.main(sys.argv[2:], plugins=[Recorder(Path(sys.argv[1]))]))
