"""The scenarios: what the kit plays against an ICE program, by the sections of docs/protocol.md.

Each is a coroutine that gets a `Stage`; `SCENARIOS` has all of them.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

from typing import Final

from client.conformance.scenarios import (
    closings,
    enrolment,
    handshakes,
    operations,
    refusals,
    restarts,
    sessions,
)
from client.conformance.stage import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *refusals.SCENARIOS,
    *handshakes.SCENARIOS,
    *sessions.SCENARIOS,
    *operations.SCENARIOS,
    *restarts.SCENARIOS,
    *closings.SCENARIOS,
    *enrolment.SCENARIOS,
)
"""Those that wait longest come first."""
