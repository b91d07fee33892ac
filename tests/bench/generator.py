"""Runs the load generator, on the second core; what it prints is JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.systems import OTHER_CORE

_SOURCE = Path(__file__).with_name("loadgen.c")
LONGEST = 240.0
"""Seconds for one run at the most."""


class Generator:
    """The load generator, built in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "loadgen"
        subprocess.run(
            ["gcc", "-O2", "-o", str(self._program), str(_SOURCE), "-lssl", "-lcrypto"], check=True
        )

    def start(self, url: str, *options: object) -> subprocess.Popen[str]:
        """Begin a run."""
        command = ["taskset", "-c", OTHER_CORE, str(self._program), "--url", url]
        return subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, url: str, *options: object) -> dict[str, Any]:
        """One run to its end. Raises RuntimeError where it does not come to one."""
        return finish(self.start(url, *options))


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a run that was begun has measured."""
    try:
        out, err = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    try:
        figures: dict[str, Any] = json.loads(out)
    except ValueError:
        raise RuntimeError(f"the load generator failed: {err.strip() or out}") from None
    if process.returncode or "error" in figures:
        raise RuntimeError(f"the load generator failed: {figures.get('error')} {err}")
    return figures
