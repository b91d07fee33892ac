from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import structlog

from tests.support.harness import Harness, harness
from tests.support.postgres import Postgres, postgres

# Not `sys.stdout` of the moment, which may be the captured one of a command that a test runs meanwhile.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))

ON_POSTGRESQL = os.environ.get("ICE_TEST_ENGINE") == "postgresql"
"""Whether the tests of a running gateway are made on the other engine (`make torture`)."""


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is about SQLite's file, where there is none."""
    if ON_POSTGRESQL:
        left_out = [item for item in items if item.get_closest_marker("sqlite")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
async def running(tmp_path, request, monkeypatch) -> Harness:
    """A gateway with an admin `root` and a member `alice`."""
    options = {}
    if ON_POSTGRESQL:
        key_file = str(tmp_path / "ice.keys.json")
        monkeypatch.setenv("ICE_GATEWAY_TOKENS__KEY_FILE", key_file)  # for commands
        url = request.getfixturevalue("database_url")
        options = {"database__url": url, "tokens__key_file": key_file}
    async with harness(tmp_path, **options) as started:
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
