"""Loads ICEs for admissions, many in one query, and stores used proofs if nodes share a database.

An ICE is found by its name, or by the hash of its token if the token's key is retired.

Tested in tests/contract/test_ices.py.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final

import msgspec

from gateway.core.ice import Ice
from gateway.store import proofs
from gateway.store.engine import (
    LEASE_CLOCK,
    Engine,
    StoreUnavailable,
    as_json,
    damaged,
    is_in,
    rows_of,
)

_MAX_BATCH: Final = 512
"""ICEs in one query at most: one turn of the loop handles the answers, within `admission.MAX_AGE`."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """An ICE as one query read it.

    `seq` is the newest event at that moment, and `ice` reflects it. `at` is the monotonic time when the query
    was sent. If several nodes serve the database, `number` grows with each query of any node, and `replayed`
    says that the proof was used before on any node.
    """

    ice: Ice | None
    seq: int
    at: float
    number: float = 0.0
    replayed: bool = False


class _Request(msgspec.Struct, gc=False):
    """A caller waits for an ICE; `proof` may be used only once."""

    proof: str | None
    future: asyncio.Future[Reading]


_BY_HASH: Final = "#"
"""Begins the key of a request by a token's hash, which could also be a name; no name begins with it."""
_KEY_OF_TOKEN: Final = f"'{_BY_HASH}' || ice_token"
_FOUND: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ICE: Final = msgspec.json.Decoder(Ice)
_PROOFS: Final = msgspec.json.Decoder(frozenset[str])
_TAKEN: Final = (
    "taken AS (INSERT INTO ice_proofs (digest, until)"
    f" SELECT atom, {LEASE_CLOCK} + $3 FROM {{}} ON CONFLICT DO NOTHING RETURNING digest) "
)
"""Stores proofs in the statement that reads the ICEs: one round trip for both."""
_PROOFS_BY_NAME: Final = "json_each($2)"
# The proof that comes with garbage is not stored.
_PROOFS_BY_ALL: Final = (
    f"(SELECT atom FROM {_PROOFS_BY_NAME} UNION ALL SELECT proof FROM {rows_of(5, 'token', 'proof')}"
    " JOIN held ON ice_token = given.token) AS good"
)


class IceLoader:
    """Loads ICEs for admissions. Requests that arrive while a query runs share the next one.

    There is no timer, so a single request does not wait. A request never joins a running query, which may have
    read the table before the caller entered the hub.
    """

    def __init__(
        self,
        engine: Engine,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_batch: int = _MAX_BATCH,
    ) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._max_batch = max_batch
        self._waiting: dict[str, list[_Request]] = {}
        self._running: asyncio.Task[None] | None = None
        # One statement is one snapshot: the ICEs and the number of the newest event agree.
        # One row: SQLite's thread would wait for Python's lock at each row.
        columns = Ice.__dataclass_fields__
        # With MATERIALIZED, PostgreSQL reads the ICEs once for their proofs and for the answer.
        held = (
            f"WITH held AS MATERIALIZED (SELECT {', '.join(columns)} FROM ice_tokens"
            f" WHERE {is_in('ice_token', 4 if engine.shared else 2)})"
        )
        number, taken, with_names, with_tokens = "0.0", "NULL", "", held
        if engine.shared:
            number, taken = "reading_number()", "(SELECT json_agg(digest) FROM taken)::text"
            with_names = f"WITH {_TAKEN.format(_PROOFS_BY_NAME)}"
            with_tokens = f"{held}, {_TAKEN.format(_PROOFS_BY_ALL)}"
        read = (
            " SELECT (SELECT coalesce(max(seq), 0) FROM ice_events),"
            f" (SELECT {engine.gather('ice_name', columns)} FROM ice_tokens"
            f" WHERE {is_in('ice_name', 1)}), {number}, {taken}"
        )
        self._sql = with_names + read
        self._sql_with_tokens = (
            f"{with_tokens}{read}, (SELECT {engine.gather(_KEY_OF_TOKEN, columns)} FROM held)"
        )

    async def find(self, key: str, proof: str | None = None) -> Reading:
        """The ICE of exactly this name, read after this call. Raises `StoreUnavailable`.

        `proof` names a proof; this call stores it, and `replayed` says whether it was stored before.
        """
        future: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(_Request(proof, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="look-ups")
        return await future

    async def find_by_token(self, digest: str, proof: str | None = None) -> Reading:
        """Like `find`, for the ICE whose token has this hash; a `proof` is stored only if there is one."""
        return await self.find(_BY_HASH + digest, proof)

    async def _run(self) -> None:
        try:
            while self._waiting:
                keys = tuple(itertools.islice(self._waiting, self._max_batch))
                batch = {key: self._waiting.pop(key) for key in keys}
                try:
                    answer = await self._ask(batch)
                except Exception as error:  # noqa: BLE001 - handed to the callers
                    for requests in batch.values():
                        _fail(requests, error)
                else:
                    for key, requests in batch.items():
                        answer.give(key, requests)
        finally:
            self._running = None

    async def _ask(self, batch: dict[str, list[_Request]]) -> _Answer:
        fault = self._engine.fault
        if fault is not None:
            # An ICE that could not be deregistered must not be admitted either.
            raise StoreUnavailable(fault)
        names = [key for key in batch if not key.startswith(_BY_HASH)]
        sql = self._sql
        params: list[object] = [as_json(names)]
        if self._engine.shared:
            used = [one.proof for name in names for one in batch[name] if one.proof]
            params += [as_json(used), proofs.KEPT]
        if len(names) < len(batch):
            sql = self._sql_with_tokens
            params += self._token_params(batch)
        at = self._monotonic()
        [(seq, found, number, taken, *by_token)] = await self._engine.look_up(sql, *params)
        ices = _FOUND.decode(found or "{}")
        for more in filter(None, by_token):
            ices |= _FOUND.decode(more)
        return _Answer(ices, seq, at, number, _PROOFS.decode(taken or "[]"))

    def _token_params(self, batch: dict[str, list[_Request]]) -> list[object]:
        tokens = [key for key in batch if key.startswith(_BY_HASH)]
        params: list[object] = [as_json([key.removeprefix(_BY_HASH) for key in tokens])]
        if self._engine.shared:
            used = [
                (key.removeprefix(_BY_HASH), one.proof)
                for key in tokens
                for one in batch[key]
                if one.proof
            ]
            params.append(as_json(used))
        return params


class _Answer(msgspec.Struct, gc=False):
    """The result of one query; `found` has the rows by the key of their requests."""

    found: dict[str, msgspec.Raw]
    seq: int
    at: float
    number: float
    taken: frozenset[str]

    def give(self, key: str, requests: list[_Request]) -> None:
        """Answer the requests for one ICE; a damaged row fails only these."""
        found = self.found.get(key)
        try:
            ice = None if found is None else _ICE.decode(found)
        except msgspec.DecodeError as error:
            name = "a token of a retired key" if key.startswith(_BY_HASH) else key
            _fail(requests, damaged(f"the entry of {name}", error))
            return
        reading = Reading(ice, self.seq, self.at, self.number)
        for one in requests:
            if one.future.done():  # the caller may have been cancelled
                continue
            if one.proof is not None and one.proof not in self.taken:
                one.future.set_result(msgspec.structs.replace(reading, replayed=True))
            else:
                one.future.set_result(reading)


def _fail(requests: list[_Request], error: Exception) -> None:
    for one in requests:
        if not one.future.done():
            one.future.set_exception(error)
