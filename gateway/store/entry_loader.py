"""Looks entries up for admissions, many in one query; and takes their proofs, where nodes share them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final

import msgspec

from client.protocol import PROOF_WINDOW
from gateway.core.ice import Ice
from gateway.core.replay import NONCE_LIFETIME
from gateway.store.engine import Engine, StoreUnavailable, as_json, damaged, many

MAX_BATCH: Final = 512
"""ICEs in one query at the most: its answers are worked on in one turn of the loop, within `admission.MAX_AGE`."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """An entry as one look-up saw it.

    `seq` is the newest event at that moment: what it recorded is in `ice`. `at` is the monotonic
    time when the query was sent. Where other nodes serve the database, too: `number` grows with each
    look-up at any of them, and `replayed` says that the proof was used before, on whichever of them.
    """

    ice: Ice | None
    seq: int
    at: float
    number: float = 0.0
    replayed: bool = False


class _Question(msgspec.Struct, gc=False):
    """Somebody asks for an entry, with a proof that is to be good once."""

    proof: str | None
    future: asyncio.Future[Reading]


_FOUND: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ICE: Final = msgspec.json.Decoder(Ice)
_PROOFS: Final = msgspec.json.Decoder(frozenset[str])
_TAKEN: Final = (
    "WITH taken AS (INSERT INTO ice_proofs (digest, until)"
    " SELECT atom, lease_clock() + $3 FROM json_each($2) ON CONFLICT DO NOTHING RETURNING digest) "
)
"""Takes proofs in the statement of a look-up, so that both are one journey to the server."""
_ON_ITS_WAY: Final = 120.0
"""Seconds from a proof being found fresh to its being taken, at the most: a handshake has no more for its answer."""
_LAG: Final = 30.0
"""Seconds by which the lease clock may be behind while nodes push it on: it would forget so much too early."""
_PROOF_KEPT: Final = NONCE_LIFETIME + PROOF_WINDOW + _ON_ITS_WAY + _LAG
"""Seconds for which a used proof is remembered: longer than it is good on any node."""


class EntryLoader:
    """Looks entries up for admissions: those that asked while a query ran go into the next, in batches.

    There is no timer, so one alone is as quick as can be; and nobody joins a query that is already
    running, since it may be older than the caller's entry in the hub.
    """

    def __init__(self, engine: Engine, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._waiting: dict[str, list[_Question]] = {}
        self._running: asyncio.Task[None] | None = None
        # One statement is one snapshot: the entries and the number of the newest event agree.
        # And one row: for each that it steps to, SQLite's thread has to wait for Python's lock.
        number, taken = "0.0", "NULL"
        if engine.shared:
            number, taken = "reading_number()", "(SELECT json_agg(digest) FROM taken)::text"
        self._sql = (
            f"{_TAKEN if engine.shared else ''}SELECT (SELECT coalesce(max(seq), 0) FROM ice_events),"
            f" (SELECT {engine.gather('ice_name', Ice.__dataclass_fields__)} FROM ice_tokens"
            f" WHERE {many('ice_name', 1)}), {number}, {taken}"
        )

    async def find(self, ice_name: str, proof: str | None = None) -> Reading:
        """The entry of exactly this name, read after this was called. Raises `StoreUnavailable`.

        `proof` names a proof that no other node has let through, and none will after this.
        """
        future: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(ice_name, []).append(_Question(proof, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="look-ups")
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                names = tuple(itertools.islice(self._waiting, MAX_BATCH))
                batch = {name: self._waiting.pop(name) for name in names}
                try:
                    answer = await self._ask(batch)
                except Exception as error:  # noqa: BLE001 - handed to whoever asked
                    for questions in batch.values():
                        _fail(questions, error)
                else:
                    for name, questions in batch.items():
                        answer.give(name, questions)
        finally:
            self._running = None

    async def _ask(self, batch: dict[str, list[_Question]]) -> _Answer:
        fault = self._engine.fault
        if fault is not None:
            # Whom nobody could take out again is not let in either.
            raise StoreUnavailable(fault)
        params: list[object] = [as_json(list(batch))]
        if self._engine.shared:
            proofs = [one.proof for asked in batch.values() for one in asked if one.proof]
            params += [as_json(proofs), _PROOF_KEPT]
        at = self._monotonic()
        [(seq, found, number, taken)] = await self._engine.look_up(self._sql, *params)
        return _Answer(_FOUND.decode(found or "{}"), seq, at, number, _PROOFS.decode(taken or "[]"))


class _Answer(msgspec.Struct, gc=False):
    """What one query has found."""

    found: dict[str, msgspec.Raw]
    seq: int
    at: float
    number: float
    taken: frozenset[str]

    def give(self, ice_name: str, questions: list[_Question]) -> None:
        """Answer those who asked for one; an entry that is damaged is nobody else's trouble."""
        found = self.found.get(ice_name)
        try:
            ice = None if found is None else _ICE.decode(found)
        except msgspec.DecodeError as error:
            _fail(questions, damaged(f"the entry of {ice_name}", error))
            return
        reading = Reading(ice, self.seq, self.at, self.number)
        for one in questions:
            if one.future.done():  # the asker may have gone
                continue
            if one.proof is not None and one.proof not in self.taken:
                one.future.set_result(msgspec.structs.replace(reading, replayed=True))
            else:
                one.future.set_result(reading)


def _fail(questions: list[_Question], error: Exception) -> None:
    for one in questions:
        if not one.future.done():
            one.future.set_exception(error)
