"""The audit log as a whole: its head, the proof that nothing of it was altered, and its pruning."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from gateway.core.audit_event import Actor, Event, digest_of
from gateway.core.codes import AuditAction
from gateway.core.hash_chain import Head, Verdict, Verifier
from gateway.core.times import Clock
from gateway.store import events
from gateway.store.engine import Engine, Row, Transaction, Undecodable
from gateway.store.events import Events

_BATCH: Final = 500
"""Events read or deleted at once: a few milliseconds, so that others have their turn."""
_PAUSE: Final = 0.02
"""Seconds between two deletions: a gateway that waits to write in another process looks only now and then."""

_GOOD_FOR: Final = timedelta(minutes=1)


class _Checkpoint(msgspec.Struct):
    """The detail of the event that a pruning leaves behind."""

    pruned_to: int
    digest: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many events were deleted, and up to which; 0 where none was old enough."""

    count: int
    seq: int


class Audit:
    """The use case. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._events = Events(engine.fetch)
        self._checking = asyncio.Lock()
        self._checked: tuple[Verdict, datetime] | None = None

    async def head(self) -> Head | None:
        """The newest event's number and digest; None while there is none."""
        rows = await self._events.rows_after(await self._events.last() - 1, 1)
        return Head(rows[0][0], digest_of(rows[0])) if rows else None

    async def verify(self, kept: Head | None = None) -> Verdict:
        """Read the whole log, a batch at a time, and prove what can be proved."""
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
            # It was pruned meanwhile: what was read at the beginning is no beginning any more.

    async def _compare(self, verifier: Verifier) -> None:
        """Whether what is logged of users and ICEs is what they are."""
        if await self._events.lacks_all():
            verifier.report_empty("users")
        after = ""
        while ices := await self._events.generations(after, _BATCH):
            verifier.compare(ices)
            after = ices[-1][0].lower()
            await asyncio.sleep(0)

    async def _read(self, verifier: Verifier, seq: int) -> list[Row]:
        """The rows behind `seq`; one that is no text ends them, and the verifier is told."""
        try:
            return await self._events.rows_after(seq, _BATCH)
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

    async def checked(self) -> tuple[Verdict, datetime]:
        """A verdict without a kept head and its time, a minute old at the most: readers share it."""
        async with self._checking:
            now = self._clock()
            if self._checked is None or abs(now - self._checked[1]) > _GOOD_FOR:
                self._checked = await self.verify(), now
            return self._checked

    async def _pruned(self) -> list[Head]:
        """What the log's own checkpoints say; one that cannot be read says nothing."""
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
        """Delete what is older than `before`, behind a checkpoint; refused where the chain is broken.

        The checkpoint is committed first, then the events go in batches: a crash between them leaves a
        log that is proven all the same, and the next pruning finishes the work.
        """
        verdict = await self.verify()
        if verdict.fault is not None:
            return f"{verdict.fault}: nothing was pruned, since that would hide it"
        first = await self._events.first()
        seq = await self._events.before_time(before)
        covered = max((head.seq for head in await self._pruned()), default=0)
        if seq > max(covered, first - 1):
            await self._engine.write(lambda transaction: self._checkpoint(transaction, actor, seq))
            covered = max((head.seq for head in await self._pruned()), default=0)
        count = 0
        for end in range(first + _BATCH - 1, covered + _BATCH, _BATCH) if first else ():
            if count:
                await asyncio.sleep(_PAUSE)
            count += await self._delete(min(end, covered))
        return Pruned(count, covered)

    async def _checkpoint(self, transaction: Transaction, actor: Actor, seq: int) -> None:
        [row] = await Events(transaction.fetch).rows_after(seq - 1, 1)
        if row[0] != seq:
            return  # another pruning was quicker: its checkpoint covers this one
        detail = msgspec.structs.asdict(_Checkpoint(seq, digest_of(row)))
        events.append(
            transaction, [Event(self._clock(), actor, AuditAction.PRUNE, None, None, detail)]
        )

    async def _delete(self, seq: int) -> int:
        return await self._engine.write(lambda transaction: events.prune(transaction, seq))
