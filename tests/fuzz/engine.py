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
import os
import sys
import time
import traceback
from pathlib import Path

import atheris  # type: ignore[import-not-found,unused-ignore] # only `make fuzz` installs it

# Instrumented are the product and the parsers in Python that it hands input to.
with atheris.instrument_imports(
    include=["gateway", "client", "cronsim", "tomllib", "websockets", "joserfc"]
):
    from tests.fuzz.target import Target, hush, load

    TARGET = load(sys.argv[1])

_SLOWED = 10.0
"""How many times as long the product may take here: 5 times because of the instruments, the rest on a busy machine."""


class Run:
    """Checks each input, remembers the slowest for its size, and ends the process: libFuzzer would wait for the product's threads."""

    def __init__(self, target: Target, seconds: float, work: Path) -> None:
        self._target = target
        self._work = work
        self._begun = time.monotonic()
        self._end = self._begun + seconds
        self._executions = 0
        self._slowest = 0.0
        """The largest share of what an input is allowed."""

    def __call__(self, data: bytes) -> None:
        self._executions += 1
        try:
            share = self._share(data)
            if share > self._slowest:
                # Once may be chance.
                share = min(share, self._share(data), self._share(data))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it should not be
            traceback.print_exc()
            failed = self._work / f"failed-{hashlib.sha256(data).hexdigest()[:12]}"
            failed.write_bytes(data)
            self._finish(f"{type(error).__name__}: {str(error)[:300]!r} by {failed}")
        if share > self._slowest:
            self._slowest = share
            (self._work / "slowest").write_bytes(data)
        if time.monotonic() > self._end:
            self._finish(None)

    def _share(self, data: bytes) -> float:
        return self._target.judge(data, slowed=_SLOWED) / self._target.allowed(data)

    def _finish(self, fault: str | None) -> None:
        outcome = {
            "executions": self._executions,
            "seconds": time.monotonic() - self._begun,
            "fault": fault,
        }
        (self._work / "outcome.json").write_text(json.dumps(outcome))
        sys.stderr.flush()
        os._exit(fault is not None)


def main() -> None:
    name, seconds, work, *arguments = sys.argv[1:]
    hush()
    # An input that never ends shows where.
    faulthandler.dump_traceback_later(float(seconds) + 30, exit=True)
    gc.collect()
    gc.freeze()
    atheris.Setup([name, *arguments], Run(TARGET, float(seconds), Path(work)))
    atheris.Fuzz()


main()
