"""Runs the load generator, on the second core; what it prints is JSON."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.systems import OTHER_CORE

_SOURCE = Path(__file__).with_name("loadgen.c")
LONGEST = 180.0
"""Seconds for one run at the most."""


class Generator:
    """The load generator, built in `folder`; none of its runs goes on beyond `deadline` (`time.monotonic`)."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self._cores = OTHER_CORE
        self._deadline = deadline
        self._program = folder / "loadgen"
        subprocess.run(
            ["gcc", "-O2", "-o", str(self._program), str(_SOURCE), "-lssl", "-lcrypto"], check=True
        )

    def on(self, cores: str) -> Generator:
        """The same one on other cores."""
        other = copy.copy(self)
        other._cores = cores
        return other

    def start(self, url: str, *options: object) -> subprocess.Popen[str]:
        """Begin a run."""
        command = ["taskset", "-c", self._cores, str(self._program), "--url", url]
        return subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, url: str, *options: object) -> dict[str, Any]:
        """One run to its end. Raises RuntimeError where it does not come to one."""
        with killed(self.start(url, *options)) as process:
            return self.finish(process)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What a run that was begun has measured."""
        left = max(0.0, min(LONGEST, self._deadline - time.monotonic()))
        out, err = process.communicate(timeout=left)
        try:
            figures: dict[str, Any] = json.loads(out)
        except ValueError:
            raise RuntimeError(f"the load generator failed: {err.strip() or out}") from None
        if process.returncode or "error" in figures:
            raise RuntimeError(f"the load generator failed: {figures.get('error')} {err}")
        return figures


@contextlib.contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever happens meanwhile, the run is over in the end."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
