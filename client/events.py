"""What a client tells whoever watches it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person who watches the client wants to see; `str()` is a line for them."""

    kind: Literal["warning", "connecting", "admitted", "refused", "closed", "reconnecting"]
    sentence: str
    level: int = logging.INFO
    code: str | int | None = None

    def __str__(self) -> str:
        return self.sentence


def log_event(event: Event) -> None:
    """What is done with events unless somebody else observes them."""
    logger.log(event.level, "%s", event)
