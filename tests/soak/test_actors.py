"""A run in which somebody does nothing any more proves nothing, and says so."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from tests.soak.actors import NEVER_REST, World
from tests.support.harness import Api


def test_who_rests_is_found():
    world = World(Path(), "", Path(), Api(None, "", ""), random.Random(1))
    world.did.update(NEVER_REST)
    assert world.resting(Counter()) == []
    before = world.did.copy()
    world.did.update(["page", "login"])
    assert set(world.resting(before)) == {*NEVER_REST} - {"page", "login"}
