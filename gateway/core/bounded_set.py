"""A set that forgets its oldest members, so that its memory is bounded. Pure."""

from __future__ import annotations


class BoundedSet:
    """At most `limit` texts; the one that was added first is forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, text: str) -> bool:
        return text in self._members

    def add(self, text: str) -> None:
        """Add a text, or do nothing if it is there."""
        self._members[text] = None
        if len(self._members) > self._limit:
            del self._members[next(iter(self._members))]

    def discard(self, text: str) -> None:
        """Remove a text if it is there."""
        self._members.pop(text, None)
