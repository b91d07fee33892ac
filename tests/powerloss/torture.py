"""Cuts the power at every point of a gateway's and a client's life, and starts again on each disk that it may leave.

A story runs under strace. From the writes, flushes and renames that it made, `disk` builds what a disk may hold after a
power cut: `recording` says which of them. Each is started by the code that opens these files in earnest, and compared
with what somebody was told until then; on some of them a client and a gateway meet, and on a few they do so as the
processes that people start. `--mutations` leaves flushes out of the recording, as if the program had forgotten them:
each must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gateway.runtime.logs import configure
from tests.powerloss import check, processes
from tests.powerloss.facts import Facts
from tests.powerloss.recording import Cut, Recording, plan
from tests.powerloss.stories import STORIES

MEMORY = "/dev/shm"  # noqa: S108 - a folder of its own is made there
WORKERS = 2
MEET = 10
"""Of so many states one lets a client and a gateway meet."""
_BATCH = 32
_ENOUGH = 1500
"""States among which a mutation must be found."""


@dataclass(frozen=True)
class Mutation:
    """Flushes that are left out of a story: those of paths below the root that match, directly after others that match."""

    story: str
    paths: str
    after: str = ".*"

    def leaves_out(self, path: str, before: str) -> bool:
        """Whether the flush of a path is left out that comes after the one of `before`."""
        return bool(re.fullmatch(self.paths, path) and re.fullmatch(self.after, before))


MUTATIONS = {
    "database": Mutation("first", r"gw/ice\.db(-wal|-journal)?"),
    "log-of-database": Mutation("first", r"gw/ice\.db-wal"),
    "key-file": Mutation("first", r"gw/\.ice\.keys\.json\..*"),
    "key-file-replaced": Mutation("keys", r"gw/\.ice\.keys\.json\..*"),
    "folder-of-key-file": Mutation("first", r"gw", after=r"gw/\.ice\.keys\.json\..*"),
    "folder-of-gateway": Mutation("keys", r"gw"),
    "key-of-client": Mutation("first", r".*/key\.pem\.new"),
    "token-of-client": Mutation("first", r".*/token\.new"),
    "folder-of-client": Mutation("first", r".*/ice-client"),
    "folders-above-client": Mutation("first", r"home(/\.local(/state)?)?"),
    "journal": Mutation("first", r".*/operations\.db(-journal)?"),
    "token-of-enrolment": Mutation("enrol", r".*/token\.new"),
    "database-of-backup": Mutation("restore", r"backups/.*/ice-gateway\.db(-journal)?"),
    "keys-of-backup": Mutation("restore", r"backups/.*/ice-gateway\.keys\.json"),
    "manifest-of-backup": Mutation("restore", r"backups/.*/manifest\.json"),
    "names-in-backup": Mutation("restore", r"backups/\.[^/]*/[^/]*"),
    "folder-of-backup": Mutation("restore", r"backups"),
    "restored-database": Mutation("restore", r"gw/\.ice\.db\..*/ice\.db(-wal|-journal)?"),
    "folder-of-restored": Mutation("restore", r"gw"),
    "database-put-aside": Mutation("restore", r"gw/.*before-restore.*"),
    "copy-before-migration": Mutation("migrate", r"gw/\.ice\.db\.before-schema-.*"),
    "tokens-of-fleet": Mutation("fleet", r".*/lab-\d\.token"),
    "folder-of-fleet": Mutation("fleet", r"home/fleet/tokens"),
    "folders-above-fleet": Mutation("fleet", r"home(/fleet)?"),
}
"""Each leaves out a flush of its own, or those of one file."""


@dataclass
class Outcome:
    """What became of the states of a story."""

    states: int = 0
    met: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    """The faults by state."""


Job = tuple[Cut, list[dict[str, Any]], bool, str | None]


def examine(job: Job) -> list[str]:
    """Start on one state; everything that is wrong. With `keep` the state of a fault is kept there."""
    cut, marks, meet, keep = job
    facts = Facts.of(marks)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        root = Path(name)
        check.put(cut.state, root)
        try:
            found = asyncio.run(check.faults(root, facts))
            if not found and meet:
                found = asyncio.run(check.admit(root, facts))
        except Exception as error:  # noqa: BLE001 - whatever nobody expects is a fault
            found = [f"{type(error).__name__}: {error}"]
    if found and keep is not None:
        kept = Path(keep) / str(cut).replace("/", "-")
        kept.mkdir(parents=True)
        check.put(cut.state, kept)
    return found


def _jobs(cuts: Iterable[Cut], recording: Recording, keep: str | None) -> Iterator[Job]:
    for number, cut in enumerate(cuts):
        yield cut, recording.marks[: cut.told], number % MEET == 0, keep


def torture(
    pool: Executor,
    recording: Recording,
    cuts: Iterator[Cut],
    *,
    until_found: bool = False,
    keep: str | None = None,
) -> Outcome:
    """Start on all of these states, or until a fault is found."""
    outcome = Outcome()
    jobs = _jobs(cuts, recording, keep)
    while batch := list(islice(jobs, _BATCH)):
        for (cut, _, meet, _), found in zip(
            batch, pool.map(examine, batch, chunksize=4), strict=True
        ):
            outcome.states += 1
            outcome.met += meet
            if found:
                outcome.faults[str(cut)] = found
        if until_found and outcome.faults:
            break
    return outcome


def workers() -> Executor:
    """Processes that have imported everything."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(WORKERS, fork, _ready)


