"""SQL of `lastseen`: when an ICE was last known to be connected. It never decreases, even if a clock is set back.

While an ICE is connected, it is when its node last confirmed all its sessions in one row of `ice_confirmed`, so an
idle session costs no write. The end of a session stores it in `ice_tokens`.
"""

from __future__ import annotations

from typing import Final

from gateway.store.engine import Fetch

SHOWN: Final = "CASE WHEN c.at > coalesce(t.lastseen, '') THEN c.at ELSE t.lastseen END"
"""SQL for `lastseen` of the row `t` of `ice_tokens`; `c` is the row of `ice_confirmed` of its node."""


async def confirmations(fetch: Fetch) -> dict[str, list[str]]:
    """The moments of the nodes' last confirmations, the earliest first, each with its nodes."""
    found: dict[str, list[str]] = {}
    for node, at in await fetch("SELECT node, at FROM ice_confirmed ORDER BY at, node"):
        found.setdefault(at, []).append(node)
    return found


# `SHOWN` compared, without a look-up of the node for each ICE.


def seen_before(moment: str) -> str:
    """SQL for: the `lastseen` of the row `t` that is shown is before `moment`."""
    return (
        f"((t.lastseen < {moment} AND (t.node IS NULL OR t.node NOT IN ({_confirmed('>=', moment)})))"
        f" OR (t.lastseen IS NULL AND t.node IN ({_confirmed('<', moment)})))"
    )


def seen_after(moment: str) -> str:
    """SQL for: the `lastseen` of the row `t` that is shown is after `moment`."""
    return f"(t.lastseen > {moment} OR t.node IN ({_confirmed('>', moment)}))"


def _confirmed(comparison: str, moment: str) -> str:
    return f"SELECT node FROM ice_confirmed WHERE at {comparison} {moment}"


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
