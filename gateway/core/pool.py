"""Pools: the ICEs that have all labels of a pool, and any of which may get its operations. Pure.

Source: docs/api.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gateway.core.audit_event import differences
from gateway.core.ice import NAME_RULE, IceType, valid_name
from gateway.core.labels import Labels, labels_fault, note_fault
from gateway.core.problems import Problem, invalid

MAX_POOLS: Final = 1000


@dataclass(frozen=True, slots=True)
class Pool:
    """A row of `ice_pools`. An ICE belongs to it by labels and type, unless it is deregistered.

    `ice_type` is None where either type may belong to it.
    """

    name: str
    description: str
    ice_type: IceType | None
    labels: Labels
    createdby: str
    createdon: datetime


def pool_fault(name: str, description: str, labels: Labels) -> Problem | None:
    """What is wrong with a pool; None if nothing is."""
    if not valid_name(name):
        return invalid("name", f"needs {NAME_RULE}")
    fault = note_fault(description, "a description")
    if fault is not None:
        return invalid("description", fault)
    if not labels:
        return invalid("labels", "a pool needs at least one label")
    return labels_fault(labels)


def changes(before: Pool, after: Pool) -> dict[str, Any]:
    """What differs, for the audit log."""
    return differences(before, after, ("description", "ice_type", "labels"))
