"""The registry of tables matches the schema of both engines, and what the commands do with each table."""

from __future__ import annotations

import re
import sqlite3

import pytest

from gateway.core.times import utc_now
from gateway.services import store_migration
from gateway.store import restore_mark
from gateway.store.postgres.engine import open_postgres
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.snapshot import mark_as_copy
from gateway.store.tables import MOVED, TABLES, Forgotten
from tests.contract.test_schemas import ONLY_ON_POSTGRESQL, tables_of
from tests.unit.test_structure import sql_of

NAMES = [table.name for table in TABLES]
COUNT = "SELECT count(*) FROM {}"
AT = "'2026-01-01T00:00:00.000000Z'"
ROWS = {
    "users": f"(name, name_folded, role, createdon) VALUES ('u', 'u', 'admin', {AT})",
    "ice_tokens": "(ice_name, ice_type, ice_token, status, generation, provisionedon)"
    f" VALUES ('i', 'ci-cd', 'h', 'provisioned', 1, {AT})",
    "api_tokens": f"(id, user_name, label, token_hash, createdon) VALUES ('t', 'u', '', 'h', {AT})",
    "sso_used": f"VALUES ('d', {AT})",
    "logins": f"VALUES ('h', 'u', '', {AT}, {AT}, NULL)",
    "ice_events": f"VALUES (1, {AT}, 'u', 'cli', '', 'provision', 'i', 1, '{{}}', '{'0' * 64}')",
    "ice_connections": f"VALUES (1, 'i', 'refused', '', '', {AT}, {AT}, 1, NULL)",
    "ice_operations": "(id, ice_name, kind, params, state, requested_by, created, deadline)"
    f" VALUES ('o', 'i', 'execute', 'null', 'queued', 'u', {AT}, {AT})",
    "ice_pools": f"VALUES ('p', '', NULL, '{{\"a\":\"b\"}}', '[\"a\"]', 'u', {AT})",
    "ice_operation_logs": "(operation, start, bytes, text) VALUES ('o', 0, 1, 'a')",
    "ice_schedules": "(id, name, ice_name, params, cron, timezone, timeout, grace, enabled, requested_by,"
    " via, createdon)"
    f" VALUES ('s', '', 'i', 'null', '* * * * *', 'UTC', 60, 60, 1, 'u', 'api', {AT})",
    "ice_schedule_occurrences": "(schedule, at, recordedon, operation)"
    f" VALUES ('s', {AT}, {AT}, 'o')",
    "enrolment_keys": "(id, name, secret_hash, ice_type, name_prefix, max_uses, approval, createdby,"
    f" createdon, expireson) VALUES ('k', '', 'h', 'ci-cd', 'lab', 1, 0, 'u', {AT}, {AT})",
    "enrolments": "(id, key_id, ice_name, ice_type, hostname, platform, address, thumbprint, state,"
    " replaces, createdon, expireson)"
    f" VALUES ('e', 'k', 'i', 'ci-cd', '', '', '', '', 'waiting', 0, {AT}, {AT})",
    "webhook_sender": "VALUES (1, 'l', 'n')",
    "webhooks": "(id, name, url, events, enabled, enabledon, secret, position, createdby, createdon, finished)"
    f" VALUES ('w', '', 'https://a.example', '[\"*\"]', 1, {AT}, 'k.s', 1, 'u', {AT}, 1)",
    "webhook_deliveries": "(webhook, message, type, at, status, elapsed_ms)"
    f" VALUES ('w', 'l-1', 'provision', {AT}, 204, 1)",
    "webhook_set_aside": "(webhook, message, type, body, at, attempts, error)"
    f" VALUES ('w', 'l-2', 'provision', '{{}}', {AT}, 9, 'answered 500')",
    "webhook_notices": "(webhook, id, type, at, data)"
    f" VALUES ('w', 'l-3', 'ice.away', {AT}, '{{}}')",
    "ice_away": f"VALUES ('i', {AT})",
    "restored": f"(id, copied, seq) VALUES (1, {AT}, 1)",
    "ice_sessions": "(session, ice_name, generation, node, since, address)"
    f" VALUES ('s', 'i', 1, 'n', {AT}, '')",
    "ice_instances": f"VALUES ('i', 1, 0, {AT}, '[\"a\",\"\",null]', '[]', NULL, NULL)",
    "ice_confirmed": f"VALUES ('n', {AT})",
    "ice_nodes": "(instance, name, version, keys, url, since, seen_seq, draining)"
    f" VALUES ('x', 'n', '', '', '', {AT}, 0, 0)",
    "ice_drops": "VALUES ('s', 0, 'n', 'i', 4001, 0)",
    "ice_proofs": "VALUES ('d', 0)",
}


