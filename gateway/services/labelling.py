"""Checks labels and notes before they are stored, and makes their event.

Tested in tests/gateway/admin/api/test_labels.py.
"""

from __future__ import annotations

from datetime import datetime

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import Ice
from gateway.core.labels import LabelChanges, labels_fault, note_fault
from gateway.core.problems import Problem, invalid


def description_fault(
    changes: LabelChanges, note: str | None, field: str = "labels"
) -> Problem | None:
    """What is wrong with labels or a note, apart from what only the table shows; None if nothing is."""
    refused = labels_fault(changes, field)
    if refused is not None:
        return refused
    fault = None if note is None else note_fault(note)
    return None if fault is None else invalid("note", fault)


def label_event(
    actor: Actor, now: datetime, ice: Ice, changes: LabelChanges, note: str | None
) -> Event:
    """The event of new labels or a new note."""
    detail: dict[str, object] = {"generation_before": ice.generation}
    if changes:
        detail["labels"] = dict(changes)
    if note is not None:
        detail["note"] = note
    return Event(now, actor, AuditAction.LABEL, ice.ice_name, ice.generation, detail)
