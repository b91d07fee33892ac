"""SQL of pauses, which are columns of `ice_tokens`.

Tested in tests/contract/test_work_queue.py.
"""

from __future__ import annotations


def paused(ice: str, now: int) -> str:
    """SQL for: the ICE of this alias is paused; `now` is the number of the parameter with the present."""
    return f"({ice}.pausedon IS NOT NULL AND coalesce({ice}.pauseduntil, '9') > ${now})"
