"""A set of at most so many texts."""

from __future__ import annotations

from gateway.core.bounded_set import BoundedSet


def test_what_was_added_first_is_forgotten_first():
    known = BoundedSet(2)
    for text in ("a", "b", "a", "c"):
        known.add(text)
    assert [text in known for text in "abc"] == [False, True, True]
    known.discard("b")
    known.discard("b")
    known.add("d")
    assert [text in known for text in "bcd"] == [False, True, True]
    assert len(known) == 2
