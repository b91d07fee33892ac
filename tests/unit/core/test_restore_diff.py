"""What a restored table would admit that was taken back since: every way to take something back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.ice import Status
from gateway.core.pause import Pause
from gateway.core.restore_diff import (
    Credentials,
    EnrolmentCredential,
    IceCredential,
    PoolStanding,
    ScheduleStanding,
    TokenCredential,
    UserCredential,
    WebhookStanding,
    revived,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
REGISTERED = IceCredential("lab-1", Status.REGISTERED, 2, "hash", None)
PROVISIONED = IceCredential("lab-1", Status.PROVISIONED, 2, "hash", NOW + HOUR)
DEREGISTERED = IceCredential("lab-1", Status.DEREGISTERED, 3, "nobody's", None)
ALICE = UserCredential("Alice", "admin", "hash", disabled=False)
TOKEN = TokenCredential("6b12", "alice", "tour", NOW + HOUR, revoked=False)


def standing(entry=REGISTERED, account=ALICE, bearer=TOKEN):
    return Credentials(
        {} if entry is None else {"lab-1": entry},
        {} if account is None else {"alice": account},
        {} if bearer is None else {bearer.id: bearer},
    )


def compare(older, newer, anew=()):
    return [(item.what, item.since) for item in revived(older, newer, NOW, reissued=anew)]


def test_an_ice_that_was_paused_since_would_be_sent_work_again():
    until = Pause("root", NOW, NOW + HOUR)
    paused = replace(REGISTERED, pause=until)
    said = "paused by root: it would be sent work again"
    assert compare(standing(), standing(paused)) == [("ice", said)]
    assert compare(standing(paused), standing(paused)) == []
    assert compare(standing(paused), standing()) == []
    over = replace(REGISTERED, pause=replace(until, until=NOW))
    assert compare(standing(), standing(over)) == []
    assert compare(standing(over), standing(paused)) == [("ice", said)]


def test_what_has_not_changed_is_not_listed():
    assert compare(standing(), standing()) == []


@pytest.mark.parametrize(
    ("older", "newer", "since"),
    [
        (REGISTERED, DEREGISTERED, "deregistered"),
        (
            REGISTERED,
            replace(PROVISIONED, generation=3, token="next"),
            "its token was replaced (generation 3)",
        ),
        (
            PROVISIONED,
            replace(PROVISIONED, generation=3, token="next"),
            "its token was replaced (generation 3)",
        ),
        (
            PROVISIONED,
            REGISTERED,
            "registered: its token could be registered again, by anyone who has it",
        ),
        (REGISTERED, replace(REGISTERED, token="other"), "its token was replaced (generation 2)"),
        (REGISTERED, None, "gone"),
    ],
)
def test_entry_that_would_be_admitted_again(older, newer, since):
    assert compare(standing(older), standing(newer)) == [("ice", since)]
    assert compare(standing(older), standing(newer), anew={"lab-1"}) == [], "it is meant to be good"


@pytest.mark.parametrize(
    "older",
    [DEREGISTERED, replace(PROVISIONED, expires=NOW), replace(PROVISIONED, expires=NOW - HOUR)],
)
def test_entry_that_admits_nobody_is_not_listed(older):
    later = standing(replace(PROVISIONED, generation=9, token="next"))
    assert compare(standing(older), later) == []
    assert [item.what for item in revived(standing(older), None, NOW)] == ["user", "api-token"]


@pytest.mark.parametrize(
    ("change", "since"),
    [
        ({"disabled": True}, "disabled"),
        ({"role": "member"}, "made member"),
        ({"password": "another"}, "given another password"),
        ({"role": "auditor", "password": "another"}, "made auditor and given another password"),
    ],
)
def test_user_who_may_do_again_what_they_may_not(change, since):
    assert compare(standing(), standing(account=replace(ALICE, **change))) == [("user", since)]


SSO = replace(ALICE, password=None, issuer="https://id.example.org", subject="a-1")


@pytest.mark.parametrize(
    ("older", "newer", "since"),
    [
        (ALICE, SSO, "linked to single sign-on, without a password"),
        (
            ALICE,
            replace(SSO, role="member"),
            "made member and linked to single sign-on, without a password",
        ),
        (replace(ALICE, password=None), SSO, None),
        (SSO, SSO, None),
        (SSO, ALICE, "made local"),
        (SSO, replace(SSO, subject="A-1"), "linked to another subject"),
        (SSO, replace(SSO, issuer="https://id.example.com"), "linked to another subject"),
        (SSO, replace(SSO, disabled=True), "disabled"),
    ],
)
def test_user_who_may_log_in_again_as_they_may_not(older, newer, since):
    listed = compare(standing(account=older), standing(account=newer))
    assert listed == ([] if since is None else [("user", since)])


def test_a_user_of_an_issuer_is_a_credential_without_the_newer_table():
    listed = revived(standing(None, SSO, None), None, NOW)
    assert [(item.what, item.since) for item in listed] == [("user", "not known")]
    assert revived(standing(None, replace(ALICE, password=None), None), None, NOW) == []


def test_user_who_is_still_disabled_is_not_listed():
    disabled = replace(ALICE, disabled=True)
    assert compare(standing(account=disabled), standing(account=disabled)) == []
    assert [item.what for item in revived(standing(account=disabled), None, NOW)] == ["ice"]


def test_first_password_of_a_user_is_no_older_one():
    tagged = replace(ALICE, password=None)
    assert compare(standing(account=tagged), standing()) == []


def test_revoked_api_token():
    revoked = replace(TOKEN, revoked=True)
    assert compare(standing(), standing(bearer=revoked)) == [("api-token", "revoked")]
    for useless in (revoked, replace(TOKEN, expires=NOW)):
        assert compare(standing(bearer=useless), standing(bearer=revoked)) == []


def test_without_the_newer_table_all_that_is_good_is_listed():
    listed = [
        (item.what, item.name, item.now, item.since) for item in revived(standing(), None, NOW)
    ]
    assert listed == [
        ("ice", "lab-1", "registered, generation 2", "not known"),
        ("user", "Alice", "admin", "not known"),
        ("api-token", "6b12", "of alice: tour", "not known"),
    ]


KEY = EnrolmentCredential("e1", "lab PCs", NOW + HOUR, revoked=False, uses=3, max_uses=5)


@pytest.mark.parametrize(
    ("change", "since"),
    [
        ({}, None),
        ({"revoked": True}, "revoked"),
        ({"uses": 4}, "used 1 more time"),
        ({"uses": 5}, "used 2 more times"),
        ({"uses": 2}, None),
    ],
)
def test_enrolment_key_that_would_make_ices_again(change, since):
    def of(key):
        return Credentials({}, {}, {}, {key.id: key})

    expected = [] if since is None else [("enrolment-key", since)]
    assert compare(of(KEY), of(replace(KEY, **change))) == expected
    for ended in ({"revoked": True}, {"uses": 5}, {"expires": NOW}):
        assert compare(of(replace(KEY, **ended)), of(replace(KEY, revoked=True))) == []
        assert revived(of(replace(KEY, **ended)), None, NOW) == []
    [found] = revived(of(KEY), None, NOW)
    assert (found.now, found.since) == ("lab PCs: 2 uses left", "not known")


NIGHTLY = ScheduleStanding("s1", "nightly", "lab-1", enabled=True)


@pytest.mark.parametrize(
    ("newer", "since"),
    [(NIGHTLY, None), (replace(NIGHTLY, enabled=False), "disabled"), (None, "deleted")],
)
def test_schedule_that_would_request_operations_again(newer, since):
    def of(schedule):
        found = {} if schedule is None else {schedule.id: schedule}
        return Credentials({}, {}, {}, schedules=found)

    expected = [] if since is None else [("schedule", since)]
    assert compare(of(NIGHTLY), of(newer)) == expected
    assert compare(of(replace(NIGHTLY, enabled=False)), of(newer)) == []
    [found] = revived(of(NIGHTLY), None, NOW)
    assert (found.name, found.now, found.since) == ("s1", "of lab-1: nightly", "not known")


POOL = PoolStanding("GPU", {"gpu": "yes", "os": "linux"}, "ci-cd")


@pytest.mark.parametrize(
    ("newer", "since"),
    [
        (POOL, None),
        (None, "deleted"),
        (replace(POOL, labels={"gpu": "new"}), "changed: it had other ICEs"),
        (replace(POOL, ice_type=None), "changed: it had other ICEs"),
    ],
)
def test_pool_that_has_other_ices_again(newer, since):
    older = Credentials({}, {}, {}, pools={"gpu": POOL})
    later = Credentials({}, {}, {}, pools={"gpu": newer} if newer else {})
    assert compare(older, later) == ([("pool", since)] if since else [])
    assert revived(older, None, NOW) == []
    if since:
        [found] = revived(older, later, NOW)
        assert (found.name, found.now) == ("GPU", "gpu=yes; os=linux (ci-cd)")


OPS = WebhookStanding("w1", "ops", "https://hooks.example.com/T0/x", enabled=True)


@pytest.mark.parametrize(
    ("newer", "since"),
    [
        (OPS, None),
        (None, "deleted"),
        (replace(OPS, enabled=False), "disabled"),
        (replace(OPS, url="https://b.example"), "given another URL"),
        (replace(OPS, name="other"), None),
    ],
)
def test_webhook_that_would_be_told_again(newer, since):
    older = Credentials({}, {}, {}, webhooks={"w1": OPS})
    later = Credentials({}, {}, {}, webhooks={"w1": newer} if newer else {})
    assert compare(older, later) == ([("webhook", since)] if since else [])
    disabled = Credentials({}, {}, {}, webhooks={"w1": replace(OPS, enabled=False)})
    assert compare(disabled, later) == []
    [found] = revived(older, None, NOW)
    assert (found.now, found.since) == ("to https://hooks.example.com: ops", "not known")
