"""Measures the gateway beside what a user would pick instead.

    python -m tests.bench [--quick]

The systems take turns, round by round; it is over within 30 minutes, with `--quick` within 3. A full run
writes `bench.json`, docs/performance.md and its charts; a quick one prints its table alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.bench import enrolments, machine, nodes, phases, report, toolchain
from tests.bench.fleet import Fleet
from tests.bench.generator import Generator
from tests.bench.goals import GATEWAY, STEPS
from tests.bench.phases import Bench, Figures
from tests.bench.results import Results
from tests.bench.systems import SESSION_LAYER, System, peers

_FAILURES = (
    *(RuntimeError, OSError, AssertionError, LookupError),
    *(subprocess.SubprocessError, aiohttp.ClientError),
)
_SPARE_HANDLES = 1_000
SHORT, LONG, RARE = "short phases", "long phases", "rare phases"
STORMS = "storms of others"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    ices: int
    rounds: tuple[str, ...]
    """The kinds of the rounds, in their order."""
    seconds: float
    """No phase begins that would not end by then; one that takes longer has a sixteenth more."""

    @property
    def table(self) -> int:
        """Rows of the table whose pages are listed."""
        return 10 * self.ices

    @property
    def crowd(self) -> int:
        """ICEs that are connected at once at the most: nearly as many as there are file handles."""
        return 18 * self.ices // 10


FULL = Scale(
    ices=10_000,
    rounds=(
        *(SHORT, LONG, STORMS, RARE, SHORT, SHORT, LONG, RARE, SHORT, SHORT),
        *(LONG, STORMS, RARE, LONG, LONG, STORMS),
    ),
    seconds=28 * 60,
)
QUICK = Scale(ices=1_500, rounds=(SHORT, LONG, RARE, STORMS), seconds=175)


@dataclass(frozen=True)
class Step:
    """One phase of one system."""

    system: str
    phase: str
    measure: Callable[[], Figures]
    needed: bool = False
    """The rest of the round cannot do without it."""
    seconds: float = 10.0
    """How long it is expected to take as long as it was not tried."""


class TimeBudget:
    """How much time there is, and how long each thing took so far."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds
        self._took: dict[tuple[str, str], float] = {}

    @property
    def deadline(self) -> float:
        """When a phase that takes longer than it was to is broken off, by `time.monotonic`."""
        return self._began + self._seconds * 17 / 16

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def fits(self, steps: list[Step]) -> bool:
        """Whether they can end in time, by what each took at the most."""
        needed = sum(self._took.get((step.system, step.phase), step.seconds) for step in steps)
        return self.elapsed + 1.1 * needed < self._seconds

    def timed(self, step: Step) -> tuple[Figures, float]:
        """What a step measures, and the seconds that it took."""
        began = time.monotonic()
        key = step.system, step.phase
        try:
            return step.measure(), time.monotonic() - began
        finally:
            self._took[key] = max(self._took.get(key, 0.0), time.monotonic() - began)


def short(bench: Bench, others: tuple[System, ...]) -> list[Step]:
    """A round of what is compared, the gateway among the others, and of what is quickly measured."""
    bare, *more = others
    return [
        Step(GATEWAY, "first registrations", lambda: phases.register_all(bench), needed=True),
        _compared(bench, SESSION_LAYER),
        Step(GATEWAY, "admissions", lambda: phases.admissions(bench)),
        _compared(bench, bare),
        *(_compared(bench, system) for system in more),
        Step(GATEWAY, "one core and two", lambda: phases.two_cores(bench)),
        Step(GATEWAY, "enrolments", lambda: enrolments.enrolled(bench)),
        Step(GATEWAY, "drops", lambda: phases.drops(bench)),
        Step(GATEWAY, "mass drop", lambda: phases.mass_drop(bench)),
        Step(GATEWAY, "storm", lambda: phases.storm(bench)),
        Step(GATEWAY, "restart", lambda: phases.restart(bench)),
        Step(GATEWAY, "operations", lambda: phases.operations(bench)),
        Step(STEPS, "steps", lambda: phases.steps(bench)),
    ]


def long(bench: Bench, crowd: Fleet) -> list[Step]:
    """A round of what takes long."""
    return [
        Step(GATEWAY, "TLS", lambda: phases.tls_memory(bench)),
        Step(GATEWAY, "idle", lambda: phases.idle(bench), seconds=bench.hold + 6),
        Step(GATEWAY, "list of a crowd", lambda: phases.listing(bench, crowd), seconds=20),
    ]


