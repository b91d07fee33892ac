"""Which of the states are tried that a disk may hold: the extremes, and some by chance.

Tested in tests/powerloss/test_powerloss.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.powerloss.disk import Disk, State
from tests.powerloss.nodes import SECTOR, Data, File, apply


def zeros(file: File) -> bytes:
    """Its length without the bytes that are not sure, as after a delayed allocation."""
    if not file.pending:
        return file.sure
    content = file.content()
    return file.sure[: len(content)].ljust(len(content), b"\0")


def torn(file: File, chance: random.Random) -> bytes:
    """Some of the changes, whole or only some of their sectors."""
    if not file.pending:
        return file.sure
    content = bytearray(file.sure)
    share = chance.random()
    for change in file.pending:
        fate = chance.random()
        if change.data is None:
            if fate < share:
                apply(content, change)
        elif fate < share * 0.7:
            apply(content, change)
        elif fate < share:
            for piece in _sectors(change):
                if chance.random() < 0.5:
                    apply(content, piece)
    return bytes(content)


def first_half(file: File) -> bytes:
    """All changes but the last, of which the first half of its sectors is there."""
    if not file.pending:
        return file.sure
    content = bytearray(file.sure)
    for change in file.pending[:-1]:
        apply(content, change)
    if file.pending and file.pending[-1].data is not None:
        pieces = list(_sectors(file.pending[-1]))
        for piece in pieces[: max(1, len(pieces) // 2)] if len(pieces) > 1 else []:
            apply(content, piece)
    return bytes(content)


def _sectors(change: Data) -> Iterator[Data]:
    """The parts of a write that lie in different sectors."""
    assert change.data is not None
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield Data(start, change.data[start - change.offset : stop - change.offset])
        start = stop


def _sure(file: File) -> bytes:
    return file.sure


POLICIES: dict[str, Callable[[Disk], State]] = {
    "lost": lambda disk: disk.state(lambda _: False, _sure),
    "kept": lambda disk: disk.state(lambda _: True),
    "names": lambda disk: disk.state(lambda _: True, _sure),
    "lengths": lambda disk: disk.state(lambda _: True, zeros),
    "bytes": lambda disk: disk.state(lambda _: False),
    "half": lambda disk: disk.state(lambda _: True, first_half),
}
"""What survives: nothing that is not sure, everything, the names alone, names and lengths, bytes alone, a half last write."""


def by_chance(disk: Disk, seed: str) -> State:
    """A state by chance that comes again by its seed."""
    chance = random.Random(seed)
    share = chance.choice([0.2, 0.5, 0.8, 1.0])
    return disk.state(lambda _: chance.random() < share, lambda file: torn(file, chance))
