"""Which rows another node may have committed since the last look at them. Pure.

A row is numbered before its transaction commits, so a number that was not there may come after higher ones were seen.
PostgreSQL's snapshots say when it can no longer come: once every transaction that had begun has ended.
"""

from __future__ import annotations

from gateway.store.nodes import Snapshot


class CommitWindow:
    """The numbers that have to be looked at: those beyond `after`.

    Take a snapshot, then look at the rows, then call `looked`; if the look fails, do not.
    """

    __slots__ = ("_past", "after")

    def __init__(self) -> None:
        self.after = 0
        """Every row up to this number was looked at, and none can come."""
        self._past: Snapshot | None = None

    def looked(self, snapshot: Snapshot) -> None:
        """All rows beyond `after` that were committed before `snapshot` have been looked at."""
        past = self._past
        if past is None:
            self._past = snapshot
        elif snapshot.oldest >= past.next:
            # Who numbered a row up to `past.newest` had begun by then, and has ended: its row was there to be seen.
            self.after = max(self.after, past.newest)
            self._past = snapshot
