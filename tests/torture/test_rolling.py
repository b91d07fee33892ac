"""A rolling restart behind a real HAProxy: forty ICEs here, a thousand by `make torture`.

Without HAProxy it is skipped and says so; where it has to be there (CI, or ICE_REQUIRE_HAPROXY=1) it fails.
"""

from __future__ import annotations

import os

import pytest

from tests.support.haproxy import HAPROXY
from tests.torture.rolling import play, report

ICES = 40
REQUIRED = bool(os.environ.get("CI")) or os.environ.get("ICE_REQUIRE_HAPROXY") == "1"


@pytest.mark.long
async def test_nothing_is_lost_while_all_nodes_are_restarted():
    if HAPROXY is None:
        missing = "there is no haproxy (Debian: apt install haproxy)"
        if REQUIRED:
            pytest.fail(missing)
        pytest.skip(missing)
    outcome = await play(ICES, operations=5)
    told = report(outcome)
    assert set(outcome.looks) == {200}, f"the page was to be answered throughout: {told}"
    assert outcome.operations == {"succeeded": 5}, f"no operation was to be lost: {told}"
    assert outcome.statuses == [0, 0, 0], f"each node was to end well: {outcome.statuses}"
    assert len(outcome.moved) == ICES, f"each ICE was to move: {sorted(outcome.moved)}"
