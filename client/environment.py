"""What an `IceClient` has of the world besides its connection, so that tests can give another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Environment:
    """The clocks, the sleep and the randomness; tests give others."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = field(
        default_factory=lambda: random.SystemRandom().uniform
    )
