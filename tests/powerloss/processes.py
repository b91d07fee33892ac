"""`ice-gateway serve` and `ice-client run`, started as people do, on a disk as a power cut left it."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.powerloss import check
from tests.powerloss.facts import Facts
from tests.powerloss.recording import Point, Recording
from tests.powerloss.stories import STATE
from tests.support.served import Output, environment, serving


def sample(
    recording: Recording, points: Sequence[Point], count: int, seed: int
) -> dict[str, list[str]]:
    """Try some states after the client's first proof; the faults by state."""
    ready = next((n for n, mark in enumerate(recording.marks, 1) if mark["what"] == "ready"), None)
    chosen = [point.number for point in points if ready is not None and point.told >= ready]
    if not chosen:
        return {}
    chance = random.Random(seed)
    plan = [(chance.choice(chosen), chance.choice(("lost", "names", "half"))) for _ in range(count)]
    found = {}
    for cut in recording.cuts(plan):
        with tempfile.TemporaryDirectory() as folder:
            check.put(cut.state, Path(folder))
            fault = _meet(Path(folder), Facts.of(recording.marks[: cut.told]))
        if fault is not None:
            found[f"{cut} (processes)"] = [fault]
    return found


def _meet(root: Path, facts: Facts) -> str | None:
    with serving(root / "gw") as gateway:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "client", "run"),
                *("--gateway", gateway.url, "--state-dir", str(root / STATE)),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = Output(process.stdout)
        try:
            said.expect(_expected(facts))
        except AssertionError as fault:
            return str(fault)
        finally:
            process.kill()
            process.wait()
            said.end()
    return None


def _expected(facts: Facts) -> str:
    """What the client says; while a restore or its confirmation runs, it may be either."""
    if facts.restore is None:
        return "admitted as"
    if facts.restore.done and not facts.restore.confirming:
        return "restored from a backup"
    return "restored from a backup|admitted as"
