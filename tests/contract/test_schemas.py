"""Both engines have one schema: what differs is written here, and why."""

from __future__ import annotations

import re
import sqlite3

import pytest

from gateway.store.postgres import migrate as migrate_postgres
from gateway.store.postgres.engine import open_postgres
from gateway.store.sqlite import migrate as migrate_sqlite
from gateway.store.sqlite.engine import open_sqlite

ONLY_ON_POSTGRESQL = {
    "ice_schema",  # SQLite: user_version,
    "ice_head",  # the one writer's own count,
    "ice_clock",  # and the machine's clock that nobody sets
}
ONLY_ON_SQLITE = {
    (
        *("lower", "ice_name", "status", "ice_type", "provisionedto", "node", "lastseen"),
        *("expireson", "refusedon", "duplicateon", "version_key", "provisionedon", "registeredon"),
        *("pausedon", "pauseduntil", "labels", "own_text", "session_text"),
    ),
    ("lastseen", "lower", "ice_name", "node", "status", "ice_type"),
}
"""A row of the first could be too long for PostgreSQL, which has trigrams instead; the others change with each
session, which is dearer there."""
SEARCH_ON_POSTGRESQL = {("own_text",), ("session_text",)}
TYPES = {"text": "TEXT", "bigint": "INTEGER", "double precision": "REAL"}


@pytest.fixture
async def file(tmp_path):
    async with open_sqlite(tmp_path / "ice.db"):
        pass
    connection = sqlite3.connect(tmp_path / "ice.db")
    yield connection
    connection.close()


@pytest.fixture
async def server(database_url):
    async with open_postgres(database_url, tell=lambda _: None) as engine:
        yield engine


def tables_of(file):
    sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    return {name for (name,) in file.execute(sql)}


async def test_the_numbers_of_the_schemas_are_the_same():
    assert migrate_sqlite.released()[-1][0] == migrate_postgres.released()[-1][0]


async def test_tables_and_columns_are_the_same(file, server):
    there = {name: {} for name in tables_of(file)}
    for table, columns in there.items():
        for _, name, kind, needed, default, key in file.execute(f"PRAGMA table_info({table})"):
            columns[name] = (kind, bool(needed or key), default is not None)
    rows = await server.fetch(
        "SELECT table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = current_schema()"
    )
    here: dict[str, dict] = {}
    for table, name, kind, nullable, default in rows:
        here.setdefault(table, {})[name] = (TYPES[kind], nullable == "NO", default is not None)
    assert set(here) - set(there) == ONLY_ON_POSTGRESQL
    for table, columns in there.items():
        assert here[table] == columns, f"the columns of {table} were expected to be the same"


async def test_text_sorts_by_code_points_everywhere(server):
    rows = await server.fetch(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND data_type = 'text' AND collation_name <> 'C'"
        " OR (table_schema = current_schema() AND data_type = 'text' AND collation_name IS NULL)"
    )
    assert rows == []


async def test_indexes_and_rules_are_the_same(file, server):
    """By what they are over and whether they are unique, partial, or refer to another table."""
    there, checks = set(), {}
    for table in tables_of(file):
        for _, name, unique, _, partial in file.execute(f"PRAGMA index_list({table})"):
            keys = [row[2] for row in file.execute(f"PRAGMA index_xinfo({name})") if row[5]]
            there.add((table, tuple(key or "lower" for key in keys), bool(unique), bool(partial)))
        for row in file.execute(f"PRAGMA table_info({table})"):
            if row[5]:  # an INTEGER PRIMARY KEY is no index of its own there
                there.add((table, (row[1],), True, False))
        for row in file.execute(f"PRAGMA foreign_key_list({table})"):
            there.add((table, row[3], row[2], row[4]))
        [(sql,)] = file.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))
        checks[table] = len(re.findall(r"\bCHECK\b", sql))

    here = set()
    rows = await server.fetch(
        "SELECT c.relname, i.indisunique, i.indpred IS NOT NULL, array(SELECT CASE k WHEN 0 THEN"
        " 'lower' ELSE (SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum = k)"
        " END FROM unnest(i.indkey) AS k) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " WHERE c.relnamespace = current_schema()::regnamespace"
    )
    for table, unique, partial, keys in rows:
        here.add((table, tuple(keys), unique, partial))
    rows = await server.fetch(
        "SELECT conrelid::regclass::text, a.attname::text, confrelid::regclass::text, b.attname::text"
        " FROM pg_constraint JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]"
        " JOIN pg_attribute b ON b.attrelid = confrelid AND b.attnum = confkey[1]"
        " WHERE contype = 'f' AND connamespace = current_schema()::regnamespace"
    )
    here.update(rows)
    trigrams = {("ice_tokens", keys, False, False) for keys in SEARCH_ON_POSTGRESQL}
    assert here - there == trigrams
    assert there - here == {("ice_tokens", keys, False, False) for keys in ONLY_ON_SQLITE}
    rows = await server.fetch(
        "SELECT conrelid::regclass::text, count(*) FROM pg_constraint WHERE contype = 'c'"
        " AND connamespace = current_schema()::regnamespace GROUP BY 1"
    )
    assert dict(rows) == {table: count for table, count in checks.items() if count}


async def test_the_log_is_guarded_by_the_same_triggers(file, server):
    there = {
        name for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
    }
    rows = await server.fetch("SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal")
    assert {name for (name,) in rows} - there == {
        "ice_events_no_truncate"
    }  # SQLite has no TRUNCATE
    assert there <= {name for (name,) in rows}
