"""What audit events say in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.admin.pages.event_text import detail_parts, timeline_text
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


def test_other_events_tell_their_action_and_what_it_was_about():
    assert timeline_text(event("reregister", generation_before=1)) == "reregister (generation 2)"
    work = event("request-operation", kind="execute", operation="op-1")
    assert timeline_text(work) == "request-operation (execute op-1)"
    assert detail_parts(work) == ["kind: execute", "operation: op-1"]
    assert detail_parts(event("set-role", role="member", was=None)) == ["role: member"]
