"""Contract section 3 by raw SQL: what must not be, cannot be written, whoever writes."""

from __future__ import annotations

import re

import pytest

from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.services.provisioning import Provisioning
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyStore
from gateway.store.nodes import Nodes
from gateway.store.sqlite.migrate import released
from tests.contract.domain import (
    NOW,
    ROOT,
    RULE_BROKEN,
    account_service,
    add,
    an_ice,
    digest,
    refusing,
)

TIME = "2026-11-22T09:30:00.000000Z"
PROVISIONED = {
    "ice_name": "lab-9",
    "ice_type": "normal",
    "ice_token": digest("lab-9"),
    "status": "provisioned",
    "provisionedto": "alice",
    "generation": 1,
    "key_thumbprint": None,
    "provisionedon": TIME,
    "registeredon": None,
    "deregisteredon": None,
    "expireson": TIME,
}
REGISTERED = PROVISIONED | {
    "status": "registered",
    "key_thumbprint": "key",
    "registeredon": TIME,
    "expireson": None,
}
DEREGISTERED = REGISTERED | {
    "status": "deregistered",
    "key_thumbprint": None,
    "deregisteredon": TIME,
    "generation": 2,
}
CI_CD = PROVISIONED | {"ice_type": "ci-cd", "provisionedto": None}


async def put(engine, table, row):
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})"  # noqa: S608 - our own columns
    await engine.write(lambda transaction: transaction.run(sql, *row.values()))


@pytest.mark.parametrize("row", [PROVISIONED, REGISTERED, DEREGISTERED, CI_CD])
async def test_rows_within_the_rules_are_written(engine, row):
    await put(engine, "ice_tokens", row)
    found = (await IceListing(engine).find("lab-9")).ice
    assert (found.status, found.ice_type) == (row["status"], row["ice_type"])


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        (PROVISIONED, {"ice_name": None}),
        (PROVISIONED, {"ice_name": "lab-1"}),
        (PROVISIONED, {"ice_name": "LAB-1"}),
        (PROVISIONED, {"ice_type": "adhoc"}),
        (PROVISIONED, {"ice_type": None}),
        (PROVISIONED, {"ice_token": None}),
        (PROVISIONED, {"ice_token": digest("lab-1")}),
        (PROVISIONED, {"status": "not registered", "expireson": None}),
        (PROVISIONED, {"status": None}),
        (PROVISIONED, {"provisionedto": None}),
        (PROVISIONED, {"provisionedto": "nobody"}),
        (CI_CD, {"provisionedto": "alice"}),
        (PROVISIONED, {"generation": 0}),
        (PROVISIONED, {"generation": None}),
        (PROVISIONED, {"key_thumbprint": "key"}),
        (REGISTERED, {"key_thumbprint": None}),
        (DEREGISTERED, {"key_thumbprint": "key"}),
        (PROVISIONED, {"provisionedon": None}),
        (PROVISIONED, {"deregisteredon": TIME}),
        (DEREGISTERED, {"deregisteredon": None}),
        (REGISTERED, {"expireson": TIME}),
        (DEREGISTERED, {"expireson": TIME}),
    ],
    ids=lambda value: value["status"] if len(value) > 1 else str(value),
)
async def test_rows_beyond_the_rules_are_refused(engine, row, broken):
    await add(engine, an_ice("lab-1"))
    with refusing(RULE_BROKEN, f"a {row['status']} {row['ice_type']} entry with {broken}"):
        await put(engine, "ice_tokens", row | broken)


USER = {"name": "bob", "name_folded": "bob", "role": "member", "createdon": TIME}
TOKEN = {"id": "t1", "user_name": "alice", "label": "x", "token_hash": "h1", "createdon": TIME}
SESSION = {
    "session": "s1",
    "ice_name": "lab-1",
    "generation": 1,
    "node": "n",
    "since": TIME,
    "address": "",
}
CONNECTION_EVENT = {
    "ice_name": "lab-1",
    "kind": "closed",
    "address": "",
    "first": TIME,
    "at": TIME,
    "count": 1,
}


@pytest.mark.parametrize(
    ("table", "row", "broken"),
    [
        ("users", USER, {"name": "alice"}),
        ("users", USER, {"name_folded": "alice"}),
        ("users", USER, {"role": "emperor"}),
        ("api_tokens", TOKEN, {"user_name": "nobody"}),
        ("api_tokens", TOKEN, {"token_hash": "h0"}),
        ("api_tokens", TOKEN, {"ice_name": "lab-2"}),
        ("api_tokens", TOKEN, {"ice_name": "LAB-1"}),
        ("ice_sessions", SESSION, {"session": "s0"}),
        ("ice_sessions", SESSION, {"ice_name": "lab-2"}),
        ("ice_connections", CONNECTION_EVENT, {"kind": "strange"}),
    ],
)
async def test_rows_beside_the_entries_keep_their_rules(engine, table, row, broken):
    await add(engine, an_ice("lab-1"))
    await put(engine, "api_tokens", TOKEN | {"id": "t0", "token_hash": "h0"})
    await put(engine, "ice_sessions", SESSION | {"session": "s0"})
    with refusing(RULE_BROKEN, f"a row of {table} with {broken}"):
        await put(engine, table, row | broken)
    await put(engine, table, row)


async def test_no_secret_is_stored(engine, tmp_path):
    keys = KeyStore(tmp_path / "token.keys")
    provisioning = Provisioning(
        engine=engine,
        keys=keys,
        clock=lambda: NOW,
        registration_ttl=60,
        confirmer=Acknowledgements(Nodes(engine.fetch), lambda: NOW),
    )
    book = account_service(engine, tmp_path / "token.keys")
    first = await provisioning.provision(ROOT, "lab-1", IceType.NORMAL, "alice")
    issued = await provisioning.reprovision(ROOT, first.ice)
    password = Secret("correct horse battery staple")
    await book.add_user(ROOT, "root", Role.ADMIN, password)
    made = await book.create_token(ROOT, "root", "script", 0)

    listed = await IceListing(engine).find("lab-1")
    assert listed.ice.ice_token == digest(issued.token.reveal()), "lowercase hex SHA-256 expected"
    tables = re.findall(r"CREATE TABLE (\w+)", "".join(sql for _, sql in released()))
    assert "ice_tokens" in tables
    stored = str([await engine.fetch(f"SELECT * FROM {table}") for table in tables])  # noqa: S608
    assert "lab-1" in stored
    for secret in (first.token, issued.token, made.secret, password):
        assert secret.reveal() not in stored, "a hash alone was expected in the store"
