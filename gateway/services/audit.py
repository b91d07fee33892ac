"""The whole audit log: its head, the proof that it was not altered, and its pruning."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from gateway.core.audit_event import Actor, AuditAction, Event, digest_of
from gateway.core.hash_chain import Head, Verdict, Verifier
from gateway.core.times import Clock
from gateway.store import events
from gateway.store.engine import Engine, Row, Transaction, Undecodable
from gateway.store.events import Events

_BATCH: Final = 500
"""Events read or deleted at once; that takes a few milliseconds, so other tasks get their turn."""
_PAUSE: Final = 0.02
"""Seconds between two deletions, in which a gateway in another process can get the write lock."""

_VERDICT_LIFETIME: Final = timedelta(minutes=1)


class _Checkpoint(msgspec.Struct):
    """The detail of a `prune` event: the last event that was pruned."""

    pruned_to: int
    digest: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many events were deleted, and the number of the last; 0 if none was old enough."""

    count: int
    seq: int


class Audit:
    """Proves and prunes the audit log. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock, batch: int = _BATCH) -> None:
        self._engine = engine
        self._clock = clock
        self._batch = batch
        self._events = Events(engine.fetch)
        self._checking = asyncio.Lock()
        self._cached: tuple[Verdict, datetime] | None = None

    async def head(self) -> Head | None:
        """The number and digest of the newest event; None if there is no event."""
        rows = await self._events.rows_after(await self._events.last() - 1, 1)
        return Head(rows[0][0], digest_of(rows[0])) if rows else None

    async def verify(self, kept: Head | None = None) -> Verdict:
        """Read and verify the whole log, a batch at a time; `kept` is a head that was kept elsewhere."""
        while True:
            first = await self._events.first()
            verifier = Verifier(await self._pruned(), kept)
            seq = first - 1
            while rows := await self._read(verifier, seq):
                verifier.feed(rows)
                seq = rows[-1][0]
                await asyncio.sleep(0)
            await self._compare(verifier)
            if await self._events.first() == first:
                return verifier.verdict()
            # It was pruned meanwhile, so the first events read are gone: start again.

    async def _compare(self, verifier: Verifier) -> None:
        """Compare users and ICEs with the log."""
        if await self._events.lacks_all():
            verifier.report_empty("users")
        after = ""
        while ices := await self._events.generations(after, self._batch):
            verifier.compare(ices)
            after = ices[-1][0].lower()
            await asyncio.sleep(0)

    async def _read(self, verifier: Verifier, seq: int) -> list[Row]:
        """The rows after `seq`, up to one that cannot be decoded, which goes to the verifier."""
        try:
            return await self._events.rows_after(seq, self._batch)
        except Undecodable:
            pass
        rows: list[Row] = []
        try:
            while row := await self._events.rows_after(seq, 1):
                rows += row
                seq = row[0][0]
        except Undecodable:
            verifier.feed(rows)
            verifier.unreadable(await self._events.next_after(seq))
        return []

    async def shared_verdict(self, kept: Head | None = None) -> tuple[Verdict, datetime]:
        """A verdict and its time. One is made at a time; without a kept head callers share it for a minute."""
        async with self._checking:
            now = self._clock()
            if kept is not None:
                return await self.verify(kept), now
            if self._cached is None or abs(now - self._cached[1]) > _VERDICT_LIFETIME:
                self._cached = await self.verify(), now
            return self._cached

    async def _pruned(self) -> list[Head]:
        """The pruned heads by the log's own checkpoints; unreadable ones are skipped."""
        heads = []
        try:
            details = await self._events.details(AuditAction.PRUNE)
        except Undecodable:
            return []
        for detail in details:
            with contextlib.suppress(msgspec.MsgspecError):
                checkpoint = msgspec.json.decode(detail, type=_Checkpoint)
                heads.append(Head(checkpoint.pruned_to, checkpoint.digest))
        return heads

    async def prune(self, actor: Actor, before: datetime) -> Pruned | str:
        """Delete the events before a time, after a checkpoint; returns why not if the chain is broken.

        The checkpoint is committed first, then the events are deleted in batches. A crash in between
        leaves a log that can still be proven, and the next pruning finishes the work.
        """
        verdict = await self.verify()
        if verdict.fault is not None:
            return f"{verdict.fault}: nothing was pruned, since pruning would hide this"
        first = await self._events.first()
        seq = await self._events.before_time(before)
        covered = max((head.seq for head in await self._pruned()), default=0)
        if seq > max(covered, first - 1):
            await self._engine.write(lambda transaction: self._checkpoint(transaction, actor, seq))
            covered = max((head.seq for head in await self._pruned()), default=0)
        count, batch = 0, self._batch
        for end in range(first + batch - 1, covered + batch, batch) if first else ():
            if count:
                await asyncio.sleep(_PAUSE)
            count += await self._engine.write(
                functools.partial(events.prune, seq=min(end, covered))
            )
        return Pruned(count, covered)

    async def _checkpoint(self, transaction: Transaction, actor: Actor, seq: int) -> None:
        [row] = await Events(transaction.fetch).rows_after(seq - 1, 1)
        if row[0] != seq:
            return  # a concurrent pruning has a checkpoint that covers this one
        detail = msgspec.structs.asdict(_Checkpoint(seq, digest_of(row)))
        event = Event.of(self._clock(), actor, AuditAction.PRUNE, **detail)
        events.append(transaction, [event])
