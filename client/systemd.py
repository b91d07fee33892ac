"""Tells systemd how a service is doing: the datagrams of sd_notify(3), for units of `Type=notify`.

The gateway imports it, too. It has no effect unless systemd started the process and asked for it by the variable
NOTIFY_SOCKET. Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
import sys
import time
from collections.abc import Iterator, MutableMapping
from typing import Final

_MAX_STATUS: Final = 500
"""Characters of the text for `systemctl status`."""


class ServiceManager:
    """What systemd asked for when it started this process.

    A message that cannot be sent is dropped: a service does not depend on the one who watches it.

    Args:
        environ: the environment. The variables are removed from it, so that child processes do not take them
            as meant for them.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", "")
        # "@" begins the name of an abstract socket. The other addresses (vsock) are those of virtual machines.
        usable = address.startswith(("/", "@")) and hasattr(socket, "AF_UNIX")
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._heard = usable
        mine = watched in ("", str(os.getpid()))
        self.watchdog: float | None = None
        """Seconds within which systemd wants a sign of life; None if it does not watch."""
        if usable and mine and microseconds.isdecimal() and int(microseconds):
            self.watchdog = int(microseconds) / 1e6

    def ready(self) -> None:
        """Say that the start is complete, or a reload."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Say in one line what the service does now."""
        line = "".join(char if char.isprintable() else " " for char in text)
        self._send(f"STATUS={line[:_MAX_STATUS]}")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` says that it is complete."""
        # Units of Type=notify-reload need the time; on Linux this is the clock that systemd reads.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the service stops."""
        self._send("STOPPING=1")

    @contextlib.contextmanager
    def watched(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Give systemd a sign of life from the loop, as often as it wants one.

        A loop that hangs gives none: systemd then ends the process with SIGABRT, at which Python writes to
        stderr where each thread is.
        """
        if self.watchdog is None:
            yield
            return
        interval = self.watchdog / 2
        if not faulthandler.is_enabled():
            faulthandler.enable()

        timer: asyncio.Handle

        def sign() -> None:
            nonlocal timer
            self._send("WATCHDOG=1")
            timer = loop.call_later(interval, sign)

        timer = loop.call_soon(sign)
        try:
            yield
        finally:
            timer.cancel()

    def _send(self, message: str) -> None:
        if sys.platform == "win32" or not self._heard:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.settimeout(0)
            sender.sendto(message.encode(errors="replace"), self._address)