@pytest.fixture
async def path(tmp_path):
    """A file with a row in each table."""
    async with open_sqlite(tmp_path / "ice.db"):
        pass
    with sqlite3.connect(tmp_path / "ice.db") as file:
        for name in NAMES:
            file.execute(f"INSERT INTO {name} {ROWS[name]}")
    file.close()
    return tmp_path / "ice.db"


def with_rows(path):
    file = sqlite3.connect(path)
    counts = {name: file.execute(COUNT.format(name)).fetchone()[0] for name in NAMES}
    file.close()
    return {name for name, count in counts.items() if count}


def test_every_table_of_the_file_is_listed_with_its_key(path):
    file = sqlite3.connect(path)
    assert tables_of(file) == set(NAMES)
    for number, table in enumerate(TABLES):
        columns = file.execute(f"PRAGMA table_info({table.name})").fetchall()
        assert [name for _, name, *_, key in columns if key] == [table.key], table.name
        referred = {row[2] for row in file.execute(f"PRAGMA foreign_key_list({table.name})")}
        assert referred <= set(NAMES[:number]), f"{table.name} refers to a later table"
    file.close()


async def test_every_table_of_the_server_is_listed_with_who_numbers_it(database_url):
    async with open_postgres(database_url, tell=lambda _: None) as engine:
        rows = await engine.fetch(
            "SELECT table_name, max(column_name) FILTER (WHERE is_identity = 'YES')"
            " FROM information_schema.columns WHERE table_schema = current_schema() GROUP BY 1"
        )
    assert {name for name, _ in rows} - ONLY_ON_POSTGRESQL == set(NAMES)
    numbered = {table.name: table.key for table in TABLES if table.numbered}
    assert {name: column for name, column in rows if column} == numbered


def test_a_copy_keeps_the_rows_that_it_is_to_keep(path):
    assert with_rows(path) == set(NAMES)
    mark_as_copy(path, utc_now())
    assert with_rows(path) == {table.name for table in TABLES if table.copied}


def test_a_copy_has_an_id_of_its_log_of_its_own(path):
    ids = set()
    for _ in range(2):
        mark_as_copy(path, utc_now())
        file = sqlite3.connect(path)
        ids.add(file.execute("SELECT log, node FROM webhook_sender").fetchone())
        file.close()
    assert len(ids) == 2
    assert {node for _, node in ids} == {None}


async def test_a_move_takes_the_rows_that_it_is_to_take(path, database_url):
    moved = await store_migration.move(path, database_url, utc_now, lambda _: None, lambda *_: None)
    assert moved.counts == {table.name: 1 for table in MOVED}
    async with open_postgres(database_url, tell=lambda _: None) as engine:
        found = {name for name in NAMES if await engine.fetch(COUNT.format(name)) != [(0,)]}
    assert found == {table.name for table in MOVED}


async def test_a_restore_reviews_the_tables_that_it_is_to_review():
    read = set()

    async def fetch(sql, *_):
        read.update(re.findall(r"\bFROM (\w+)", sql))
        return []

    await restore_mark.standing(fetch)
    assert read == {table.name for table in TABLES if table.reviewed}


def test_what_never_forgets_has_no_statement_that_deletes():
    texts = "\n".join(text for _, text in sql_of("gateway.store"))
    deleted = set(re.findall(r"\bDELETE FROM (\w+)", texts))
    assert deleted == {one.name for one in TABLES if one.forgotten is not Forgotten.NEVER}
