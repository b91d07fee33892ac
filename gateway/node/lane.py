"""The dispatcher's state for the session of one ICE, and what that session may be sent.

Tested in tests/gateway/node/test_dispatcher.py.
"""

from __future__ import annotations

import asyncio

from msgspec import UNSET

from gateway.core.consent import FIRST_WAIT, may_be_sent
from gateway.core.ice import OPERATIONS
from gateway.node.session import Session
from gateway.store import work_queue
from gateway.store.engine import Fetch
from gateway.store.work_queue import Worker


class Lane:
    """Which operation a session works on; operations are named by their id."""

    __slots__ = (
        "cancel_until",
        "cancelling",
        "sending",
        "sent",
        "session",
        "task",
        "unanswered",
        "wake",
    )

    task: asyncio.Task[None]

    def __init__(self, session: Session) -> None:
        self.session = session
        self.wake = asyncio.Event()
        self.sending: str | None = None
        """The operation that is being marked as sent; the ICE has not received any of it."""
        self.sent: str | None = None
        """The operation that the session works on: it was sent here or named in the ICE's hello."""
        self.unanswered: str | None = None
        """The operation that the ICE has yet to accept or refuse; a second answer is ignored."""
        self.cancelling: str | None = None
        """The operation whose cancellation was sent and that the ICE has not finished."""
        self.cancel_until = 0.0
        """When the next operation is sent regardless of `cancelling`, in the loop's time."""

    def start(self, operation_id: str) -> None:
        """Note that the session works on this operation."""
        if self.sent != operation_id:
            self.sent = self.unanswered = operation_id


async def worker_of(session: Session, fetch: Fetch) -> tuple[Worker, float | None]:
    """What the session may be sent now, and the seconds until that changes although the ICE says nothing."""
    name, ice_type, undecided = session.ice_name, session.ice_type, None
    open_for = asyncio.get_running_loop().time() - session.opened
    accepts = session.accepts
    if accepts is UNSET:
        accepts = await work_queue.last_accepts(fetch, name)
        if accepts is UNSET and open_for < FIRST_WAIT:
            undecided = FIRST_WAIT - open_for
    kinds = may_be_sent(ice_type, accepts, open_for, by_tagged_user=False)
    owner_only = [kind for kind in OPERATIONS[ice_type] if kind not in kinds]
    worker = Worker(
        name, ice_type, session.generation, session.id, session.provisionedto, owner_only
    )
    return worker, undecided
