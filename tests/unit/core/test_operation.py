"""The table of an operation's states, whole, and what a request may ask."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.protocol import MAX_VALUE, OperationKind
from gateway.core.ice import IceType
from gateway.core.operation import (
    ENDED_REGISTRATION,
    MAX_AHEAD,
    MAX_SENTENCE,
    UNFINISHED,
    Move,
    NotValid,
    Operation,
    OperationError,
    State,
    Waits,
    allows,
    cancel_reason,
    code_of,
    failure,
    in_words,
)
from gateway.node import expiry
from gateway.services import ice_changes

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
TABLE = {
    Move.SEND: ({"queued"}, "sent"),
    Move.RECALL: ({"sent"}, "queued"),
    Move.DECLINE: ({"sent"}, "queued"),
    Move.ACCEPT: ({"sent"}, "running"),
    Move.SUCCEED: ({"sent", "running", "lost"}, "succeeded"),
    Move.FAIL: ({"sent", "running", "lost"}, "failed"),
    Move.CANCEL: ({"queued", "sent", "running"}, "cancelled"),
    Move.EXPIRE: ({"queued"}, "expired"),
    Move.LOSE: ({"sent", "running"}, "lost"),
}


def request(kind: OperationKind = OperationKind.EXECUTE, **how: object) -> Operation:
    params = how.pop("params", b"{}")
    return Operation.request("1", "lab-1", kind, params, requested_by="root", now=NOW, **how)


def in_state(state: State) -> Operation:
    """An operation that has come to `state` by the shortest way."""
    ways = {
        State.QUEUED: (),
        State.SENT: (Move.SEND,),
        State.RUNNING: (Move.SEND, Move.ACCEPT),
        State.SUCCEEDED: (Move.SEND, Move.SUCCEED),
        State.FAILED: (Move.SEND, Move.FAIL),
        State.CANCELLED: (Move.CANCEL,),
        State.EXPIRED: (Move.EXPIRE,),
        State.LOST: (Move.SEND, Move.LOSE),
    }
    operation = request()
    for move in ways[state]:
        operation = operation.moved(move, NOW)
    assert operation.state is state
    return operation


@pytest.mark.parametrize(("move", "state"), list(itertools.product(Move, State)), ids=str)
def test_every_move_from_every_state(move, state):
    sources, target = TABLE[move]
    old, later = in_state(state), NOW + timedelta(seconds=5)
    new = old.moved(move, later, result=b"1", error=b"2")
    if state.value not in sources:
        assert new is None, f"{move} from {state} was expected to be refused"
        return
    assert new.state == target
    assert (new.finished is not None) is new.is_finished
    assert new.is_finished is (new.state not in UNFINISHED)
    if new.is_finished:
        assert (new.finished, new.result, new.error) == (later, b"1", b"2")
    assert new.sent == {Move.SEND: later, Move.RECALL: None, Move.DECLINE: None}.get(move, old.sent)


@given(st.lists(st.sampled_from(Move), max_size=12))
def test_whatever_comes_a_final_state_is_left_for_the_ices_own_word_alone(moves):
    operation = request()
    for move in moves:
        new = operation.moved(move, NOW)
        if new is None:
            continue
        if operation.is_finished:
            assert operation.state is State.LOST
            assert move in (Move.SUCCEED, Move.FAIL)
        operation = new
    if operation.state is State.EXPIRED:
        assert operation.sent is None, "what has expired has never been sent"


@pytest.mark.parametrize(
    ("state", "move"), [("queued", Move.EXPIRE), ("sent", Move.LOSE), ("running", Move.LOSE)]
)
def test_what_a_deadline_does(state, move):
    assert in_state(State(state)).overdue_move() is move


@pytest.mark.parametrize("kind", OperationKind)
def test_the_types_and_their_kinds(kind):
    assert allows(IceType.NORMAL, kind)
    assert allows(IceType.CI_CD, kind) is (kind.value in ("remote-execute", "schedule"))


def test_without_a_deadline_it_has_a_day():
    assert request().deadline == NOW + timedelta(days=1)
    when = NOW + timedelta(hours=5)
    assert request(OperationKind.SCHEDULE, run_at=when).deadline == when + timedelta(days=1)


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"params": b'"' + b"1" * (MAX_VALUE - 1) + b'"'}, "params"),
        ({"params": b"[" * 101 + b"]" * 101}, "params"),
        ({"params": b"1e999"}, "params"),
        ({"run_at": NOW}, "run_at"),
        ({"kind": OperationKind.SCHEDULE}, "run_at"),
        ({"kind": OperationKind.SCHEDULE, "run_at": NOW - timedelta(microseconds=1)}, "run_at"),
        ({"kind": OperationKind.SCHEDULE, "run_at": NOW + MAX_AHEAD}, "run_at"),
        ({"kind": OperationKind.SCHEDULE, "run_at": datetime.max.replace(tzinfo=UTC)}, "run_at"),
        (
            {
                "kind": OperationKind.SCHEDULE,
                "run_at": NOW + timedelta(1),
                "deadline": NOW + timedelta(1),
            },
            "deadline",
        ),
        ({"deadline": NOW}, "deadline"),
        ({"deadline": NOW + MAX_AHEAD + timedelta(microseconds=1)}, "deadline"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "x" * 129}, "idempotency_key"),
        ({"idempotency_key": "\n"}, "idempotency_key"),
        ({"idempotency_key": "é"}, "idempotency_key"),
        ({"idempotency_key": "schedule:1"}, "idempotency_key"),
    ],
)
def test_what_cannot_be_requested_names_its_field(how, field):
    with pytest.raises(NotValid) as refused:
        request(**how)
    assert refused.value.field == field


def test_what_is_just_within_bounds():
    request(params=b'"' + b"1" * (MAX_VALUE - 2) + b'"')
    request(params=b"[" * 100 + b"]" * 100)
    request(deadline=NOW + MAX_AHEAD)
    request(OperationKind.SCHEDULE, run_at=NOW)
    request(idempotency_key="~" * 128)


# --- why it has ended ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"code": "a", "message": "b"}, None),
        ({"code": "a", "message": "b", "data": [1, {"c": None}]}, None),
        ({"code": "a", "message": "x" * 5000}, None),
        ({"code": "a", "message": "", "data": None}, None),
        (
            {"code": "a", "message": "b", "more": 1},
            {"code": "failed", "message": '{"code":"a","message":"b","more":1}'},
        ),
        (None, {"code": "failed", "message": "the ICE gave no reason"}),
        ("boom", {"code": "failed", "message": '"boom"'}),
        ([1, 2], {"code": "failed", "message": "[1,2]"}),
        ({}, {"code": "failed", "message": "{}"}),
        ({"code": 5, "message": "b"}, {"code": "failed", "message": '{"code":5,"message":"b"}'}),
        ({"code": "a"}, {"code": "failed", "message": '{"code":"a"}'}),
        ({"code": "", "message": "b"}, {"code": "failed", "message": '{"code":"","message":"b"}'}),
        ("é" * 5000, {"code": "failed", "message": '"' + "é" * (MAX_SENTENCE - 1)}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_error_of_a_failed_operation_has_one_shape(sent, kept):
    error = failure(json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode())
    assert json.loads(error) == (sent if kept is None else kept)
    assert code_of(error) == json.loads(error)["code"]


def test_a_missing_error_gets_one():
    assert json.loads(failure(None)) == {"code": "failed", "message": "the ICE gave no reason"}


@pytest.mark.parametrize(
    ("state", "code", "told"),
    [
        (None, None, "unknown"),
        ("queued", None, "unknown"),
        ("sent", None, None),
        ("running", None, None),
        ("succeeded", None, None),
        ("failed", "no-disk", None),
        ("cancelled", "cancelled", "requested"),
        ("cancelled", "reregistered", "reregistered"),
        ("cancelled", "deregistered", "reregistered"),
        ("expired", "deadline", "deadline"),
        ("lost", "deadline", "deadline"),
        ("lost", "lost", "unknown"),
    ],
)
def test_why_an_ice_is_to_stop(state, code, told):
    assert cancel_reason(None if state is None else State(state), code) == told


def test_the_codes_are_those_with_which_work_is_ended():
    assert {
        code_of(error) for error in ice_changes._CANCELS_OPERATIONS.values()
    } == ENDED_REGISTRATION
    assert code_of(expiry.DEADLINE_ERROR) == OperationError.DEADLINE


@pytest.mark.parametrize("why", Waits)
def test_why_an_operation_waits_is_said_in_words(why):
    for of_pool in (False, True):
        words = in_words(why, of_pool=of_pool)
        assert "-" not in words
        assert words.split()
