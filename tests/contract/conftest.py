from __future__ import annotations

import functools

import aiosqlite
import pytest

from gateway.store.postgres.engine import open_postgres
from gateway.store.sqlite.engine import open_sqlite
from tests.contract.domain import add_user
from tests.support.databases import put_database


@pytest.fixture(params=["sqlite", "postgresql"])
def open_store(request, tmp_path):
    """Opens the test's database; one that is not `serving` does what a command does.

    The suite holds for every engine, `test_sqlite.py` and `test_postgres.py` each for one alone.
    """
    if request.param == "sqlite":
        put_database(tmp_path / "ice.db")
        yield functools.partial(open_sqlite, tmp_path / "ice.db")
        return
    url = request.getfixturevalue("tables_url")

    def opening(*, serving=False, **options):
        node = "node-a" if serving else None
        return open_postgres(url, node=node, tell=lambda _: None, **options)

    yield opening


@pytest.fixture
def connections(monkeypatch):
    """The connections of SQLite as they are made; of an engine's the first one writes."""
    made = []
    connect = aiosqlite.connect

    def recorded(*args, **options):
        made.append(connect(*args, **options))
        return made[-1]

    monkeypatch.setattr(aiosqlite, "connect", recorded)
    return made


@pytest.fixture
async def engine(open_store):
    """The engine of a gateway whose users include alice."""
    async with open_store(serving=True) as opened:
        await add_user(opened, "alice")
        yield opened
