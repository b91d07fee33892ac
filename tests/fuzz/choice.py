"""Chooses the seeds of a target: the smallest inputs that together run the most lines of the product."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.target import SEEDS, Target, load

_AT_MOST = 32
"""Seeds of a target."""
_BYTES = 12 * 1024
"""Of all of them together."""
_LONGEST = 2048
ONCE_FAILED = "failed-"
"""Begins the names of inputs whose fault was mended; they stay whatever they run."""

Step = tuple[str, int, int]
"""From one line of a file to another."""


def keep(name: str, corpus: Path) -> int:
    """Renew the seeds of a target from its corpus and the old ones; how many there are now."""
    target, folder = load(name), SEEDS / name
    folder.mkdir(parents=True, exist_ok=True)
    old = [file for file in folder.iterdir() if not file.name.startswith(ONCE_FAILED)]
    given = {file.read_bytes() for file in [*old, *corpus.glob("*")]}
    seen: set[Step] = set()
    for example in target.examples:
        seen |= steps_of(target, example)
    chosen = choose(target, sorted(given, key=lambda data: (len(data), data)), seen)
    for file in old:
        file.unlink()
    for data in chosen:
        (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    return len(list(folder.iterdir()))


def choose(target: Target, inputs: list[bytes], seen: set[Step]) -> list[bytes]:
    """The inputs that run most of what is not in `seen`: in each round the one that adds the most."""
    new = {data: steps_of(target, data) - seen for data in inputs if len(data) <= _LONGEST}
    chosen: list[bytes] = []
    while len(chosen) < _AT_MOST:
        room = _BYTES - sum(map(len, chosen))
        best = max(
            (data for data in new if len(data) <= room),
            key=lambda data: len(new[data]),
            default=b"",
        )
        gained = new.pop(best, set())
        if not gained:
            break
        chosen.append(best)
        new = {data: steps - gained for data, steps in new.items() if steps - gained}
    return chosen


def steps_of(target: Target, data: bytes) -> set[Step]:
    """The steps that an input makes in the product."""
    steps: set[Step] = set()
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if "/tests/" in path or ("/lib/python" in path and "/cronsim/" not in path):
            return None
        if event == "line":
            steps.add((path, before.get(frame, 0), frame.f_lineno))
            before[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        target.check(data, target.product)
    finally:
        sys.settrace(None)
    return steps
