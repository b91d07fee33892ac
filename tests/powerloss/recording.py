"""Records a story, and gives the states that a power cut at any point of it may leave."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tests.powerloss import stories
from tests.powerloss.disk import Disk, Ignore, State
from tests.powerloss.states import POLICIES, by_chance
from tests.powerloss.trace import STRACE, Moment, recorded

_PATIENCE = 120
_PART = 400
"""States of a plan for which the disk is followed once."""


def nothing(_: str, __: str) -> bool:
    """Every flush is done."""
    return False


@dataclass(frozen=True)
class Point:
    """A moment at which the power may fail: after so many changes, flushes and marks."""

    number: int
    told: int
    """How many marks were written."""
    urgency: int
    """2 if somebody was just told something, 1 if the next thing that happens is a flush."""


@dataclass(frozen=True)
class Cut:
    """A state of the disk: where the power failed, and what survived."""

    point: int
    policy: str
    told: int
    state: State

    def __str__(self) -> str:
        return f"{self.point}/{self.policy}"


class Recording:
    """A story as strace saw it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.root = folder / "root"
        self._marks = folder / "marks"
        self.root.mkdir(parents=True)
        stories.prepare(name, self.root)
        self._start = _read(self.root)
        trace = folder / "trace"
        subprocess.run(
            [
                *(*STRACE, str(trace), sys.executable, "-m", "tests.powerloss.stories"),
                *(name, str(self.root), str(self._marks)),
            ],
            check=True,
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        self._moments = recorded(trace)
        trace.unlink()
        self.marks = [json.loads(line) for line in self._marks.read_text("utf-8").splitlines()]
        self.flushes = self._flushes()
        """The path below the root of every flush, in order."""
        if self._end() != _without_index(_read(self.root)):
            raise AssertionError(f"the model of {name} does not end as the disk did")

    def replay(self, ignore: Ignore = nothing) -> Iterator[tuple[Disk, int, str]]:
        """The disk after each thing that happened, how many marks were written, and what it was."""
        disk = Disk(str(self.root), ignore)
        for path, content in self._start.items():
            disk.put(path, content)
        told = 0
        for moment in self._moments:
            changed = disk.follow(moment)
            if _is_mark(moment, str(self._marks)):
                told += 1
                yield disk, told, "mark"
            elif changed:
                yield disk, told, "change" if disk.flushed is None else "flush"

    def points(self) -> list[Point]:
        """Every point, in order."""
        happened = [(told, what) for _, told, what in self.replay()]
        after = [what for _, what in happened[1:]]
        return [
            Point(number, told, 2 if what == "mark" else int(following == "flush"))
            for number, ((told, what), following) in enumerate(
                zip(happened, [*after, ""], strict=True)
            )
        ]

    def cuts(self, plan: Iterable[tuple[int, str]], ignore: Ignore = nothing) -> Iterator[Cut]:
        """The states of a plan (numbers of points, and policies or seeds) that differ, the first of the plan first."""
        seen: set[int] = set()
        parts = iter(plan)
        while part := list(islice(parts, _PART)):
            wanted: dict[int, list[str]] = {}
            for number, policy in part:
                wanted.setdefault(number, []).append(policy)
            for number, (disk, told, _) in enumerate(self.replay(ignore)):
                for policy in wanted.get(number, ()):
                    make = POLICIES.get(policy)
                    state = make(disk) if make else by_chance(disk, f"{number} {policy}")
                    found = _digest(state, told)
                    if found not in seen:
                        seen.add(found)
                        yield Cut(number, policy, told, state)

    def _flushes(self) -> list[str]:
        return [disk.flushed for disk, _, _ in self.replay() if disk.flushed is not None]

    def _end(self) -> State:
        *_, (disk, _, _) = self.replay()
        return POLICIES["kept"](disk)


def plan(points: Sequence[Point], seed: str, count: int) -> list[tuple[int, str]]:
    """Points and policies, the promising ones first; half of them by chance."""
    chance = random.Random(seed)
    by_urgency: list[list[int]] = [[], [], []]
    for point in points:
        by_urgency[point.urgency].append(point.number)
    chosen = []
    for numbers in reversed(by_urgency):
        part = [(number, policy) for number in numbers for policy in POLICIES]
        chance.shuffle(part)
        chosen += part
    by_chance = [
        (chance.choice(by_urgency[turn % 2] or by_urgency[0]), f"{seed} {turn}")
        for turn in range(count - min(count // 2, len(chosen)))
    ]
    return [*chosen[: count // 2], *by_chance]


def _digest(state: State, told: int) -> int:
    # Python keeps the hash of bytes that it was asked for before.
    return hash((told, *((path, hash(content)) for path, content in state.items())))


def _is_mark(moment: Moment, marks: str) -> bool:
    call = moment.call
    return call.name == "write" and not moment.ended and call.handle(0).path == marks


def _read(root: Path) -> State:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def _without_index(state: State) -> State:
    return {path: content for path, content in state.items() if not path.endswith("-shm")}
