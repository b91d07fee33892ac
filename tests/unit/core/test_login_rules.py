"""Who logs in by which means, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.core.accounts import Origin, User
from gateway.core.login_rules import MAX_SUBJECT, is_subject
from gateway.core.roles import Role
from tests.contract.domain import ISSUER, NOW, login_rules

HOUR = timedelta(hours=1)
LOCAL = User("root", Role.ADMIN, "hash", NOW, origin=Origin.LOCAL)
FROM_BEFORE = replace(LOCAL, origin=None)
SSO = User("alice", Role.ADMIN, None, NOW, origin=Origin.SSO, issuer=ISSUER, subject="a")


@pytest.mark.parametrize("text", ["a", "248289761001", "Ab c|d/e", "x" * MAX_SUBJECT])
def test_a_subject_is_of_ascii(text):
    assert is_subject(text)


@pytest.mark.parametrize("text", ["", "x" * (MAX_SUBJECT + 1), "zoë", "a\nb", "a\0"])
def test_another_text_is_no_subject(text):
    assert not is_subject(text)


def test_a_user_of_an_issuer_never_logs_in_by_password():
    with_hash = replace(SSO, password_hash="hash")
    for rules in (login_rules(), login_rules(required=True), login_rules(issuer="")):
        assert not rules.by_password(with_hash)
        assert rules.by_password(LOCAL)


def test_where_single_sign_on_is_required_a_user_must_be_marked_local():
    assert login_rules().by_password(FROM_BEFORE)
    assert not login_rules(required=True).by_password(FROM_BEFORE)


@pytest.mark.parametrize(
    ("user", "kept"),
    [
        (LOCAL, True),
        (FROM_BEFORE, True),
        (SSO, False),
        (replace(LOCAL, password_hash=None), False),
        (replace(LOCAL, role=Role.AUDITOR), False),
        (replace(LOCAL, disabledon=NOW), False),
    ],
)
def test_with_an_issuer_an_admin_needs_a_password(user, kept):
    assert login_rules().keeps_admin(user) is kept
    assert login_rules(issuer="").keeps_admin(user) is user.administers


def test_a_login_lasts_as_long_as_the_origin_of_its_user_allows():
    rules = login_rules(lifetime=12 * HOUR, sso_lifetime=8 * HOUR)
    assert [rules.lifetime_of(user) / HOUR for user in (LOCAL, FROM_BEFORE, SSO)] == [12, 12, 8]
    assert rules.oldest(NOW) == (NOW - 8 * HOUR, NOW - 12 * HOUR)


def test_api_tokens_rest_until_their_user_logs_in():
    rules = login_rules(tokens_after=24 * HOUR)
    seen = replace(SSO, lastlogin=NOW)
    for since, rests in ((-1, False), (23, False), (24, True)):
        assert rules.rests(seen, NOW + since * HOUR) is rests
    assert rules.rests(SSO, NOW), "who never logged in has not logged in for so long"
    assert not login_rules(tokens_after=None).rests(SSO, NOW)
    for user in (LOCAL, FROM_BEFORE):
        assert not rules.rests(user, NOW)
