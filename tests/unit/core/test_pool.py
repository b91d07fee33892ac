from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.ice import IceType
from gateway.core.labels import MAX_LABELS
from gateway.core.pool import Pool, changes, pool_fault

POOL = Pool("gpu", "", None, {"gpu": "yes"}, "root", datetime(2026, 11, 29, tzinfo=UTC))


@pytest.mark.parametrize("name", ["gpu", "0", "Lab.north_1-b", "x" * 64])
def test_a_pool_is_named_as_an_ice(name):
    assert pool_fault(name, "for tests\nof graphics", {"gpu": "yes"}) is None


@pytest.mark.parametrize(
    ("name", "description", "labels", "field"),
    [
        ("", "", {"a": ""}, "name"),
        (".gpu", "", {"a": ""}, "name"),
        ("x" * 65, "", {"a": ""}, "name"),
        ("gpu", "x" * 1001, {"a": ""}, "description"),
        ("gpu", "\x1b", {"a": ""}, "description"),
        ("gpu", "", {}, "labels"),
        ("gpu", "", {"A": ""}, "labels.A"),
        ("gpu", "", {"a": "x" * 64}, "labels.a"),
        ("gpu", "", {f"k{number}": "" for number in range(MAX_LABELS + 1)}, "labels"),
    ],
)
def test_what_is_wrong_names_its_field(name, description, labels, field):
    refused = pool_fault(name, description, labels)
    assert (refused.code, refused.more) == ("invalid", {"field": field})
    assert refused.detail.startswith(f"{field}: ")


def test_the_log_says_what_changed():
    assert changes(POOL, POOL) == {}
    after = replace(POOL, ice_type=IceType.CI_CD, labels={"gpu": "no"}, createdby="alice")
    assert changes(POOL, after) == {
        "ice_type": "ci-cd",
        "ice_type_before": None,
        "labels": {"gpu": "no"},
        "labels_before": {"gpu": "yes"},
    }
