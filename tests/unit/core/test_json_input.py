"""JSON from outside: whether it is JSON, and not too complex."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.protocol import MAX_DEPTH, JsonTooComplex
from gateway.core.json_input import NotJson, check_syntax, decode


def nested(depth):
    return b"[" * depth + b"]" * depth


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers(-(10**29), 10**29) | st.floats(-1, 1),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_usual_json_is_taken(value):
    check_syntax(json.dumps(value).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b"{} {}",
        b"[1,]",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_json_is_refused(data):
    with pytest.raises(NotJson):
        check_syntax(data)


@pytest.mark.parametrize(
    "data",
    [
        *(nested(depth) for depth in (5_000, 100_000)),
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_json_that_is_too_deep_to_tell_is_refused(data):
    with pytest.raises(JsonTooComplex):
        check_syntax(data)
    check_syntax(nested(MAX_DEPTH + 100))


def test_objects_are_built_of_json_alone():
    assert decode(b'{"a": [1]}', dict[str, list[int]]) == {"a": [1]}
    with pytest.raises(NotJson):
        decode(b'{"unread": "\xff"}', dict[str, Any])
    with pytest.raises(JsonTooComplex):
        decode(nested(5000), Any)
    with pytest.raises(ValueError, match="Expected `int`"):
        decode(b'"1"', int)
