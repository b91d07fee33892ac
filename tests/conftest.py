from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import structlog

from tests.support.harness import Harness, harness
from tests.support.postgres import Postgres, postgres

# Not `sys.stdout` of the moment, which may be the captured one of a command that a test runs meanwhile.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


@pytest.fixture
async def running(tmp_path) -> Harness:
    """A gateway with an admin `root` and a member `alice`."""
    async with harness(tmp_path) as started:
        yield started


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL for all tests of this process."""
    with postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres_server) -> Iterator[str]:
    """A new, empty database on PostgreSQL."""
    url = postgres_server.database()
    yield url
    postgres_server.drop(url)
