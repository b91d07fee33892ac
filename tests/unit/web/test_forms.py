"""HTML forms, read in bounded work."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.web.forms import TooManyFields, parse_form


@given(st.lists(st.tuples(st.text("aé &=+%\0\n", min_size=1), st.text())))
def test_what_a_browser_sends_is_read(fields):
    assert parse_form(urlencode(fields).encode(), 1000) == fields


@given(st.text("a%4é+&=;").map(str.encode))
def test_odd_forms_are_read_as_python_does(data):
    try:
        expected = parse_qsl(data.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="decode"):
            parse_form(data, 1000)
    else:
        assert parse_form(data, 1000) == expected


@pytest.mark.parametrize("data", [b"a=\xff", b"\xff", b"a=%ff", b"a=%ed%a0%80"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(UnicodeDecodeError):
        parse_form(data, 10)


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("unit", ["é", "%", "%4", "a", " ", "+%é"])
def test_long_values_are_read_in_pieces(before, unit):
    value = "x" * before + unit * 20_000
    assert parse_form(urlencode({"a": value}).encode(), 1) == [("a", value)]
    assert parse_form(f"a={value.replace('+', ' ')}".encode(), 1) == [
        ("a", value.replace("+", " "))
    ]


def test_fields_are_counted_before_they_are_read():
    assert parse_form(b"a&b&c", 3) == [("a", ""), ("b", ""), ("c", "")]
    for data in (b"a&b&c&d", b"a=%ff&b&c&d", b"&" * 1_500_000):
        with pytest.raises(TooManyFields):
            parse_form(data, 3)
