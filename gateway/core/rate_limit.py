"""Counts attempts per address within a sliding window, in bounded memory. Pure.

Not a library, since it runs for every garbage handshake: it needs no task, timer or thread.
"""

from __future__ import annotations

import ipaddress
from array import array
from collections import OrderedDict
from typing import Final

_MAX_SOURCES: Final = 65_536
"""Maximum sources remembered; the least recently active is forgotten first."""
_IPV6_PREFIX: Final = 64
"""Prefix length of one source: a customer has at least a /64 (RFC 6177)."""


class RateLimiter:
    """Allows each source at most `limit` attempts within `window` seconds."""

    def __init__(self, limit: int, window: float, *, max_sources: int = _MAX_SOURCES) -> None:
        self._limit = limit
        self._window = window
        self._max_sources = max_sources
        self._sources: OrderedDict[str, array[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def count(self, address: str, now: float) -> float:
        """Count an attempt at `now`; returns 0, or the seconds until another attempt is allowed."""
        name = source(address)
        times = self._sources.get(name)
        if times is None:
            times = self._sources[name] = array("d")
            self._make_room(now)
        self._sources.move_to_end(name)
        while times and now - times[0] >= self._window:
            del times[0]
        if len(times) == self._limit:
            return self._window - (now - times[0])
        times.append(now)
        return 0.0

    def _make_room(self, now: float) -> None:
        """Forget sources that were quiet for a whole window, and those above the maximum."""
        while len(self._sources) > 1:
            name, times = next(iter(self._sources.items()))
            recent = times and now - times[-1] < self._window
            if recent and len(self._sources) <= self._max_sources:
                return
            del self._sources[name]

    def forget(self, address: str) -> None:
        """Forget the attempts of this source."""
        self._sources.pop(source(address), None)

    def undo(self, address: str) -> None:
        """Remove the latest attempt of this source, because it succeeded."""
        times = self._sources.get(source(address))
        if times:
            times.pop()


def source(address: str) -> str:
    """The source of an address: itself, or its /64."""
    if ":" not in address:
        return address
    try:
        # A scope such as %eth0 does not make another source.
        ip = ipaddress.IPv6Address(address.split("%", maxsplit=1)[0])
    except ValueError:
        return address
    # RFC 4291 section 2.5.5.2: a dual-stack proxy reports all of IPv4 in one /64.
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, _IPV6_PREFIX), strict=False))
