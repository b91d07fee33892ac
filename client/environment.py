"""The clocks, sleep and randomness of an `IceClient`.

Tested in tests/client/test_client_agent.py and tests/client/test_client_backoff.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Environment:
    """Injected so that tests control time: `now` is Unix time, all times are seconds."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform
