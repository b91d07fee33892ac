from __future__ import annotations

import sys

import pytest
import structlog

from tests.support.harness import Harness, harness

# Not `sys.stdout` of the moment, which may be the captured one of a command that a test runs meanwhile.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


@pytest.fixture
async def running(tmp_path) -> Harness:
    """A gateway with an admin `root` and a member `alice`."""
    async with harness(tmp_path) as started:
        yield started