def _ready() -> None:
    configure("text", "critical")


def run(given: argparse.Namespace) -> int:
    """Record the stories, and start on their states; the number of faults and of mutations that were not found."""
    names = given.story or list(STORIES)
    failed = 0
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        workers() as pool,
    ):
        total = Outcome()
        for name in names:
            began = time.monotonic()
            recording = Recording(name, Path(folder) / name)
            points = recording.points()
            share = given.states // len(names)
            chosen = plan(points, f"{given.seed}", 2 * share)
            # Some of a plan are alike: of those that differ only so many are started.
            cuts = islice(recording.cuts(_mixed(chosen)), share)
            done = torture(pool, recording, cuts, keep=given.keep)
            if given.processes:
                done.faults |= processes.sample(recording, points, given.processes, given.seed)
            _tell(name, recording, len(points), done, time.monotonic() - began)
            failed += len(done.faults)
            total.states += done.states
            total.met += done.met
            if given.mutations:
                many = plan(points, f"{given.seed}", 2 * _ENOUGH)
                failed += _mutate(pool, recording, many)
            shutil.rmtree(Path(folder) / name)
    print(
        f"{total.states:,} states, {total.met:,} met by a client, seed {given.seed}, {failed} failed"
    )
    return failed


def _mixed(chosen: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The planned states and those by chance in turn."""
    half = len(chosen) // 2
    return [one for pair in zip(chosen[:half], chosen[half:], strict=False) for one in pair]


def _mutate(pool: Executor, recording: Recording, chosen: list[tuple[int, str]]) -> int:
    missed = 0
    for name, mutation in MUTATIONS.items():
        if mutation.story != recording.name:
            continue
        before = ["", *recording.flushes]
        left_out = sum(map(mutation.leaves_out, recording.flushes, before))
        cuts = recording.cuts(chosen, mutation.leaves_out)
        done = torture(pool, recording, islice(cuts, _ENOUGH), until_found=True)
        fault = next((found[0] for found in done.faults.values()), None)
        missed += fault is None
        print(
            f"  without {name} ({left_out} flushes): "
            + (f"NOT FOUND in {done.states} states" if fault is None else f"{fault[:150]}"),
            flush=True,
        )
    return missed


def _tell(name: str, recording: Recording, points: int, done: Outcome, seconds: float) -> None:
    print(
        f"{name}: {points} points, {len(recording.flushes)} flushes, {done.states} states,"
        f" {done.met} met by a client, {len(done.faults)} with faults, {seconds:.1f} s",
        flush=True,
    )
    for fault, count in Counter(
        re.sub(r"[0-9a-f]{8,}", "…", text) for found in done.faults.values() for text in found
    ).most_common(10):
        print(f"  {count}: {fault[:300]}")
    for cut in islice(done.faults, 5):
        print(f"  at {cut}")
