"""Whether a series grows: by its median slope, if the order of the values is no chance.

The slope is Theil and Sen's, the median of the slopes between all pairs: a value that stands out does not matter. Whether the
values rise at all is asked by the test of Mann and Kendall: how many pairs rise, and how many fall.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WARM_UP = 3
"""The first of so many parts of a run fills caches, tables and pools."""
_FEWEST = 6
"""Values without which nothing is concluded."""
_Z = 2.33
"""Of the normal distribution: 1 in 100 series without a trend rises as much."""


@dataclass(frozen=True)
class Allowance:
    """By how much a figure may grow from the end of the warm-up to the end: the larger of the two."""

    absolute: float
    share: float = 0.05


@dataclass(frozen=True)
class Trend:
    """A series after its warm-up. `rise` is the growth over all of it, in its unit."""

    middle: float
    rise: float
    certain: bool
    values: int

    def grows(self, allowed: Allowance) -> bool:
        """Whether it grows by more than that, and not by chance."""
        return self.certain and self.rise > max(allowed.absolute, allowed.share * self.middle)


def trend(series: Sequence[float]) -> Trend | None:
    """None for a series that is too short, after its warm-up, to say anything."""
    values = series[len(series) // WARM_UP :]
    count = len(values)
    if count < _FEWEST:
        return None
    pairs = list(itertools.combinations(range(count), 2))
    slopes = [(values[later] - values[first]) / (later - first) for first, later in pairs]
    rising = sum((slope > 0) - (slope < 0) for slope in slopes)
    ties = sum(
        size * (size - 1) * (2 * size + 5)
        for size in (len(list(group)) for _, group in itertools.groupby(sorted(values)))
    )
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    z = (rising - 1) / math.sqrt(variance) if rising > 0 and variance > 0 else 0.0
    return Trend(statistics.median(values), statistics.median(slopes) * (count - 1), z > _Z, count)
