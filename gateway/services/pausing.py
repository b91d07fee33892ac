"""What the single and the bulk actions `pause` and `resume` have in common.

Tested in tests/gateway/admin/api/test_pausing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import Ice
from gateway.core.pause import Pause
from gateway.core.times import to_text_or_none


@dataclass(frozen=True, slots=True)
class PauseOrder:
    """What a caller wants of ICEs: to pause them until a time, or, with `resume`, to end their pauses.

    `by_admin`: the caller is an admin, not the tagged user.
    """

    by_admin: bool
    resume: bool = False
    until: datetime | None = None
    note: str = ""

    def pause(self, actor: Actor, now: datetime) -> Pause | None:
        """The pause from now on; None to resume."""
        if self.resume:
            return None
        return Pause(actor.name, now, self.until, self.note, self.by_admin)


def pause_event(
    actor: Actor, now: datetime, ice: Ice, before: Pause | None, after: Pause | None
) -> Event:
    """The event of a pause, or of the end of one."""
    detail: dict[str, object] = {"generation_before": ice.generation}
    if after is not None:
        detail |= {"until": to_text_or_none(after.until), "note": after.note}
    elif before is not None:
        detail["pausedby"] = before.by
    action = AuditAction.RESUME if after is None else AuditAction.PAUSE
    return Event(now, actor, action, ice.ice_name, ice.generation, detail)
