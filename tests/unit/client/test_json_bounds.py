"""The bounds of JSON from outside: contract section 6."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.json_bounds import JsonTooComplex, check_json, outline


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "data",
    [
        nested(100),
        b'{"a":' * 100 + b"0" + b"}" * 100,
        b"[" + b"[]," * 500 + b"{}]",
        b'"' + b"[" * 500 + b'"',
        rb'["\"[[[", "\\", "\\\"' + b"[" * 200 + b'"]',
        b"1" * 30,
        b"-0." + b"1" * 29,
        b"1.5e+300",
        b"1e-9999999",
        b'"' + b"1" * 5000 + b'"',
        b'["1e999", "' + b"9" * 40 + b'", ' + nested(99) + b"]",
        b'{"1e400": 1e30, "' + b"5" * 31 + b'": [' + b"[]," * 200 + b"0]}",
    ],
    ids=lambda data: data[:20].decode(),
)
def test_json_within_its_bounds_is_taken(data):
    json.loads(data)
    check_json(data)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (nested(101), "deeper"),
        (b'{"a":' * 101 + b"0" + b"}" * 101, "deeper"),
        (b'["\\\\",' + nested(100) + b"]", "deeper"),
        (b'["\\"",' + nested(100) + b"]", "deeper"),
        (b"[" + b"[]," * 500 + nested(100) + b"]", "deeper"),
        (b"1" * 31, "digits"),
        (b'["1", -' + b"1" * 31 + b"]", "digits"),
        (b"0." + b"1" * 30, "digits"),
        (b"1" * 29 + b"e10", "digits"),
        (b"1" * 27 + b".5e-100", "digits"),
        (b"1e999", "finite"),
        (b"[0, -1E+400]", "finite"),
        (b"1.8e308", "finite"),
        (b"1" * 20 + b"e290", "finite"),
    ],
    ids=lambda data: data if isinstance(data, str) else data[:20].decode(),
)
def test_json_beyond_its_bounds_is_refused(data, fault):
    with pytest.raises(JsonTooComplex, match=fault):
        check_json(data)


@pytest.mark.parametrize("number", [b"1e308", b"123456789012345678901234567e+290"])
def test_an_infinite_number_is_found_wherever_it_stands(number):
    check_json(b"[" + b" " * 100_000 + b"1e307]")
    infinite = number.replace(b"e308", b"e309")
    for place in range(64 * 1024 - 40, 64 * 1024 + 3):
        with pytest.raises(JsonTooComplex, match="finite"):
            check_json(b"[" + b" " * (place - 1) + infinite + b"," + b" " * 100_000 + b"1]")


def test_an_envelope_may_have_levels_of_its_own():
    check_json(nested(102), 102)
    with pytest.raises(JsonTooComplex, match="100 levels"):
        check_json(nested(103), 102)


def _levels(value) -> int:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return 0
    return 1 + max(map(_levels, value), default=0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON, levels=st.integers(0, 110), ascii_only=st.booleans())
def test_the_bounds_are_those_of_a_plain_reading(value, levels, ascii_only):
    text = "[" * levels + json.dumps(value, ensure_ascii=ascii_only) + "]" * levels
    numbers: list[str] = []
    json.loads(text, parse_int=numbers.append, parse_float=numbers.append)
    allowed = levels + _levels(value) <= 100 and all(
        sum(map(str.isdigit, number)) <= 30 and math.isfinite(float(number)) for number in numbers
    )
    try:
        check_json(text.encode("utf-8", "surrogatepass"))
    except JsonTooComplex:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        ('{"id": 1, "a": [[5]], "b": 2}', '{"id": 1, "a": [null], "b": 2}'),
        ('{"a": {"x": {"y": 1}, "z": [9]}, "id": 2}', '{"a": {"x": null}, "id": 2}'),
        (
            '{"a": "[[[", "b": [[1]], "c": "\\"]]]\\\\"}',
            '{"a": "[[[", "b": [null], "c": "\\"]]]\\\\"}',
        ),
    ],
)
def test_an_outline_has_what_is_around_the_depth(data, rest):
    assert outline(data.encode(), 2) == rest.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b"[[1]]",
        b"[" * 5000,
        b"]" * 5000,
        b"[" + b"[]," * 1000 + b"[[]]]",
        b'["[[[[',
    ],
)
def test_an_outline_is_not_always_found(data):
    assert outline(data, 2) is None
