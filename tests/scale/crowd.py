"""The generators as one crowd of ICEs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.scale.samples import cpu_of

_PATIENCE = 120.0
_LOOK = 0.5
"""Seconds between two looks at who is connected."""


@dataclass
class Seen:
    """What all generators have seen between two looks, or over a longer time."""

    admitted: int = 0
    went: int = 0
    connected: int = 0
    stopped: int = 0
    last_admitted: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    absences: list[float] = field(default_factory=list)

    def add(self, figures: dict[str, Any]) -> None:
        """Add what one generator has seen."""
        for name, value in figures.items():
            if name == "last_admitted":
                self.last_admitted = max(self.last_admitted, value)
            elif name in ("refused", "closed", "errors"):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def later(self, other: Seen) -> Seen:
        """This and what was seen after it; `connected` and `stopped` as they were last."""
        both = Seen()
        both.add(vars(self))
        both.add(vars(other))
        both.connected, both.stopped = other.connected, other.stopped
        return both


class _Worker:
    """One generator."""

    def __init__(self, process: asyncio.subprocess.Process, closed: dict[int, tuple[int, float]]):
        self.process = process
        self._closed = closed
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            message = json.loads(line)
            if "ended" in message:
                self._closed[message["ended"]] = message["code"], message["at"]
            else:
                self._answers.put_nowait(message)
        self._answers.put_nowait({"done": "over"})

    def tell(self, do: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")

    async def answer(self, to: str) -> dict[str, Any]:
        async with asyncio.timeout(_PATIENCE):
            answer = await self._answers.get()
        if answer.pop("done") != to:
            raise RuntimeError(f"a generator did not answer {to}: {answer}")
        return answer

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading


class Crowd:
    """`size` ICEs, an equal number in each of the processes; see `crowd`."""

    def __init__(self, workers: list[_Worker], size: int, thumbprints: list[Path]) -> None:
        self._workers = workers
        self.size = size
        self._files = thumbprints
        self.closed: dict[int, tuple[int, float]] = {}
        """By number: the code with which an ICE was closed for good, and when by `time.monotonic`."""

    @property
    def thumbprints(self) -> list[str]:
        return [line for file in self._files for line in file.read_text().split()]

    @property
    def cpu(self) -> float:
        """Seconds that all have used."""
        return sum(cpu_of(worker.process.pid) for worker in self._workers)

    async def take(self, tokens: Sequence[Path]) -> None:
        """Give each process the file with the tokens of its ICEs."""
        for worker, file in zip(self._workers, tokens, strict=True):
            worker.tell("tokens", file=str(file))
        for worker in self._workers:
            await worker.answer("tokens")

    def tell(self, do: str, **more: Any) -> None:
        """`connect` (`at_once` handshakes in each process), `churn` (`per_s` of all), or `break`."""
        if "per_s" in more:
            more["per_s"] /= len(self._workers)
        for worker in self._workers:
            worker.tell(do, **more)

    async def look(self) -> Seen:
        """What has happened since the last look."""
        seen = Seen()
        for worker in self._workers:
            worker.tell("report")
        for worker in self._workers:
            seen.add(await worker.answer("report"))
        return seen

    async def until(self, connected: int, seconds: float) -> Seen:
        """Look until so many are connected, at the most for so long; what was seen meanwhile."""
        end = time.monotonic() + seconds
        seen = await self.look()
        while seen.connected < connected and time.monotonic() < end:
            await asyncio.sleep(_LOOK)
            seen = seen.later(await self.look())
        return seen


@contextlib.asynccontextmanager
async def crowd(folder: Path, size: int, processes: int, ports: list[int]) -> AsyncIterator[Crowd]:
    """Start the processes; the keys of their ICEs are there once this is open."""
    each = size // processes
    files = [folder / f"thumbprints-{number}" for number in range(processes)]
    gathered = Crowd([], each * processes, files)
    try:
        for number, file in enumerate(files):
            given = {
                "first": number * each,
                "count": each,
                "sources": [f"127.0.{number + 1}.{last}" for last in range(1, 5)],
                "ports": ports,
                "thumbprints": str(file),
            }
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.scale.generator", json.dumps(given)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                limit=1 << 26,
            )
            gathered._workers.append(_Worker(process, gathered.closed))
        for worker in gathered._workers:
            await worker.answer("keys")
        yield gathered
    finally:
        for worker in gathered._workers:
            await worker.end()
