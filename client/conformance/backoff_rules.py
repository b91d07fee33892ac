"""Judges how long an ICE waits between its attempts. Pure; source: docs/protocol.md, section 3.

Waits are random, so some rules look at many of them. An ICE that keeps the rules is wrongly judged once in thousands
of runs at the most.

Tested in tests/client/test_client_conformance_rules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from client.backoff import BASE, CAP
from client.conformance.report import Finding
from client.conformance.sentences import Sentence

_ENOUGH: Final = 5
"""Waits from which a rule about randomness can be judged."""
_BY_CHANCE: Final = 1 / 2000
"""How often waits that are random may be judged to be none."""
_TOO_SHORT: Final = 0.05
"""The part of the bound that at least one of five waits exceeds; by chance none does in 1 of 3 million runs."""

_GROWN: Final = 1.25
"""Seconds that no first wait takes; it leaves a quarter of a second to the machine."""


def bound(attempt: int) -> float:
    """The longest wait in seconds after the n-th attempt in a row that failed, from 1."""
    return min(CAP, BASE * 2.0 ** (attempt - 1))


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait in seconds that ends with an attempt, after the n-th one that failed."""

    attempt: int
    seconds: float

    @property
    def part(self) -> float:
        """The wait as a part of its bound."""
        return self.seconds / bound(self.attempt)


def judge_bound(wait: Wait, slack: float) -> Finding:
    """Judge one wait; `slack` seconds are for the program and the machine."""
    longest = bound(wait.attempt)
    seen = f"it came {wait.seconds:.1f} s after attempt {wait.attempt}, in place of {longest:g} s at the most"
    return Finding(Sentence.BACKOFF_BOUND, wait.seconds <= longest + slack, seen)


def _spread(count: int) -> float:
    """The spread below which so many random waits lie `_BY_CHANCE`, as a part of their bound.

    That of n uniform numbers is below r with a probability of less than n * r ** (n - 1).
    """
    return float((_BY_CHANCE / count) ** (1 / (count - 1)))


def judge_jitter(waits: Sequence[Wait]) -> Finding | None:
    """Judge first waits of several processes; None if there are too few."""
    parts = [wait.part for wait in waits if wait.attempt == 1]
    if len(parts) < _ENOUGH:
        return None
    seen = f"the first waits of {len(parts)} processes took {min(parts):.2f} to {max(parts):.2f} s"
    random = max(parts) - min(parts) > _spread(len(parts)) and max(parts) > _TOO_SHORT
    return Finding(Sentence.BACKOFF_JITTER, random, seen)


def grows(waits: Sequence[Wait]) -> bool:
    """Whether a row of waits exceeds what an ICE would do that waits after each as after the first.

    An ICE that keeps the rules fails it in 1 of 33 rows of four waits: repeat the row then.
    """
    return any(wait.seconds > _GROWN for wait in waits)
