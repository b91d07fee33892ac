"""Bounds how many requests of one kind run at once, of each user and in all.

Tested in tests/gateway/admin/api/test_audit.py and tests/gateway/admin/api/test_events.py.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator

from gateway.core.problems import problem
from gateway.web.responses import RequestRefused


class Quota:
    """The requests of one kind that run on this node.

    Args:
        code: refuses a user who has `of_a_user` of them.
        of_a_user: how many one user may have.
        of_all: how many all users may have together.
    """

    def __init__(self, code: str, of_a_user: int, of_all: float = math.inf) -> None:
        self._code = code
        self._of_a_user = of_a_user
        self._of_all = of_all
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def use(self, user: str) -> Iterator[None]:
        """One request of this user. Raises `RequestRefused` if there are too many."""
        if self._running[user] >= self._of_a_user:
            raise RequestRefused(problem(self._code))
        if self._running.total() >= self._of_all:
            raise RequestRefused(
                problem("unavailable", "Too many users do the same now. Try again later.")
            )
        self._running[user] += 1
        try:
            yield
        finally:
            self._running[user] -= 1
            if not self._running[user]:
                del self._running[user]
