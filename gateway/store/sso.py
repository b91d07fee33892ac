"""SQL of `sso_used`: what an issuer sent and is valid only once.

Tested in tests/contract/test_sso.py.
"""

from __future__ import annotations

from datetime import datetime

from gateway.core.times import to_text
from gateway.store.engine import Transaction


async def use(transaction: Transaction, digest: str, until: datetime, now: datetime) -> bool:
    """Store a digest until `until`, after which it would be refused anyway; False if it was stored before.

    Deletes the digests that have expired.
    """
    await transaction.run("DELETE FROM sso_used WHERE until < $1", to_text(now))
    return bool(
        await transaction.run(
            "INSERT INTO sso_used (digest, until) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            digest,
            to_text(until),
        )
    )
