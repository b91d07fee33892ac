from __future__ import annotations

import pytest

from tests.support.clock import RunningClock
from tests.support.harness import harness, marked


@pytest.fixture
def clock():
    return RunningClock()


@pytest.fixture
async def timed(tmp_path, clock, request):
    """A gateway whose clock tests move."""
    async with harness(tmp_path, clock=clock, **marked(request)) as started:
        yield started
