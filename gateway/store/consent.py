"""SQL for whether an ICE accepts an operation, by the rule of `core.consent`.

Tested in tests/contract/test_consent.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from gateway.core.consent import FIRST_WAIT
from gateway.core.ice import IceType
from gateway.core.times import to_text


def decided_since(now: datetime) -> str:
    """The parameter `since` of `accepted`: a session that began later may still say what it accepts."""
    return to_text(now - timedelta(seconds=FIRST_WAIT))


def accepted(ice: str, session: str, *, kind: str, requested_by: str, since: int) -> str:
    """SQL for: the ICE accepts a kind from a requester.

    Args:
        ice: the alias of its row of `ice_tokens`.
        session: that of its session, whose row may be missing.
        kind: SQL for the kind, which the ICE's type allows.
        requested_by: SQL for the requester.
        since: the number of the parameter `decided_since`.
    """
    return (
        f"({ice}.ice_type = '{IceType.CI_CD}' OR {requested_by} = coalesce({ice}.provisionedto, '')"
        f" OR CASE WHEN {ice}.accepts IS NULL THEN coalesce({session}.since, '') <= ${since}"
        f" WHEN {ice}.accepts = 'null' THEN TRUE"
        f" ELSE instr({ice}.accepts, '\"' || {kind} || '\"') > 0 END)"
    )
