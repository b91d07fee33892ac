"""A stranger's text and JSON, for people to look at."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text import decoded, pretty, printable

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


@given(st.recursive(st.text() | st.integers(-(2**53), 2**53), st.lists, max_leaves=5))
def test_pretty_json_is_the_same_json(value):
    text = pretty(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("depth", [900, 100_000])
def test_json_too_deep_to_indent_is_shown_as_it_came(depth):
    deep = b"[" * depth + b"]" * depth
    assert "".join(pretty(deep).split()) == deep.decode()
