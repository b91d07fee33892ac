from __future__ import annotations

import functools

import pytest

from gateway.store.sqlite import open_sqlite
from tests.contract.domain import add_user

# PostgreSQL joins here: the suite holds for every engine, `test_sqlite.py` for this one alone.
ENGINES = {"sqlite": lambda folder: functools.partial(open_sqlite, folder / "ice.db")}


@pytest.fixture(params=ENGINES)
def open_store(request, tmp_path):
    """Opens the test's database; one that is not `serving` does what a command does."""
    return ENGINES[request.param](tmp_path)


@pytest.fixture
async def engine(open_store):
    """The engine of a gateway whose users include alice."""
    async with open_store(serving=True) as opened:
        await add_user(opened, "alice")
        yield opened
