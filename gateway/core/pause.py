"""The rules of a pause: the ICE stays connected and finishes what runs, but nothing new is sent to it.

Pure: no I/O and no clock. Source: docs/administration.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gateway.core.ice import Status
from gateway.core.labels import note_fault
from gateway.core.problems import Problem, invalid, problem


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when an ICE is paused, by whom, until when, and why; without `until` until it is resumed.

    `by_admin`: an admin paused it, so only an admin resumes it.
    """

    by: str
    at: datetime
    until: datetime | None = None
    note: str = ""
    by_admin: bool = False

    def is_over(self, now: datetime) -> bool:
        """Whether it has ended by time; then it counts for nothing, and nobody needs to remove it."""
        return self.until is not None and now >= self.until


def standing(pause: Pause | None, now: datetime) -> Pause | None:
    """The pause if it holds at `now`."""
    return None if pause is None or pause.is_over(now) else pause


def pause_fault(until: datetime | None, note: str, now: datetime) -> Problem | None:
    """What is wrong with the end and the note of a pause; None if nothing is."""
    if until is not None and until <= now:
        return invalid("until", "needs a time that is not over yet")
    fault = note_fault(note)
    return None if fault is None else invalid("note", fault)


def forbids(ice_name: str, pause: Pause | None, *, by_admin: bool) -> Problem | None:
    """The refusal to change a pause that holds now; None if an admin asks, or if no admin has paused the ICE."""
    if pause is None or not pause.by_admin or by_admin:
        return None
    return problem("forbidden", f"An admin has paused {ice_name}: only an admin may resume it.")


def wrong_status(ice_name: str, status: Status) -> Problem | None:
    """The refusal to pause or resume an ICE of this status; None if it is allowed."""
    if status is not Status.DEREGISTERED:
        return None
    return problem("wrong-status", f"{ice_name} is deregistered, so it cannot be paused or resumed")
