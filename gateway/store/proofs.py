"""SQL of `ice_proofs`: the proofs that were used, where several nodes share a database.

Tested in tests/contract/test_ices.py.
"""

from __future__ import annotations

from typing import Final

from client.protocol import PROOF_WINDOW
from gateway.core.replay import NONCE_LIFETIME
from gateway.store.engine import Transaction

_ON_ITS_WAY: Final = 120.0
"""Maximum seconds from the check of a proof's age until it is stored: the timeout of a handshake."""
_LAG: Final = 30.0
"""Seconds by which the lease clock may jump when a node advances it: proofs expire that much earlier."""
KEPT: Final = NONCE_LIFETIME + PROOF_WINDOW + _ON_ITS_WAY + _LAG
"""Seconds for which a used proof is stored: longer than any node accepts it."""


async def use(transaction: Transaction, proof: str) -> bool:
    """Store a used proof; False if any node has stored it before."""
    return bool(
        await transaction.run(
            "INSERT INTO ice_proofs (digest, until) VALUES ($1, lease_clock() + $2)"
            " ON CONFLICT DO NOTHING",
            proof,
            KEPT,
        )
    )
