"""Which rows another node may have committed since the last look at them. Pure.

A row is numbered before its transaction commits, so it may be seen after rows with higher numbers. The numbers of
transactions say when no such row can come: once every transaction that may have drawn a number has ended.
"""

from __future__ import annotations

from gateway.store.nodes import Snapshot


class CommitWindow:
    """The numbers that have to be looked at: those beyond `after`.

    Take a snapshot, then look at the rows, then call `looked`; if the look fails, do not.

    A transaction that draws a number as its first change gets its own number microseconds later. That it waits
    there from one look to the next is not provided for.
    """

    __slots__ = ("_past", "after")

    def __init__(self) -> None:
        self.after = 0
        """Every row up to this number was looked at, and none can come."""
        self._past: Snapshot | None = None

    def looked(self, snapshot: Snapshot) -> bool:
        """All rows beyond `after` that were committed before `snapshot` have been looked at.

        Returns whether it is of another server than the last one. A standby that was promoted may lack rows that
        were seen, and give their numbers to others: the window begins anew.
        """
        past = self._past
        another = past is not None and past.server != snapshot.server
        if past is None or another:
            self.after, self._past = 0, snapshot
        elif snapshot.oldest > past.transaction:
            # Every transaction that had drawn a number up to `past.newest` has ended, so this look saw its row.
            self.after, self._past = max(self.after, past.newest), snapshot
        return another
