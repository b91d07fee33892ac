"""Handles SIGTERM, SIGHUP and SIGINT of `serve`, from start to exit.

A signal that arrives before its callback is set is remembered. The default handlers are not enough: a SIGHUP
during the start, when a certificate is renewed, would end the gateway, and the kernel drops signals for which
the first process of a container (PID 1) has no handler. Imports almost nothing, so that it loads first.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final

Callback = Callable[[], None]
_NUMBERS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Signals:
    """The signals received and their callbacks; for the main thread only."""

    def __init__(self) -> None:
        self.stopping = False
        """Whether SIGTERM or SIGINT was received."""
        self._hung_up = False
        self._previous: dict[signal.Signals, Any] = {}
        self._on_stop: Callback | None = None
        self._on_hang_up: Callback | None = None

    def install(self) -> bool:
        """Handle SIGTERM and SIGHUP from now on; False if they are handled already."""
        if self._previous:
            return False
        self._previous = {number: signal.getsignal(number) for number in _NUMBERS}
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        return True

    def install_interrupt(self) -> None:
        """Handle SIGINT like SIGTERM from now on; until then Ctrl-C interrupts a prompt."""
        signal.signal(signal.SIGINT, self._stop)

    def ignore(self) -> None:
        """Ignore all three while the process ends, so that no signal changes its exit status."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Restore the handlers from before `install`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_stop(self, callback: Callback | None) -> None:
        """Call `callback` when the process should stop; at once if a signal has already come."""
        self._on_stop = callback
        if self.stopping and callback is not None:
            callback()

    def on_hang_up(self, callback: Callback | None) -> None:
        """Call `callback` at each SIGHUP; at once if one came while no callback was set."""
        self._on_hang_up = callback
        if self._hung_up and callback is not None:
            self._hung_up = False
            callback()

    def _stop(self, *_: object) -> None:
        self.stopping = True
        if self._on_stop is not None:
            self._on_stop()

    def _hang_up(self, *_: object) -> None:
        if self._on_hang_up is None:
            self._hung_up = True
        else:
            self._on_hang_up()


signals = Signals()
"""The signals of this process."""
