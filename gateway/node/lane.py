"""The dispatcher's state for the session of one ICE.

Tested in tests/gateway/node/test_dispatcher.py.
"""

from __future__ import annotations

import asyncio

from gateway.node.session import Session


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
