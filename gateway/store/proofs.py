"""SQL of `ice_proofs`: the proofs that were used, where several nodes share a database.

Tested in tests/contract/test_ices.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from client.protocol import PROOF_WINDOW
from gateway.core.replay import NONCE_LIFETIME
from gateway.store.engine import LEASE_CLOCK, Transaction, as_json

_ON_ITS_WAY: Final = 120.0
"""Maximum seconds from the check of a proof's age until it is stored: the timeout of a handshake."""
_LAG: Final = 30.0
"""Seconds by which the lease clock may jump when a node advances it: proofs expire that much earlier."""
KEPT: Final = NONCE_LIFETIME + PROOF_WINDOW + _ON_ITS_WAY + _LAG
"""Seconds for which a used proof is stored: longer than any node accepts it."""


async def use(transaction: Transaction, used: Collection[str]) -> set[str]:
    """Store used proofs; returns those that no node has stored before."""
    rows = await transaction.fetch(
        f"INSERT INTO ice_proofs (digest, until) SELECT atom, {LEASE_CLOCK} + $2 FROM json_each($1)"
        " ORDER BY atom ON CONFLICT DO NOTHING RETURNING digest",
        as_json(list(used)),
        KEPT,
    )
    return {digest for (digest,) in rows}
