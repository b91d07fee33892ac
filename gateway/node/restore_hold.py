"""Keeps ICEs out while the database is a restored backup that no admin has confirmed.

The backup may revive tokens that were revoked after it was made, so an admin has to review it first.

Tested in tests/gateway/services/test_restore.py.
"""

from __future__ import annotations

from gateway.core.audit_event import AuditAction, LogEntry
from gateway.store.engine import Engine
from gateway.store.restore_mark import find_mark


class RestoreHold:
    """Holds from before the first admission until the log has the confirmation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reason: str | None = "it is not yet known whether the database is a restored backup"
        """Why no ICE is admitted, for an operator; None when the hold is over."""

    async def start(self) -> None:
        """Read the mark; call this after the log is followed, so that no confirmation is missed."""
        found = await find_mark(self._engine.fetch)
        self.reason = None if found is None else found.sentence

    def apply(self, entry: LogEntry) -> None:
        """End the hold if this event confirms the restore."""
        if entry.event.action == AuditAction.CONFIRM_RESTORE:
            self.reason = None
