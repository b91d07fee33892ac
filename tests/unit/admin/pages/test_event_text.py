"""What audit events say in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.admin.pages.event_text import actor_text, detail_parts, timeline_text
from gateway.core.audit_event import Actor, Event, Via

ROOT = Actor("root", Via.PAGE, "192.0.2.7")


def event(action, **detail):
    return Event(datetime(2026, 3, 1, tzinfo=UTC), ROOT, action, "lab-1", 2, detail)


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        (
            {"labels": {"room": None, "os": "windows"}},
            ["Set the label os=windows.", "Removed the label room."],
        ),
        ({"note": "under the desk"}, ["Set the note: under the desk"]),
        ({"labels": {"os": ""}, "note": ""}, ["Set the label os=.", "Removed the note."]),
    ],
)
def test_labels_and_a_note_are_told_in_sentences_on_both_pages(detail, told):
    labelled = event("label", generation_before=2, **detail)
    assert detail_parts(labelled) == told
    assert timeline_text(labelled) == " ".join(told)


@pytest.mark.parametrize(
    ("action", "detail", "told"),
    [
        ("pause", {"until": None, "note": ""}, "Paused until it is resumed."),
        (
            "pause",
            {"until": "2026-03-01T00:00:00.000000Z", "note": "new disk"},
            "Paused until 2026-03-01T00:00:00.000000Z: new disk",
        ),
        ("resume", {"pausedby": "alice"}, "Resumed; alice had paused it."),
    ],
)
def test_pauses_are_told_in_sentences(action, detail, told):
    assert timeline_text(event(action, generation_before=2, **detail)) == told


def test_both_copies_of_an_ice_are_named():
    copies = [
        {"instance": "a", "address": "192.0.2.1", "hostname": "desk"},
        {"instance": "b", "address": "192.0.2.2", "hostname": None},
    ]
    duplicate = event("duplicate", generation_before=2, copies=copies)
    told = "Two copies of it run: from 192.0.2.1 (desk) and from 192.0.2.2 (unknown host)."
    assert detail_parts(duplicate) == [told]
    assert timeline_text(duplicate) == told


def test_failed_logins_are_counted_in_a_sentence():
    for count, times in ((1, "1 failed login"), (3, "3 failed logins")):
        [told] = detail_parts(event("login-failed", count=count, user="alice"))
        assert told == f"{times} as alice, the last from 192.0.2.7."
    [_, told] = detail_parts(event("login-failed", count=1, user="alice", why="sso-only"))
    assert told == "alice may not log in by password."
    unknown = {"count": 1, "user": "sso/a-1", "subject": "a-1", "name": "{x}", "why": "sso-name"}
    [_, who, why] = detail_parts(event("login-failed", **unknown))
    assert who == "The issuer gave the subject a-1 and the name {x}."
    assert why == "Their name is in use, or cannot be one of a user."


def test_how_a_user_logs_in_is_told_in_a_sentence():
    linked = {"user": "alice", "origin": "sso", "issuer": "https://id.example", "subject": "a-1"}
    local = {"user": "alice", "origin": "local", "issuer": None, "subject": None}
    for detail, told in (
        (
            {**linked, "logins_ended": 2},
            "alice logs in by single sign-on, as a-1 of https://id.example; 2 logins ended.",
        ),
        ({**local, "logins_ended": 1}, "alice is a local user; 1 login ended."),
        ({**local, "logins_ended": 0}, "alice is a local user."),
    ):
        assert detail_parts(event("set-login", **detail)) == [told]


def test_other_events_tell_their_action_and_what_it_was_about():
    assert timeline_text(event("reregister", generation_before=1)) == "reregister (generation 2)"
    work = event("request-operation", kind="execute", operation="op-1")
    assert timeline_text(work) == "request-operation (execute op-1)"
    assert detail_parts(work) == ["kind: execute", "operation: op-1"]
    assert detail_parts(event("set-role", role="member", was=None)) == ["role: member"]


WANTED = {
    "enrolment": "e1",
    "key": "k1",
    "ice_name": "lab-PC-7",
    "provisionedto": "alice",
    "hostname": "PC-7",
    "key_thumbprint": "T",
    "replaces": False,
}


@pytest.mark.parametrize(
    ("action", "more", "told"),
    [
        ("request-enrolment", {}, "PC-7 (key pair T) asked for the ICE lab-PC-7 of alice."),
        (
            "request-enrolment",
            {"provisionedto": None, "replaces": True},
            "PC-7 (key pair T) asked for the ICE lab-PC-7, which it replaces.",
        ),
        (
            "approve-enrolment",
            {},
            "Approved PC-7 (key pair T), which asked for the ICE lab-PC-7 of alice with the enrolment key k1.",
        ),
        (
            "reject-enrolment",
            {},
            "Rejected PC-7 (key pair T), which asked for the ICE lab-PC-7 of alice with the enrolment key k1.",
        ),
    ],
)
def test_enrolments_are_told_in_sentences(action, more, told):
    assert detail_parts(event(action, **WANTED | more)) == [told]


def test_enrolment_keys_are_told_in_sentences():
    key = {
        "id": "k1",
        "name": "lab PCs",
        "ice_type": "normal",
        "provisionedto": "alice",
        "name_prefix": "lab-",
        "max_uses": 2,
        "expires": "2026-03-08",
        "approval": False,
    }
    for more, told in (
        ({}, "2 normal ICEs lab-… of alice, until 2026-03-08."),
        (
            {"provisionedto": "*", "max_uses": 1, "approval": True},
            "1 normal ICE lab-…, whose users the machines name, until 2026-03-08, each with an approval.",
        ),
    ):
        made = event("create-enrolment-key", **key | more)
        assert detail_parts(made) == [f"Made the enrolment key lab PCs (k1) for {told}"]
    revoked = event("revoke-enrolment-key", id="k1", name="lab PCs")
    assert detail_parts(revoked) == ["Revoked the enrolment key lab PCs (k1)."]


POOL = {"pool": "gpu", "description": "", "ice_type": None, "labels": {"os": "linux", "gpu": "1"}}


@pytest.mark.parametrize(
    ("action", "detail", "told"),
    [
        ("create-pool", POOL, ["Made the pool gpu: gpu=1, os=linux, type normal or ci-cd."]),
        ("delete-pool", {**POOL, "api_tokens_revoked": 0}, ["Deleted the pool gpu."]),
        (
            "delete-pool",
            {**POOL, "api_tokens_revoked": 2},
            ["Deleted the pool gpu, and revoked its API tokens (2)."],
        ),
        (
            "change-pool",
            {"pool": "gpu", "labels": {"gpu": "2"}, "labels_before": {"gpu": "1"}},
            ["Changed the ICEs of the pool gpu: gpu=2.", "Before: gpu=1."],
        ),
        (
            "change-pool",
            {
                "pool": "gpu",
                "ice_type": "ci-cd",
                "ice_type_before": None,
                "description": "fast",
                "description_before": "",
            },
            [
                "Changed the ICEs of the pool gpu: type ci-cd.",
                "Before: type normal or ci-cd.",
                "Changed the description of the pool gpu: fast",
            ],
        ),
    ],
)
def test_pools_are_told_in_sentences(action, detail, told):
    assert detail_parts(event(action, **detail)) == told


def test_a_machine_that_enrols_acts_under_its_key():
    machine = Actor("enrolment:k1", Via.ICE, "192.0.2.8")
    assert actor_text(machine) == "A machine with the enrolment key k1"
    assert actor_text(ROOT) == "root"
    assert actor_text(Actor("enrolment:k1", Via.PAGE, "::1")) == "enrolment:k1"


def test_a_schedule_acts_for_its_requester():
    assert actor_text(Actor("alice", Via.SCHEDULE, "s1")) == "A schedule of alice"


@pytest.mark.parametrize(
    ("action", "detail", "said"),
    [
        (
            "create-schedule",
            {"cron": "0 2 * * *", "timezone": "UTC", "enabled": False},
            ["Made the schedule nightly (s1): 0 2 * * *, in UTC, disabled."],
        ),
        ("delete-schedule", {}, ["Deleted the schedule nightly (s1)."]),
        ("run-schedule", {"operation": "o1"}, ["Ran the schedule nightly (s1) now: operation o1."]),
        (
            "change-schedule",
            {
                "requested_by": "bob",
                "requested_by_before": "alice",
                "grace": 5,
                "grace_before": 6,
                "params_changed": True,
                "generation_before": 1,
            },
            [
                "Changed the schedule nightly (s1).",
                "Grace: 5, before: 6.",
                "Requested by: bob, before: alice.",
                "Changed its params.",
            ],
        ),
    ],
)
def test_schedules_in_words(action, detail, said):
    given = {"schedule": "s1", "name": "nightly"} | detail
    assert detail_parts(event(action, **given)) == said


def test_webhooks_in_words():
    named = {"webhook": "3f1c", "name": "ops"}
    made = named | {"url": "https://a.example", "events": ["provision", "ice.away"]}
    changed = {"url": "https://b.example", "url_before": "https://a.example", "enabled": False}
    for action, detail, said in (
        (
            "create-webhook",
            made | {"enabled": False},
            ["Made the webhook ops (3f1c) to https://a.example: provision, ice.away, disabled."],
        ),
        (
            "change-webhook",
            named | changed | {"events": ["*"], "events_before": ["provision"]},
            [
                "Changed the webhook ops (3f1c).",
                "Disabled it.",
                "It calls https://b.example, before: https://a.example.",
                "It gets *, before: provision.",
            ],
        ),
        ("delete-webhook", named, ["Deleted the webhook ops (3f1c)."]),
    ):
        assert detail_parts(event(action, **detail)) == said
