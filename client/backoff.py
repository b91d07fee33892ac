"""When an ICE reconnects after a refusal or a closing, and when it stops. Pure: the clock is passed in.

Source: docs/protocol.md; `protocol` has the codes and their sentences.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

from client import protocol
from client.environment import Environment
from client.protocol import CloseCode

BASE: Final = 1.0
"""Upper bound of the first backoff, in seconds."""
CAP: Final = 60.0
"""Upper bound of every backoff, in seconds."""
STEADY: Final = 60.0
"""A session of at least so many seconds resets the backoff. A shorter one does not: a client that is welcomed and
dropped at once would reconnect in a tight loop."""
SHORTEST: Final = 1.0
"""The shortest wait in seconds if the gateway or a proxy asks for one, even if its value is unreadable."""
LONGEST: Final = 3600.0
"""The longest wait in seconds that the client accepts: a longer one, sent by mistake, would silence the ICE."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no connection: the gateway's refusal, a proxy's answer, or no answer at all."""

    code: str
    sentence: str
    retry: bool = True
    retry_after: float | None = None
    """Seconds from `Retry-After`; None without it."""
    nonce: str | None = None
    answered: bool = True
    """Whether the gateway or a proxy answered the handshake."""
    actionable: bool = True
    """Whether the sentence of a failure to connect says what a person should do."""

    def __str__(self) -> str:
        return f"{'refused ' if self.answered else ''}{self.code}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended; code 1006 (RFC 6455 section 7.4.1) means without a close frame."""

    code: int
    sentence: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The client stopped by itself: a person must do what `sentence` says."""

    code: str | int
    sentence: str

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class ClosedByUs:
    """The client stopped because its `stop` was called."""


class Backoff:
    """How long to wait before the next attempt, by what ended the previous ones."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._limit = BASE
        self._nonces = 0
        self._superseded: deque[float] = deque(maxlen=protocol.SUPERSEDED_LIMIT[0])

    def _exponential(self) -> float:
        """Exponential backoff with full jitter: from zero to a limit that doubles."""
        limit, self._limit = self._limit, min(CAP, 2 * self._limit)
        return self._environment.uniform(0.0, limit)

    def refused(self, refused: Refused, *, was_admitted: bool) -> float | Stopped:
        """Seconds to wait after a refusal, or the reason to stop.

        Args:
            refused: the answer; its `retry` decides, also for unknown codes.
            was_admitted: whether this token has been admitted before.
        """
        wants_nonce = refused.code == protocol.RefusalCode.USE_DPOP_NONCE
        self._nonces = self._nonces + 1 if wants_nonce else 0
        if refused.retry:
            if self._nonces == 1 and refused.nonce is not None:
                return 0.0
            return max(self._exponential(), _bounded(refused.retry_after))
        if was_admitted and refused.code in protocol.RETRIED_ONCE_ADMITTED:
            slow = self._environment.uniform(*protocol.SLOW_RETRY)
            return max(slow, _bounded(refused.retry_after))
        return Stopped(refused.code, refused.sentence)

    def waiting(self, retry_after: float) -> float:
        """Seconds to wait after an answer that was no refusal and asks for so many."""
        self._nonces, self._limit = 0, BASE
        return _bounded(retry_after)

    def closed(self, closed: Closed, *, lasted: float) -> float | Stopped:
        """Seconds to wait after a session of `lasted` seconds, or the reason to stop."""
        self._nonces = 0
        if lasted >= STEADY:
            self._limit = BASE
        match protocol.after_close(closed.code):
            case protocol.Then.STOP:
                return Stopped(closed.code, f"{closed.reason}: {closed.sentence}")
            case protocol.Then.WAIT if closed.code == CloseCode.SUPERSEDED and self._contested():
                return Stopped(
                    closed.code,
                    f"{closed.reason}: another process runs as this ICE, with a copy of its key: stop one"
                    " of the two, or ask the admin to reregister this ICE.",
                )
            case protocol.Then.WAIT:
                return self._environment.uniform(*protocol.SUPERSEDED_WAIT)
            case protocol.Then.AFTER:
                after = _restart_after(closed.reason)
                return max(self._exponential(), SHORTEST) if after is None else _bounded(after)
            case _:
                return self._exponential()

    def _contested(self) -> bool:
        """Count a supersession; whether there were too many in too short a time."""
        limit, within = protocol.SUPERSEDED_LIMIT
        now = self._environment.monotonic()
        self._superseded.append(now)
        return len(self._superseded) == limit and now - self._superseded[0] <= within


def _restart_after(reason: str) -> float | None:
    """Seconds in the reason of close code 1012; None if it cannot be parsed."""
    try:
        return msgspec.json.decode(reason, type=protocol.RetryAfter).retry_after
    except msgspec.DecodeError:
        return None


def _bounded(asked: float | None) -> float:
    """The wait if the gateway or a proxy `asked` for so many seconds."""
    return 0.0 if asked is None else min(max(asked, SHORTEST), LONGEST)
