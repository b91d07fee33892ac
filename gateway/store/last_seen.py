"""SQL of `lastseen`: when an ICE is known to have been there. It never goes back, whatever a clock does.

While an ICE is connected that is when its node last confirmed its sessions, one row of `ice_confirmed` for
all of them; an idle session costs no write. What was shown of a session is stored when it ends.
"""

from __future__ import annotations

from typing import Final

SHOWN: Final = "CASE WHEN c.at > coalesce(t.lastseen, '') THEN c.at ELSE t.lastseen END"
"""Of the entry `t`, whose session's node has confirmed at `c`."""


def confirmed(which: str) -> str:
    """A query for the ICEs with a session `s` for which the SQL `which` holds, and when it was confirmed."""
    return (
        "SELECT s.ice_name, max(c.at) AS at FROM ice_sessions s"
        f" JOIN ice_confirmed c ON c.node = s.node WHERE {which} GROUP BY s.ice_name"
    )


def stored(which: str) -> str:
    """A statement that stores `lastseen` of the ICEs of `confirmed`."""
    return (
        f"UPDATE ice_tokens SET lastseen = gone.at FROM ({confirmed(which)}) AS gone"
        " WHERE ice_tokens.ice_name = gone.ice_name AND coalesce(lastseen, '') < gone.at"
    )


def cleared(which: str) -> tuple[str, ...]:
    """Statements that delete what dead nodes have left: rows `s` for whose node the SQL `which` holds."""
    return (
        stored(which),
        f"DELETE FROM ice_sessions AS s WHERE {which}",
        f"DELETE FROM ice_confirmed AS s WHERE {which}",
    )
