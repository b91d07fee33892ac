"""The work of one session, as the dispatcher keeps it: what was sent, what is to end, who wakes it."""

from __future__ import annotations

import asyncio

from gateway.node.session import Session


class Lane:
    """The work of one session."""

    __slots__ = (
        "ending",
        "ending_until",
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
        """Is being marked as sent: nothing of it has been written to the ICE yet."""
        self.sent: str | None = None
        """What this session works on: it was sent it, or has named it in its hello."""
        self.unanswered: str | None = None
        """What it has not yet accepted or refused on this connection: a second answer is ignored."""
        self.ending: str | None = None
        """What it was told to cancel and has not answered for yet."""
        self.ending_until = 0.0

    def take(self, operation_id: str) -> None:
        """The session works on this from now on."""
        if self.sent != operation_id:
            self.sent = self.unanswered = operation_id
