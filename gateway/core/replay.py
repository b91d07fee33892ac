"""Decides whether a proof is fresh and unused: nonces, and the `jti` of used proofs. Pure.

Source: docs/protocol.md; RFC 9449 sections 8 and 11.1.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import math
import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from client.protocol import PROOF_WINDOW
from gateway.core import base64url
from gateway.core.dpop import Proof

_AGREEMENT: Final = 15.0
"""Maximum seconds between the lease times of two nodes: each reads the common one every 5 s, within 10 s."""
NONCE_LIFETIME: Final = 300.0
"""Seconds until a nonce expires."""


class Nonces:
    """Stateless nonces: the lease time and an HMAC over it (RFC 9449 section 8).

    Nodes of which each knows the first key of the other, and whose lease times agree to `_AGREEMENT` seconds,
    accept each other's.
    """

    _FORM: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)

    def __init__(self, keys: Callable[[], Sequence[bytes]]) -> None:
        """The first of `keys` signs, each verifies. It is called at each use, since keys that nodes share may change."""
        self._keys = keys

    def issue(self, now: float) -> str:
        """A nonce that expires `NONCE_LIFETIME` seconds after `now`."""
        stamp = struct.pack(">Q", int(now * 1000))
        return base64url.encode(stamp + _mac(self._keys()[0], stamp))

    def expiry(self, nonce: str, now: float) -> float | None:
        """When the nonce expires; None if it is not valid at `now`."""
        if not self._FORM.fullmatch(nonce):
            return None
        data = base64url.decode(nonce)
        stamp, mac = data[:8], data[8:]
        if not any(hmac.compare_digest(mac, _mac(key, stamp)) for key in self._keys()):
            return None
        issued = struct.unpack(">Q", stamp)[0]
        if issued > int((now + _AGREEMENT) * 1000):  # it would be valid for too long
            return None
        until = float(issued) / 1000 + NONCE_LIFETIME
        return until if now < until else None


def _mac(key: bytes, stamp: bytes) -> bytes:
    return hmac.digest(key, stamp, "sha256")[:16]


class ReplayGuard:
    """Accepts each proof once, while it is fresh, even if the clock is set meanwhile.

    A proof with a nonce is fresh until the nonce expires, by `lease_time`; its `iat` is ignored. A proof without
    a nonce is fresh by its `iat` and `now`, Unix time. If the clock was set back to a time for which used proofs
    have been forgotten, ICEs must send a nonce until that time has passed again.
    """

    def __init__(self, nonces: Nonces) -> None:
        self._nonces = nonces
        self._by_iat = JtiCache()
        self._by_nonce = JtiCache()

    def used(self, proof: Proof, now: float, lease_time: float) -> bool:
        """Whether a proof of this key with this `jti` was accepted and could still be fresh."""
        return self._by_iat.used(proof, now) or self._by_nonce.used(proof, lease_time)

    def _fresh_until(self, proof: Proof, now: float, lease_time: float) -> float | None:
        if proof.nonce is not None:
            return self._nonces.expiry(proof.nonce, lease_time)
        until = proof.iat + PROOF_WINDOW
        stale = abs(proof.iat - now) > PROOF_WINDOW or until < self._by_iat.forgotten_until
        return None if stale else until

    def fresh(self, proof: Proof, now: float, lease_time: float) -> bool:
        """Whether `accept` would accept the proof."""
        return self._fresh_until(proof, now, lease_time) is not None

    def accept(self, proof: Proof, now: float, lease_time: float) -> bool:
        """Accept the proof and remember it; False if the ICE must send a new nonce."""
        until = self._fresh_until(proof, now, lease_time)
        if until is None:
            return False
        if proof.nonce is None:
            self._by_iat.remember(proof, until, now)
        else:
            self._by_nonce.remember(proof, until, lease_time)
        return True


class JtiCache:
    """Used proofs, each remembered until it is no longer fresh.

    A `jti` is unique per key (RFC 9449 section 11.1). A hash of 16 bytes is kept, so that the sender
    cannot choose how much memory a proof takes.
    """

    def __init__(self) -> None:
        self.forgotten_until = -math.inf
        """Proofs that were fresh until before this time may have been forgotten."""
        self._until: dict[bytes, float] = {}
        # Names by the second in which they expire, and a heap of these seconds: a heap of the names with their
        # times would hold a tuple for each.
        self._due: dict[int, list[bytes]] = {}
        self._seconds: list[int] = []

    def __len__(self) -> int:
        return len(self._until)

    def used(self, proof: Proof, now: float) -> bool:
        """Whether a proof of this key with this `jti` is remembered."""
        until = self._until.get(proof_id(proof.thumbprint, proof.jti))
        return until is not None and now <= until  # `until` itself is still fresh

    def remember(self, proof: Proof, until: float, now: float) -> None:
        """Remember `proof` until `until`."""
        self._forget(now)
        name = proof_id(proof.thumbprint, proof.jti)
        self._until[name] = until
        second = math.floor(until)
        if second not in self._due:
            self._due[second] = []
            heapq.heappush(self._seconds, second)
        self._due[second].append(name)

    def _forget(self, now: float) -> None:
        self.forgotten_until = max(self.forgotten_until, now)
        while self._seconds and self._seconds[0] + 1 <= now:
            for name in self._due.pop(heapq.heappop(self._seconds)):
                # A proof that was used again after it expired has a later expiry.
                if self._until.get(name, now) < now:
                    del self._until[name]


@lru_cache(1)  # called several times in a row for each proof
def proof_id(thumbprint: str, jti: str) -> bytes:
    """The 16 bytes by which a proof is remembered."""
    return hashlib.sha256(f"{thumbprint} {jti}".encode()).digest()[:16]
