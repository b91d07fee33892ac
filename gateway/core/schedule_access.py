"""Who may see a schedule, and who may make, change and run it. Pure. Source: docs/api.md.

An API token that was made for one ICE or one pool may do none of it: `roles.Need.USER` refuses it.
"""

from __future__ import annotations

from gateway.core.ice import Ice
from gateway.core.roles import Caller
from gateway.core.schedule import Schedule


def sees(caller: Caller, schedule: Schedule, ice: Ice | None) -> bool:
    """Whether the caller sees a schedule; `ice` is its ICE, None for one of a pool."""
    if caller.grants.sees_all:
        return True
    return ice is not None and schedule.former_user is None and caller.sees(ice)


def may_schedule(caller: Caller, ice: Ice | None) -> bool:
    """Whether the caller may schedule operations of this ICE, or of a pool (None)."""
    return caller.grants.acts if ice is None else caller.operates(ice)
