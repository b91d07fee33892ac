"""The rules of enrolment: what a key may be, which name and user a machine gets, what a secret looks like."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import enrolment as rules
from gateway.core.enrolment import BadField, EnrolmentKey, KeyState, Wanted
from gateway.core.ice import Ice, IceType, fold, valid_name
from gateway.core.secret import Secret

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
KEY = EnrolmentKey(
    *("k", "lab", "hash", IceType.NORMAL, "Alice", "lab-", 1, 0),
    approval=False,
    createdby="root",
    createdon=NOW,
    expireson=NOW + timedelta(days=7),
)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_an_id_is_authenticated_by_the_key_that_made_it(mac_key, other):
    name, secret = rules.new_secret(mac_key)
    assert rules.id_of(secret) == name
    assert rules.is_ours(name, mac_key)
    assert rules.is_ours(name, other) == (mac_key == other)


@given(st.text())
def test_what_is_no_secret_has_no_id(text):
    assert rules.id_of(Secret(text)) is None


def test_secrets_differ():
    made = {rules.new_secret(b"k" * 32)[1].reveal() for _ in range(100)}
    assert len(made) == 100


@given(st.text(max_size=253))
def test_a_host_name_gives_a_valid_name_or_is_named(hostname):
    name = rules.name_for(KEY, Wanted(hostname, ""))
    if isinstance(name, BadField):
        assert name.field == "hostname"
    else:
        assert valid_name(name)
        assert name.startswith("lab-")


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("lab-x", "lab-x"), ("LAB-x", "LAB-x"), ("lab-", "lab-"), ("other", None), ("lab- x", None)],
)
def test_a_name_begins_with_the_prefix(wanted, name):
    found = rules.name_for(KEY, Wanted("pc", "", ice_name=wanted))
    assert found == name if name else isinstance(found, BadField)


@pytest.mark.parametrize(
    ("of_key", "wanted", "user"),
    [
        ("Alice", None, "Alice"),
        ("Alice", "ALICE", "Alice"),
        ("Alice", "bob", False),
        ("*", "bob", "bob"),
        ("*", None, False),
        (None, None, None),
        (None, "bob", False),
    ],
)
def test_the_user_is_the_keys_unless_the_machine_may_name_one(of_key, wanted, user):
    found = rules.user_for(replace(KEY, provisionedto=of_key), Wanted("pc", "", None, wanted))
    assert isinstance(found, BadField) if user is False else found == user


def test_a_key_stands_until_it_expires_or_is_revoked():
    assert KEY.stands(NOW)
    assert not KEY.stands(KEY.expireson)
    assert not replace(KEY, revokedon=NOW).stands(NOW)
    assert replace(KEY, uses=1).used_up


def test_the_state_of_a_key_is_the_first_that_keeps_machines_out():
    def state(disabled=False, now=NOW, **more):
        return replace(KEY, **more).state(now, user_disabled=disabled)

    assert state() == KeyState.GOOD
    assert state(disabled=True) == KeyState.DISABLED
    assert state(disabled=True, uses=1) == KeyState.USED_UP
    assert state(now=KEY.expireson, uses=1) == KeyState.EXPIRED
    assert state(now=KEY.expireson, revokedon=NOW) == KeyState.REVOKED


def test_a_machine_that_waits_long_asks_less_often():
    enrolment = rules.Enrolment(
        *("e", "k", "lab-x", IceType.NORMAL, "Alice", "x", "", "::1", "t"),
        rules.EnrolmentState.WAITING,
        replaces=False,
        generation=None,
        createdon=NOW,
        expireson=NOW + timedelta(days=7),
    )
    waits = [enrolment.retry_after(NOW + timedelta(seconds=age)) for age in (-9, 0, 100, 9e4)]
    assert waits == [5, 5, 10, 300]


def test_only_the_same_ice_is_replaced():
    ice = Ice.provision("lab-x", IceType.NORMAL, "Alice", "h", key_id=None, now=NOW, expires=None)
    registered = ice.register("thumb", now=NOW)
    assert not rules.can_replace(ice, IceType.NORMAL, "alice")
    assert rules.can_replace(registered, IceType.NORMAL, "alice")
    assert not rules.can_replace(registered, IceType.NORMAL, "bob")
    assert not rules.can_replace(registered, IceType.CI_CD, None)
    assert fold("LAB-x") == fold(registered.ice_name)
