"""The clocks, sleep, randomness and patience of an `IceClient`.

Tested in tests/client/test_client_agent.py and tests/client/test_client_backoff.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waits:
    """The seconds for which a client waits."""

    handshake: float = 30.0
    """For one handshake, and for the welcome after it."""
    silence: float = 10.0
    """For an address that accepted to complete the handshake, if there are others."""
    grace: float = 5.0
    """For a cancelled handler to end. The gateway waits as long before it sends the next operation."""
    answers: float = 2.0
    """For the gateway's answers, when the client stops."""
    consent: float = 2.0
    """Between two looks at what the user lets others send; the gateway takes it over once a second."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Injected so that tests control time: `now` is Unix time, all times are seconds."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform
    waits: Waits = Waits()
