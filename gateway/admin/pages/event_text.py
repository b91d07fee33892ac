"""What an audit event says, in sentences or as `name: value`; for the audit page and an ICE's timeline.

Tested in tests/unit/admin/pages/test_event_text.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.audit_event import AuditAction, Event


def sentences(event: Event) -> list[str]:
    """What the event says in words; empty if its detail is shown as it is."""
    if event.action == AuditAction.LOGIN_FAILED:
        count, user = event.detail["count"], event.detail["user"]
        times = f"{count} failed login" + ("s" if count != 1 else "")
        return [f"{times} as {user}, the last from {event.actor.address}."]
    if event.action == AuditAction.LABEL:
        return [*_label_sentences(event)]
    if event.action == AuditAction.DUPLICATE:
        return [f"Two copies of it run: {copies_text(event)}."]
    return []


def _label_sentences(event: Event) -> Iterator[str]:
    for key, value in sorted(event.detail.get("labels", {}).items()):
        yield f"Removed the label {key}." if value is None else f"Set the label {key}={value}."
    note = event.detail.get("note")
    if note is not None:
        yield f"Set the note: {note}" if note else "Removed the note."


def copies_text(event: Event) -> str:
    """From where the two copies of an event `duplicate` connect."""
    return " and ".join(
        f"from {copy['address']} ({copy['hostname'] or 'unknown host'})"
        for copy in event.detail["copies"]
    )


def detail_parts(event: Event) -> list[str]:
    """The parts of the event's detail: its sentences, or `name: value` for each value."""
    return sentences(event) or [
        f"{name}: {value}"
        for name, value in sorted(event.detail.items())
        if name != "generation_before" and value is not None
    ]


def timeline_text(event: Event) -> str:
    """The event in one line of the timeline of its ICE."""
    told = sentences(event)
    if told:
        return " ".join(told)
    about = f"generation {event.generation}"
    if event.action in (AuditAction.REQUEST_OPERATION, AuditAction.CANCEL_OPERATION):
        about = f"{event.detail['kind']} {event.detail['operation']}"
    return f"{event.action} ({about})"
