"""Fuzzes one target in this process with atheris, until its time is over or its property does not hold.

    python -m tests.fuzz.engine TARGET SECONDS WORK [arguments of libFuzzer]

WORK is a folder, which gets `outcome.json`, the slowest input as `slowest`, and the input for which the property does
not hold as `failed-…`.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path

import atheris  # type: ignore[import-not-found,unused-ignore] # only `make fuzz` installs it
import structlog

# Instrumented are the product and the parsers in Python that it hands input to.
with atheris.instrument_imports(
    include=["gateway", "client", "cronsim", "tomllib", "websockets", "joserfc"]
):
    from tests.fuzz.target import Target, load

    TARGET = load(sys.argv[1])


class Run:
    """Checks each input, remembers the slowest, and ends the process: libFuzzer would wait for the product's threads."""

    def __init__(self, target: Target, seconds: float, work: Path) -> None:
        self._target = target
        self._work = work
        self._begun = time.monotonic()
        self._end = self._begun + seconds
        self._executions = 0
        self._slowest = 0.0
        self._slowest_size = 0

    def __call__(self, data: bytes) -> None:
        self._executions += 1
        try:
            spent = self._target.judge(data)
            if spent > self._slowest:
                # Once may be chance.
                spent = min(spent, self._target.judge(data), self._target.judge(data))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it should not be
            traceback.print_exc()
            failed = self._work / f"failed-{hashlib.sha256(data).hexdigest()[:12]}"
            failed.write_bytes(data)
            self._finish(f"{type(error).__name__}: {str(error)[:300]!r} by {failed}")
        if spent > self._slowest:
            self._slowest, self._slowest_size = spent, len(data)
            (self._work / "slowest").write_bytes(data)
        if time.monotonic() > self._end:
            self._finish(None)

    def _finish(self, fault: str | None) -> None:
        outcome = {
            "executions": self._executions,
            "seconds": time.monotonic() - self._begun,
            "slowest_ms": self._slowest * 1000,
            "slowest_bytes": self._slowest_size,
            "fault": fault,
        }
        (self._work / "outcome.json").write_text(json.dumps(outcome))
        sys.stderr.flush()
        os._exit(fault is not None)


def main() -> None:
    name, seconds, work, *arguments = sys.argv[1:]
    # What product and libraries say of bad input would fill the log.
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # An input that never ends shows where.
    faulthandler.dump_traceback_later(float(seconds) + 30, exit=True)
    gc.collect()
    gc.freeze()
    atheris.Setup([name, *arguments], Run(TARGET, float(seconds), Path(work)))
    atheris.Fuzz()


main()
