"""Admits nobody while the table is a copy that no admin has confirmed.

What was taken back after the copy was made is good again in it: an admin has to look at that first.
"""

from __future__ import annotations

from gateway.core.audit_event import Entry
from gateway.core.codes import AuditAction
from gateway.store.engine import Engine
from gateway.store.restore_mark import find_mark


class RestoreHold:
    """Read at the start, before anybody is admitted; ended by an event of the log."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reason: str | None = "it is not yet known whether the database is a copy"
        """Why nobody is admitted, for an operator; None while this is no reason."""

    async def start(self) -> None:
        """Read the mark. The log is followed already, so that no confirmation is missed."""
        found = await find_mark(self._engine.fetch)
        self.reason = None if found is None else found.sentence

    def apply(self, entry: Entry) -> None:
        """End the hold if this event does; called by the tail."""
        if entry.event.action == AuditAction.CONFIRM_RESTORE:
            self.reason = None
