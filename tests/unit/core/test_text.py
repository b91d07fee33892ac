"""A stranger's text and JSON, for people to look at."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.text import compact, decoded, pretty, printable, printable_line, printable_lines

STEERING = "\x1b[2J\x9b31m\u202e\x7f\U000e0001"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_a_person_is_understood_whatever_wrote_it(encoding):
    assert decoded("é = 1\r\n".encode(encoding)) == "é = 1\r\n"


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xfe\x00"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(UnicodeDecodeError):
        decoded(data)


def test_printable_text_stays_as_it_is():
    assert printable("lab-1 ✓ 漢字") == "lab-1 ✓ 漢字"
    assert printable(f"a{STEERING}\n").isprintable()
    assert printable("\x1b\n") == "\\x1b\\n"


def test_text_of_another_program_becomes_one_line():
    assert printable_line(" near\r\n\t'x'  \x1b\n") == "near 'x' \\x1b"


def test_printable_lines_stay_lines():
    text = f"a\r\n\tb\n{STEERING}\rc"
    lines = printable_lines(text)
    assert lines.startswith("a\n\tb\n")
    assert lines.endswith("\\rc")
    assert all(line.isprintable() for line in lines.replace("\t", "").split("\n"))


@given(
    st.recursive(
        st.text() | st.integers(-(2**53), 2**53) | st.none() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=9,
    ),
    st.sampled_from([None, (" , ", ": "), (",", ":")]),
)
def test_pretty_json_is_the_same_json_indented(value, separators):
    sent = json.dumps(value, ensure_ascii=False, separators=separators)
    text, complete = pretty(sent.encode(errors="surrogatepass"), 10_000_000)
    assert complete
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()
    assert [line.strip() for line in text.splitlines()] == [
        line.strip() for line in json.dumps(json.loads(text), indent=2).splitlines()
    ] or not sent.isascii()


def test_pretty_json_looks_as_expected():
    text, _ = pretty(b'{"a":[],"b":{},"c":[1,{"d":"x"}]}', 1000)
    assert text == json.dumps({"a": [], "b": {}, "c": [1, {"d": "x"}]}, indent=2)


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 900 + b"0," * 490_000 + b"0" + b"]" * 900,
        b"[" * 100_000 + b"]" * 100_000,
        b'"' + b"x" * 1_000_000 + b'"',
        b'"' + b'\\"' * 500_000 + b'"',
        b'"' + "\x9b".encode() * 500_000 + b'"',
        b" " * 1_000_000 + b"[1,2,3,4,5]" * 10_000,
    ],
    ids=lambda value: repr(value[:10]),
)
def test_of_large_json_no_more_is_made_than_is_shown(value):
    tracemalloc.start()
    try:
        text, complete = pretty(value, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(text), complete) == (1000, False)
    assert peak < 4 * len(value) + 100_000, "what was sent as text, and what is shown"


def test_json_of_the_length_is_complete():
    assert pretty(b"[1]", 7) == ("[\n  1\n]", True)
    assert pretty(b"[1]", 6) == ("[\n  1\n", False)
    assert pretty(b"1", 0) == ("", False)


def test_compact_json_stays_as_it_is_but_for_what_could_steer():
    assert compact(b'{"a": [1, 2]}') == '{"a": [1, 2]}'
    assert json.loads(compact(json.dumps(STEERING, ensure_ascii=False).encode())) == STEERING
    assert compact(json.dumps(STEERING, ensure_ascii=False).encode()).isprintable()
