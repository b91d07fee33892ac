"""What a run of the benchmark has measured, round by round: `bench.json`."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.goals import Figure, Ratio, Sum


@dataclass(frozen=True)
class Spread:
    """The rounds of one figure. Neighbours disturb a round, so the median speaks."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass
class Results:
    """All raw figures. `rounds[k][system][figure]` is a number; a round need not have every figure."""

    ices: int
    table: int
    """Rows of the table whose pages are listed."""
    crowd: int
    """ICEs that are connected at once at the most."""
    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, number: int, system: str, figures: dict[str, float]) -> None:
        """Put down what round `number` (from 1) has measured of a system."""
        while len(self.rounds) < number:
            self.rounds.append({})
        self.rounds[number - 1].setdefault(system, {}).update(figures)

    def spread(self, wanted: Figure | Ratio) -> Spread | None:
        """A figure over the rounds that have it; of a ratio, the ratio within each round."""
        found = [value for one in self.rounds if (value := _in_round(one, wanted)) is not None]
        return Spread(tuple(found)) if found else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text("utf-8")))


def _in_round(one: dict[str, dict[str, float]], wanted: Figure | Sum | Ratio) -> float | None:
    if isinstance(wanted, Figure):
        return one.get(wanted.system, {}).get(wanted.name)
    if isinstance(wanted, Sum):
        parts = [_in_round(one, part) for part in wanted.parts]
        return None if None in parts else sum(part for part in parts if part is not None)
    over, under = _in_round(one, wanted.over), _in_round(one, wanted.under)
    return None if over is None or not under else over / under
