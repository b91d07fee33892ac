"""The rule in SQL says of every case what `core.consent` says."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from msgspec import UNSET

from client.protocol import OperationKind
from gateway.core.consent import FIRST_WAIT, accepts_of, accepts_to_text, may_be_sent
from gateway.core.ice import OPERATIONS
from gateway.store.consent import accepted, decided_since
from gateway.store.engine import as_json
from tests.contract.domain import NOW, a_connection, add_registered, opened, record

WORDS = (UNSET, None, *map(accepts_of, ([], ["execute"], ["remote-execute", "debug"])))
ACCEPTED = (
    "SELECT k.atom FROM json_each($1) k, ice_tokens t JOIN ice_sessions s USING (ice_name) WHERE "
)


@pytest.mark.parametrize("user", ["alice", None])
async def test_both_rules_agree(engine, user):
    ice = await add_registered(engine, user=user)
    await record(engine, opened=[opened(ice, a_connection("s1"))])
    differ = []
    for word in WORDS:
        await engine.write(lambda transaction, word=word: store(transaction, word))
        for open_for, by in itertools.product((0, FIRST_WAIT), ("alice", "bob")):
            tagged = by == user
            wanted = may_be_sent(ice.ice_type, word, open_for, by_tagged_user=tagged)
            found = await allowed(engine, ice, by, NOW + timedelta(seconds=open_for))
            if found != wanted:
                differ.append((word, open_for, by, found, wanted))
    assert differ == []


async def store(transaction, word):
    text = None if word is UNSET else accepts_to_text(word)
    await transaction.run("UPDATE ice_tokens SET accepts = $1", text)


async def allowed(engine, ice, by, now):
    """The kinds that the SQL lets a user send at this time."""
    rows = await engine.fetch(
        ACCEPTED + accepted("t", "s", kind="k.atom", requested_by="$2", since=3),
        as_json(list(OPERATIONS[ice.ice_type])),
        by,
        decided_since(now),
    )
    return {OperationKind(kind) for (kind,) in rows}