def rare(bench: Bench, crowd: Fleet) -> list[Step]:
    """A round of what hardly differs from one to the next."""
    return [
        Step(GATEWAY, "full house", lambda: phases.full_house(bench, crowd), seconds=20),
        Step(GATEWAY, "drops across nodes", lambda: nodes.drops(bench), seconds=30),
    ]


def storms(bench: Bench, others: tuple[System, ...]) -> list[Step]:
    """A round of storms over the others, which may take them minutes."""
    return [
        Step(system.name, "storm", lambda system=system: phases.storm_of_others(bench, system))
        for system in others
    ]


def _compared(bench: Bench, system: System) -> Step:
    return Step(system.name, "admissions and drops", lambda: phases.others(bench, system))


def measure(
    results: Results, rounds: list[tuple[str, list[Step]]], budget: TimeBudget, log: Path
) -> None:
    """Take the rounds in their order for as long as there is time."""
    done: Counter[str] = Counter()
    planned = Counter(kind for kind, _ in rounds)
    over = set()
    for kind, steps in rounds:
        # The first round of a kind begins in any case, and goes as far as it comes.
        if kind in over or (done[kind] and not budget.fits(steps)):
            over.add(kind)
            continue
        done[kind] += 1
        for step in steps:
            title = f"round {done[kind]} of {kind}, {step.system}: {step.phase}"
            if not budget.fits([step]):
                results.notes.append(f"The time was over before {title}")
                break
            print(title, end="", flush=True)
            try:
                figures, took = budget.timed(step)
            except _FAILURES as error:
                results.failures.append(title)
                print(f"  failed: {error!r}\n{_end_of(log)}", flush=True)
                if step.needed:
                    break
            else:
                results.add(done[kind], step.system, figures)
                print(f"  {took:.1f} s", flush=True)
    results.notes += [
        f"The time was over after {done[kind]} of {planned[kind]} rounds of {kind}"
        for kind in sorted(over)
    ]
    print(*results.notes, sep="\n", flush=True)


def _end_of(log: Path) -> str:
    return subprocess.run(
        ["tail", "-n", "5", str(log)], capture_output=True, text=True, check=False
    ).stdout


def run(scale: Scale) -> Results:
    """Make what is needed, then measure."""
    budget = TimeBudget(scale.seconds)
    toolchain.check(scale.crowd + _SPARE_HANDLES)
    toolchain.HOME.mkdir(exist_ok=True)
    installed = toolchain.Peers(toolchain.peers_python(), toolchain.node_modules())
    # Beside the sources, not on a /tmp that may be memory: what is durable has to reach a disk.
    with tempfile.TemporaryDirectory(dir=toolchain.HOME, prefix="run-") as name:
        folder = Path(name)
        results = Results(
            ices=scale.ices,
            table=scale.table,
            crowd=scale.crowd,
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            machine=machine.machine(folder),
            versions=machine.versions(installed),
        )
        print(f"provisioning {scale.ices:,} ICEs, and {scale.table:,} for the list", flush=True)
        fleet = Fleet(folder / "fleet", scale.ices)
        asyncio.run(fleet.provision())
        crowd = Fleet(folder / "crowd", max(scale.crowd, scale.ices + phases.COMERS))
        asyncio.run(crowd.provision(others=scale.table - crowd.size))

        bench = Bench(folder, Generator(folder, budget.deadline), fleet)
        others = peers(installed.python, installed.modules)
        # What this process measures itself, operations and pages, it does from the generator's core.
        os.sched_setaffinity(0, {1})
        made = {
            SHORT: short(bench, others),
            LONG: long(bench, crowd),
            RARE: rare(bench, crowd),
            STORMS: storms(bench, others),
        }
        measure(results, [(kind, made[kind]) for kind in scale.rounds], budget, bench.log)
    print(f"measured for {budget.elapsed / 60:.1f} minutes", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a look in 3 minutes; writes nothing")
    parser.add_argument("--ices", type=int, help="so many ICEs, in place of the usual number")
    parser.add_argument("--minutes", type=float, help="so long at the most, in place of the usual")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    if options.ices:
        scale = replace(scale, ices=options.ices)
    if options.minutes:
        scale = replace(scale, seconds=60 * options.minutes)
    os.chdir(toolchain.ROOT)
    try:
        results = run(scale)
    except toolchain.Missing as missing:
        sys.exit(f"missing: {missing}")
    if options.quick:
        print(f"\n{scale.ices:,} ICEs only: the targets are for {FULL.ices:,}\n")
        print("\n".join([*report.goals(results), "", *report.side_by_side(results)]))
        return
    results.save(report.BENCH)
    report.write(results)
    print("bench.json, docs/performance.md and its charts are written")


if __name__ == "__main__":
    main()
