"""Whether a proof is fresh and was not used before: nonces, and the `jti` of used proofs. Pure.

Source: contract section 5; RFC 9449 sections 8 and 11.1.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import math
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from client.protocol import PROOF_WINDOW
from gateway.core import base64url
from gateway.core.dpop import Proof

_AGREEMENT: Final = 15.0
"""Seconds by which the shared clocks of two nodes may differ: each reads the common one every 5 s, in 10 s at most."""
NONCE_LIFETIME: Final = 300.0
"""Seconds for which a nonce is good."""


class Nonces:
    """Stateless nonces: the gateway's time and an HMAC over it (RFC 9449 section 8).

    The time is that of a clock which nobody sets, so that five minutes are five minutes. Nodes that have the
    same key, and whose clocks agree to `_AGREEMENT` seconds, take each other's.
    """

    _FORM: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)

    def __init__(self, key: Callable[[], bytes]) -> None:
        """`key` is asked for at each use: where nodes share it, it may be another one day."""
        self._key = key

    def issue(self, now: float) -> str:
        """A nonce good for `NONCE_LIFETIME` seconds from `now`."""
        stamp = struct.pack(">Q", int(now * 1000))
        return base64url.encode(stamp + self._mac(stamp))

    def good_until(self, nonce: str, now: float) -> float | None:
        """When the nonce expires; None when it is not good now."""
        if not self._FORM.fullmatch(nonce):
            return None
        data = base64url.decode(nonce)
        stamp, mac = data[:8], data[8:]
        if not hmac.compare_digest(mac, self._mac(stamp)):
            return None
        issued = struct.unpack(">Q", stamp)[0]
        if issued > int((now + _AGREEMENT) * 1000):  # it would be good for too long
            return None
        until = float(issued) / 1000 + NONCE_LIFETIME
        return until if now < until else None

    def _mac(self, stamp: bytes) -> bytes:
        return hmac.digest(self._key(), stamp, "sha256")[:16]


class ReplayGuard:
    """Lets each proof through once, while it is fresh, however the clock is set meanwhile.

    A proof with a nonce is judged by it alone, never by `iat`: by `steady`, a clock that nobody sets.
    A proof without is judged by `now`, Unix time; and where the clock was set back to a time at which
    proofs have been forgotten already, the ICE has to bring a nonce until that time has passed again.
    """

    def __init__(self, nonces: Nonces) -> None:
        self._nonces = nonces
        self._by_iat = JtiCache()
        self._by_nonce = JtiCache()

    def used(self, proof: Proof, now: float, steady: float) -> bool:
        """Whether a proof of this key with this `jti` was let through, and could be fresh still."""
        return self._by_iat.used(proof, now) or self._by_nonce.used(proof, steady)

    def take(self, proof: Proof, now: float, steady: float) -> bool:
        """Let the proof through, this once; False when the ICE has to bring a new nonce."""
        if proof.nonce is None:
            until = proof.iat + PROOF_WINDOW
            if abs(proof.iat - now) > PROOF_WINDOW or until < self._by_iat.forgot:
                return False
            self._by_iat.remember(proof, until, now)
            return True
        good_until = self._nonces.good_until(proof.nonce, steady)
        if good_until is None:
            return False
        self._by_nonce.remember(proof, good_until, steady)
        return True


class JtiCache:
    """The proofs that were used, each remembered until it could not be used again.

    A `jti` counts per key (RFC 9449 section 11.1). What is kept is a hash of 16 bytes, so that the
    sender does not choose how much memory a proof takes.
    """

    def __init__(self) -> None:
        self.forgot = -math.inf
        """What could not be used again at this time has been forgotten."""
        self._until: dict[bytes, float] = {}
        self._queue: list[tuple[float, bytes]] = []  # a heap, the first to forget on top

    def __len__(self) -> int:
        return len(self._until)

    def used(self, proof: Proof, now: float) -> bool:
        """Whether a proof of this key with this `jti` is remembered."""
        until = self._until.get(mark(proof.thumbprint, proof.jti))
        return until is not None and now <= until  # at that very moment it is still fresh

    def remember(self, proof: Proof, until: float, now: float) -> None:
        """Remember `proof` until `until`."""
        self._forget(now)
        name = mark(proof.thumbprint, proof.jti)
        self._until[name] = until
        heapq.heappush(self._queue, (until, name))

    def _forget(self, now: float) -> None:
        self.forgot = max(self.forgot, now)
        while self._queue and self._queue[0][0] < now:
            _, name = heapq.heappop(self._queue)
            # Used once more after that, it is remembered for longer.
            if self._until.get(name, now) < now:
                del self._until[name]


@lru_cache(1)  # of each proof it is asked for several times in a row
def mark(thumbprint: str, jti: str) -> bytes:
    """What a proof is remembered by."""
    return hashlib.sha256(f"{thumbprint} {jti}".encode()).digest()[:16]
