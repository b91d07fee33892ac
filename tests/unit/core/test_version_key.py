from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import InvalidVersion, Version

from gateway.core.version_key import version_key

# PEP 440, "Summary of permitted suffixes and relative ordering", and what is easily confused.
IN_ORDER = (
    "0",
    "0.9",
    "1.dev1",
    "1.0a1.dev2",
    "1.0a1",
    "1.0a1.post1.dev3",
    "1.0a1.post1",
    "1.0a2",
    "1.0a10",
    "1.0b1",
    "1.0rc1",
    "1.0",
    "1.0+abc",
    "1.0+abc.5",
    "1.0+abcd",
    "1.0+5",
    "1.0+10",
    "1.0.post1.dev1",
    "1.0.post1",
    "1.0.1",
    "1.1.dev1",
    "1.2",
    "1.10",
    "2",
    "10",
    "2026.11",
    "1!0.1",
)


def test_keys_sort_as_the_versions():
    assert sorted(IN_ORDER, key=Version) == list(IN_ORDER)
    for lower, higher in itertools.pairwise(map(version_key, IN_ORDER)):
        assert lower < higher


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1.0.0"), ("v1.2", "1.2"), ("1.0-alpha.1", "1.0a1"), ("1-1", "1.post1")],
)
def test_spellings_of_one_version_have_one_key(one, other):
    assert version_key(one) == version_key(other)


@pytest.mark.parametrize("text", ["", "nightly", "1.2.x", "1..2", "1" * 65, "1." * 40 + "0"])
def test_what_is_no_version_has_no_key(text):
    assert version_key(text) is None
    assert version_key(None) is None


@given(
    st.lists(
        st.from_regex(
            r"([0-9]!)?[0-9]{1,3}(\.[0-9]{1,2}){0,3}((a|b|rc)[0-9]{1,2})?(\.post[0-9]{1,2})?"
            r"(\.dev[0-9]{1,2})?(\+[a-z0-9]{1,3}(\.[a-z0-9]{1,3}){0,2})?",
            fullmatch=True,
        ),
        min_size=2,
        max_size=2,
    )
)
def test_any_two_versions_compare_by_their_keys(texts):
    one, other = map(Version, texts)
    assert (version_key(texts[0]) < version_key(texts[1])) == (one < other)
    assert (version_key(texts[0]) == version_key(texts[1])) == (one == other)


@given(st.text(max_size=70))
def test_any_text_has_a_key_or_none(text):
    try:
        Version(text)
    except InvalidVersion:
        assert version_key(text) is None
