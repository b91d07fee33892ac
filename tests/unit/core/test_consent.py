from __future__ import annotations

import itertools

import pytest
from msgspec import UNSET

from client.protocol import OperationKind
from gateway.core.consent import (
    FIRST_WAIT,
    MAX_READ,
    accepts_from_text,
    accepts_of,
    accepts_to_text,
    may_be_sent,
)
from gateway.core.ice import OPERATIONS, IceType

NORMAL = frozenset(OperationKind)
CI_CD = frozenset(OPERATIONS[IceType.CI_CD])
ONE = accepts_of(["scrape"])


@pytest.mark.parametrize(
    ("accepts", "open_for", "by_tagged_user", "expected"),
    [
        (None, 0, False, NORMAL),
        (frozenset(), 60, False, frozenset()),
        (frozenset(), 60, True, NORMAL),
        (ONE, 0, False, ONE),
        (ONE, 60, True, NORMAL),
        (UNSET, 0, False, frozenset()),
        (UNSET, FIRST_WAIT - 0.01, False, frozenset()),
        (UNSET, FIRST_WAIT, False, NORMAL),
        (UNSET, 0, True, NORMAL),
    ],
)
def test_what_others_may_send_to_a_normal_ice(accepts, open_for, by_tagged_user, expected):
    found = may_be_sent(IceType.NORMAL, accepts, open_for, by_tagged_user=by_tagged_user)
    assert found == expected


@pytest.mark.parametrize(
    ("accepts", "open_for", "tagged"),
    list(itertools.product([None, frozenset(), ONE, UNSET], [0, 60], [False, True])),
)
def test_the_word_of_a_ci_cd_ice_counts_for_nothing(accepts, open_for, tagged):
    assert may_be_sent(IceType.CI_CD, accepts, open_for, by_tagged_user=tagged) == CI_CD


def test_unknown_kinds_and_those_beyond_the_bound_are_ignored():
    assert accepts_of(["scrape", "dance", "scrape"]) == {OperationKind.SCRAPE}
    assert accepts_of(["dance"]) == frozenset()
    assert accepts_of(["x"] * MAX_READ + ["scrape"]) == frozenset()


def test_equal_words_are_one_object():
    assert accepts_of(["debug", "scrape"]) is accepts_of(["scrape", "debug", "dance"])


@pytest.mark.parametrize("accepts", [None, UNSET, frozenset(), ONE, NORMAL])
def test_a_word_is_stored_and_read(accepts):
    text = None if accepts is UNSET else accepts_to_text(accepts)
    assert accepts_from_text(text) == accepts


def test_the_stored_text():
    assert accepts_to_text(None) == "null"
    assert accepts_to_text(accepts_of(["execute", "scrape"])) == '["scrape","execute"]'
