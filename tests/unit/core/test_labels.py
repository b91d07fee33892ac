from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.labels import MAX_LABELS, label_fault, labels_of, labels_text, merged, note_fault


@pytest.mark.parametrize("key", ["os", "0", "a.b_c-d", "x" * 63])
@pytest.mark.parametrize("value", ["", "windows", "Büro 3", "x" * 63, None])
def test_good_labels(key, value):
    assert label_fault(key, value) is None


@pytest.mark.parametrize("key", ["", "OS", ".a", "-a", "a b", "a=b", "ä", "x" * 64, "os\n"])
def test_bad_keys(key):
    assert "key" in label_fault(key, "x")
    assert "key" in label_fault(key, None)


@pytest.mark.parametrize("value", ["x" * 64, "a\nb", "\x00", "a\u202eb"])
def test_bad_values(value):
    assert "value" in label_fault("os", value)


def test_merging_replaces_adds_and_removes():
    before = {"os": "linux", "site": "paris"}
    assert merged(before, {"os": "windows", "site": None, "a": "1", "none": None}) == {
        "a": "1",
        "os": "windows",
    }
    assert before == {"os": "linux", "site": "paris"}


def test_labels_are_bounded():
    full = {f"k{number}": "" for number in range(MAX_LABELS)}
    assert merged({}, full) is not None
    assert merged(full, {"one-more": ""}) is None
    assert merged(full, {"one-more": "", "k0": None}) is not None


def test_notes():
    assert note_fault("the loan machine\n\tof Büro 3") is None
    assert note_fault("") is None
    assert note_fault("x" * 1000) is None
    assert "at most 1,000" in note_fault("x" * 1001)
    assert "printable" in note_fault("a\x00b")


def test_labels_as_people_write_them():
    assert labels_of(" os = windows ;room=4;; x=") == {"os": "windows", "room": "4", "x": ""}
    assert labels_of("") == {}
    assert labels_of("os") == "os is not key=value"
    assert labels_of("os=1;os=2") == "has the key os twice"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("windows 11, home", "os=windows 11, home"),
        ("a=b", "os=a=b"),
        ('5" disk', 'os=5" disk'),
        ("", "os="),
        ("a; b", 'os="a; b"'),
        (";", 'os=";"'),
        (" x", 'os=" x"'),
        ('"x"', 'os="""x"""'),
        ('"', 'os=""""'),
        ('a";b="c', 'os="a"";b=""c"'),
    ],
)
def test_each_value_can_be_written(value, text):
    assert labels_text([f"os={value}"]) == text
    assert labels_of(text) == {"os": value}
    assert labels_of(f"a=1;{text} ; room=4;") == {"a": "1", "os": value, "room": "4"}


def test_a_quote_that_encloses_nothing_is_a_character():
    assert labels_of('os="a;room=4') == {"os": '"a', "room": "4"}
    assert labels_of('os="a"b;room="4"') == {"os": '"a"b', "room": "4"}
    assert labels_of('os="a;b') == "b is not key=value"


@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(' ";='), max_size=63))
def test_any_value_survives_being_written(value):
    assert labels_of(labels_text(["a=1", f"os={value}"])) == {"a": "1", "os": value}
