"""The chain of the audit log."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.audit_event import GENESIS, Actor, Event, LogEntry, Position, Via, detail_text

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
EVENT = Event(
    NOW,
    Actor("root", Via.API, "10.0.0.1"),
    "reprovision",
    "lab-1",
    2,
    {"generation_before": 1, "a": "\u00e9"},
)
ENTRY = LogEntry(7, EVENT, GENESIS)


def changed(**event):
    return replace(ENTRY, event=replace(EVENT, **event))


def acted_by(**actor):
    return changed(actor=replace(EVENT.actor, **actor))


def test_the_digest_can_be_computed_by_anybody():
    columns = [
        7,
        "2026-11-22T09:30:00.000000Z",
        "root",
        "api",
        "10.0.0.1",
        "reprovision",
        "lab-1",
        2,
        '{"a":"\u00e9","generation_before":1}',
        "0" * 64,
    ]
    text = json.dumps(columns, separators=(",", ":"), ensure_ascii=False)
    assert ENTRY.digest() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        replace(ENTRY, seq=8),
        replace(ENTRY, previous="1" * 64),
        changed(at=NOW + timedelta(microseconds=1)),
        acted_by(name="Root"),
        acted_by(via=Via.COMMAND),
        acted_by(address="10.0.0.2"),
        changed(action="reregister"),
        changed(ice_name="lab-2"),
        changed(ice_name=None),
        changed(generation=3),
        changed(generation=None),
        changed(detail={}),
        changed(detail={**EVENT.detail, "generation_before": 0}),
        changed(detail={**EVENT.detail, "more": None}),
        # text moved from one column to its neighbour
        changed(action="reprovisionlab-1", ice_name=""),
        changed(actor=Actor('root","api', Via.API, "10.0.0.1")),
    ],
)
def test_the_digest_changes_with_every_column(other):
    assert other.digest() != ENTRY.digest()


def test_the_digest_is_of_what_was_said_not_of_how():
    reordered = dict(reversed(EVENT.detail.items()))
    assert changed(detail=reordered).digest() == ENTRY.digest()
    assert detail_text(reordered) == detail_text(EVENT.detail)


def test_what_was_changed_long_ago_breaks_the_chain_up_to_the_end():
    def last(actions):
        previous = GENESIS
        for seq, action in enumerate(actions, 1):
            previous = LogEntry(seq, replace(EVENT, action=action), previous).digest()
        return previous

    assert last(["provision", "register", "deregister"]) != last(
        ["provision", "reprovision", "deregister"]
    )


# --- a reader's place in the log -----------------------------------------------------------------

NEXT = LogEntry(8, EVENT, ENTRY.digest())
LATER = LogEntry(9, EVENT, NEXT.digest())


def test_a_position_is_the_number_and_the_begin_of_the_digest():
    position = Position.after(ENTRY)
    assert str(position) == f"7-{ENTRY.digest()[:8]}"
    assert Position.parse(str(position)) == Position(7, ENTRY.digest()[:8])
    assert Position.parse("7") == Position(7)
    beyond = Position.parse(str(2**64 - 1))
    assert beyond is not None
    assert 10**18 < beyond.seq < 2**63 - 1, "SQL has no larger integers"
    assert str(Position(0, GENESIS)) == "0-00000000"


@pytest.mark.parametrize(
    "text", ["", "x", "-7", "7-", "7-0123456", "7-0123456G", "7-01234567 ", "1" * 21]
)
def test_anything_else_is_no_position(text):
    assert Position.parse(text) is None


@pytest.mark.parametrize(
    ("position", "found", "is_in"),
    [
        (Position(7), [ENTRY, NEXT], True),
        (Position.after(ENTRY), [ENTRY], True),
        (Position(7, ENTRY.digest()[:8]), [ENTRY], True),
        (Position(7, "01234567"), [ENTRY], False),
        # it was pruned, and the next event names its digest
        (Position(7, ENTRY.digest()[:8]), [NEXT], True),
        (Position(7, "01234567"), [NEXT], False),
        # the next one was pruned, too
        (Position(7, "01234567"), [LATER], True),
        (Position(0), [LATER], True),
        # beyond the end
        (Position(7), [], False),
        # before the first event
        (Position(0), [], True),
        (Position(0, "00000000"), [], True),
        (Position(0, "01234567"), [], False),
        (Position(0, "01234567"), [LogEntry(1, EVENT, GENESIS)], False),
        (Position(0, "00000000"), [LogEntry(1, EVENT, GENESIS)], True),
    ],
)
def test_a_log_has_a_position_or_is_another(position, found, is_in):
    assert position.is_in(found) is is_in
