from __future__ import annotations

import pytest

from tests.support.harness import Harness, harness


@pytest.fixture
async def running(tmp_path) -> Harness:
    """A gateway with an admin `root` and a member `alice`."""
    async with harness(tmp_path) as started:
        yield started
