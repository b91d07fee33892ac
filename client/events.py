"""The events that a client reports to its observer.

Tested in tests/client/test_client_agent.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """A change in the life of the client; `str()` is one line for a person."""

    kind: Literal[
        "warning",
        "connecting",
        "admitted",
        "refused",
        "closed",
        "reconnecting",
        "enrolling",
        "waiting",
        "enrolled",
        "accepts",
    ]
    sentence: str
    level: int = logging.INFO
    code: str | int | None = None

    def __str__(self) -> str:
        return self.sentence


def log_event(event: Event) -> None:
    """The default observer: log the event."""
    logger.log(event.level, "%s", event)
