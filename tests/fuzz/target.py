"""What a fuzz target is: an entrance of the product, a property that must hold for any input, and a bound of its cost.

This module imports nothing of the product, so that the engine can instrument what the targets import.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import structlog

SEEDS: Final = Path(__file__).parent / "seeds"
"""A folder for each target, with inputs that the fuzzer found worth keeping, and those that once failed."""
TARGETS: Final = {
    "token": "tokens",
    "proof": "proofs",
    "frames": "frames",
    "handshake": "handshakes",
    "bodies": "bodies",
    "messages": "messages",
    "settings": "settings",
    "client-settings": "client_settings",
    "fleet": "fleets",
    "links": "links",
    "cron": "crons",
    "id-token": "id_tokens",
    "webhook-url": "webhook_urls",
}
"""The module of each target, below `tests.fuzz.targets`."""


class Failed(AssertionError):
    """A property does not hold."""


class TooSlow(Failed):
    """An input costs more than its target allows."""


def require(holds: object, message: str) -> None:
    """Raise `Failed` unless it holds; unlike `assert` it is no branch of its own in a target."""
    if not holds:
        raise Failed(message)


@dataclass(frozen=True)
class Target:
    """An entrance of the product and what must hold for each input.

    Attributes:
        product: what is fuzzed. Tests hand in broken ones, which `check` must find out.
        check: raises `Failed` if the property does not hold for an input.
        examples: inputs to begin with; for each outcome of the product one at least.
        words: what inputs of this kind are made of; the fuzzer puts them in.
        close: stops what the target has started.
        max_bytes: of an input.
        base_ms: what any input may cost, in ms of CPU time.
        kib_ms: what each KiB of it may cost besides.
    """

    product: Callable[..., Any]
    check: Callable[[bytes, Callable[..., Any]], None]
    examples: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    close: Callable[[], None] = lambda: None
    max_bytes: int = 4096
    base_ms: float = 5.0
    kib_ms: float = 5.0

    def allowed(self, data: bytes) -> float:
        """The CPU time in seconds that the product may take for an input."""
        return (self.base_ms + self.kib_ms * len(data) / 1024) / 1000

    def measure(self, data: bytes) -> float:
        """Check an input; the CPU time in seconds that the product took, without the check. Raises `Failed`."""
        spent = 0.0

        def timed(*args: Any, **options: Any) -> Any:
            nonlocal spent
            begun = time.process_time()
            try:
                return self.product(*args, **options)
            finally:
                spent += time.process_time() - begun

        self.check(data, timed)
        return spent

    def judge(self, data: bytes, attempts: int = 5, slowed: float = 1.0) -> float:
        """Likewise; the least of some measurements if the first is too long. Raises `TooSlow`.

        `slowed` is how many times as long the product may take here.
        """
        allowed = self.allowed(data) * slowed
        spent = self.measure(data)
        for _ in range(attempts):
            if spent <= allowed:
                return spent
            spent = min(spent, self.measure(data))
        raise TooSlow(
            f"{len(data)} bytes took {spent * 1000:.1f} ms, {allowed * 1000:.1f} ms are allowed"
        )


def hush() -> None:
    """Have product and libraries say nothing: bad input would fill the log."""
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def module_of(name: str) -> ModuleType:
    """The module of a target."""
    return importlib.import_module(f"tests.fuzz.targets.{TARGETS[name]}")


def load(name: str) -> Target:
    """A target by its name."""
    target: Target = module_of(name).TARGET
    return target


def seeds_of(name: str) -> Iterable[Path]:
    """The files with seeds of a target."""
    return sorted((SEEDS / name).glob("*"))
