"""A sealed text opens with its key and its context alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.sealing import open_sealed, seal

KEY, OTHER = b"k" * 32, b"o" * 32


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_it_opens_with_the_same_key_and_context(plain, context):
    sealed = seal(KEY, plain, context)
    assert open_sealed(KEY, sealed, context) == plain
    assert open_sealed(OTHER, sealed, context) is None
    assert open_sealed(KEY, sealed, context + b"x") is None


def test_no_two_texts_are_alike():
    assert len({seal(KEY, b"the same") for _ in range(10)}) == 10


@pytest.mark.parametrize("text", ["", "A", "AAAA", "*" * 40, "A" * 40])
def test_garbage_opens_to_nothing(text):
    assert open_sealed(KEY, text) is None
