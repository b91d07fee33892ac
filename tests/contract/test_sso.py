"""`sso_used`: what an issuer sent is good once."""

from __future__ import annotations

from gateway.store import sso
from tests.contract.domain import NOW, digest, minutes


async def test_a_digest_is_good_once_until_it_has_expired(engine):
    async def use(until, now):
        return await engine.write(lambda t: sso.use(t, digest("a"), until, now))

    assert await use(minutes(2), NOW)
    assert not await use(minutes(2), NOW)
    assert await use(minutes(9), minutes(3))
    assert len(await engine.fetch("SELECT digest FROM sso_used")) == 1
