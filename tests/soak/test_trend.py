"""A leak is found, and what only goes up and down is none."""

from __future__ import annotations

import random

import pytest

from tests.soak.observe import ALLOWED, Look, growth
from tests.soak.trend import Allowance, trend

MIB = 2**20


def noisy(count: int, at: float, noise: float, rise: float = 0.0) -> list[float]:
    chance = random.Random(7)
    return [
        at + chance.uniform(-noise, noise) + rise * place / (count - 1) for place in range(count)
    ]


def test_a_leak_grows_through_noise_and_values_that_stand_out():
    series = noisy(24, 90, 3, rise=30)
    series[13] = 400
    seen = trend(series)
    assert seen.values == 16
    assert 15 < seen.rise < 25
    assert seen.grows(Allowance(6))


def test_what_only_goes_up_and_down_does_not_grow():
    chances = (
        trend([random.Random(seed * 100 + place).gauss(90, 5) for place in range(24)])
        for seed in range(200)
    )
    assert sum(seen.grows(Allowance(0, 0)) for seen in chances) <= 6


def test_growth_that_ends_with_the_warm_up_is_none():
    series = [*noisy(8, 60, 1, rise=40), *noisy(16, 100, 1)]
    assert not trend(series).grows(Allowance(1))


def test_growth_within_the_allowance_is_none():
    assert not trend(noisy(24, 100, 0.1, rise=6)).grows(Allowance(0, 0.05))
    assert trend(noisy(24, 100, 0.1, rise=9)).grows(Allowance(0, 0.05))


@pytest.mark.parametrize("series", [[], [1.0] * 8, [5.0] * 40])
def test_nothing_is_said_of_a_short_series_or_one_that_stands_still(series):
    seen = trend(series)
    assert seen is None or not seen.grows(Allowance(0, 0))


def looks(leak: str | None = None, types: str | None = None) -> list[Look]:
    """Twenty looks; what `leak` names doubles."""
    found = []
    for place in range(20):
        figures = dict.fromkeys(ALLOWED, 100.0 * MIB)
        if leak is not None:
            figures[leak] *= 1 + place / 20
        counts = {"builtins.dict": 4_000, **({types: 400 * place} if types else {})}
        found.append(Look(place / 10, figures, {}, counts, {}))
    return found


@pytest.mark.parametrize("leak", ALLOWED)
def test_each_figure_is_looked_at(leak):
    assert growth(looks()) == []
    [sentence] = growth(looks(leak))
    assert sentence.startswith(f"{leak} rises by")


def test_objects_of_one_type_are_named():
    [sentence] = growth(looks(types="gateway.node.session.Session"))
    assert sentence.startswith("objects of gateway.node.session.Session rise")
