"""SIGTERM, SIGHUP and SIGINT of `serve`, from its first moment to its last.

What comes while nobody can act on it yet is remembered. The defaults will not do: a SIGHUP would end a gateway
whose certificate is renewed while it starts, and the kernel drops whatever the first process of a container
(PID 1) has no handler for. Imports next to nothing: it is to be there before all that takes long to load.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final

Act = Callable[[], None]
_NUMBERS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Signals:
    """Which signals have come, and what is done about them; for the main thread alone."""

    def __init__(self) -> None:
        self.stopping = False
        """Whether SIGTERM or SIGINT has come."""
        self._hung_up = False
        self._before: dict[signal.Signals, Any] = {}
        self._on_stop: Act | None = None
        self._on_hang_up: Act | None = None

    def hear(self) -> bool:
        """Handle SIGTERM and SIGHUP from now on; False where that is so already."""
        if self._before:
            return False
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}
        signal.signal(signal.SIGTERM, self._stopped)
        signal.signal(signal.SIGHUP, self._hang_up)
        return True

    def hear_interrupt(self) -> None:
        """Handle SIGINT as SIGTERM from now on; before, Ctrl-C breaks off a question."""
        signal.signal(signal.SIGINT, self._stopped)

    def ignore(self) -> None:
        """The process ends: no signal shall change with which status."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """The process goes on: handle signals as before `hear`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_stop(self, act: Act | None) -> None:
        """Call `act` when the process is to stop; at once where it already is."""
        self._on_stop = act
        if self.stopping and act is not None:
            act()

    def on_hang_up(self, act: Act | None) -> None:
        """Call `act` at each SIGHUP; at once where one has come before `act` was set."""
        self._on_hang_up = act
        if self._hung_up and act is not None:
            self._hung_up = False
            act()

    def _stopped(self, *_: object) -> None:
        self.stopping = True
        if self._on_stop is not None:
            self._on_stop()

    def _hang_up(self, *_: object) -> None:
        if self._on_hang_up is None:
            self._hung_up = True
        else:
            self._on_hang_up()


signals = Signals()
"""Those of this process."""
