"""Notices commits of other processes on a database file.

Tested in tests/contract/test_sqlite.py and tests/contract/test_log_follower.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from gateway.store.sqlite.commit_record import LogIndex

_LOOK_EVERY: Final = 0.1
"""Seconds between two looks."""


class CommitWatch:
    """Sets `changed` soon after a commit of any process.

    A look reads the header of the log's index, some hundred bytes, on the loop; a query would take a thread switch.
    A timer calls it, because to wake a task would cost more than the look.
    """

    def __init__(self, path: Path, changed: asyncio.Event) -> None:
        self._index = LogIndex(path)
        self._changed = changed
        self._announced: bytes | None = None
        self._asked: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look now, and every `_LOOK_EVERY` seconds."""
        header = self._index.header()
        if header is None or header != self._announced:
            self._announced = header
            self._changed.set()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY, self.start)

    def has_changed(self) -> bool:
        """Whether any process has committed since the last call; True if that cannot be known."""
        header = self._index.header()
        asked, self._asked = self._asked, header
        return header is None or header != asked

    def close(self) -> None:
        """Stop looking; the connections to the file must be closed."""
        if self._timer is not None:
            self._timer.cancel()
        self._index.close()
