"""Machines ask for an ICE of their own with the secret of an enrolment key.

A machine's ICE is provisioned and registers as any other (`core.ice`); its token is made for the key pair of the
proof. Keys and enrolments are read and written in the transaction that provisions, so two machines never share
the last use of a key, and a key that is revoked makes no token any more.

Tested in tests/gateway/web/test_enrolment_endpoint.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from gateway.core.enrolment import Wanted
from gateway.core.enrolment_request import Answer, Ask, Bearer, Poll, Request
from gateway.core.problems import Problem
from gateway.services.enrolment_batch import Answered, Batch
from gateway.services.ice_changes import IceActions
from gateway.store.engine import Part, Transaction

AT_ONCE: Final = 256
"""Maximum requests in one transaction. It locks the row of each key until it commits: with many hundreds of requests,
other nodes would wait too long for that row."""


class EnrolmentService(IceActions):
    """Requests of machines. Every method raises `StoreUnavailable`."""

    def __init__(self, **acts: Any) -> None:
        """See `IceActions`."""
        super().__init__(**acts)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def request(self, bearer: Bearer, wanted: Wanted | Problem) -> Answer:
        """Give a machine an ICE, or let it wait; `wanted` is a problem if the body is not valid.

        The key pair that asks again, because the answer was lost, gets a new token while its ICE is
        `provisioned`, also with a key that is used up.
        """
        return await self._answer(Request(bearer, wanted))

    async def poll(self, bearer: Bearer, enrolment_id: str) -> Answer:
        """Tell a machine what became of its enrolment; an approved one gets its ICE and its token now."""
        return await self._answer(Poll(bearer, enrolment_id))

    async def _answer(self, ask: Ask) -> Answer:
        async with self._turns:
            answer, logged = await self._engine.write(Part(self._answer_all, ask))
        if logged:
            # A reregistration drops the session of the machine that the new one replaces.
            await self._confirmer.confirm(logged)
        return answer

    async def _answer_all(self, transaction: Transaction, asks: Sequence[Ask]) -> list[Answered]:
        batch = Batch(transaction, asks, keys=self.keys, now=self._clock(), ttl=self._ttl)
        return await batch.answers()
