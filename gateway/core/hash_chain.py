"""Proves that the audit log was neither altered nor shortened. Pure: rows in, a verdict out.

Each event holds the digest of the one before (`audit_event.LogEntry`). An operator who keeps the digest of the
newest event elsewhere, the *head*, can prove all events before it. A pruned log begins after a checkpoint: an
event that names the last pruned event and its digest. Without a head, removed events can only be detected by their
effects: each change of an ICE's generation is an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.audit_event import GENESIS, digest_of

HEAD_PATTERN: Final = "([1-9][0-9]{0,17}):([0-9a-f]{64})"
"""The text form of a `Head`."""


@dataclass(frozen=True, slots=True)
class Head:
    """The number and digest of an event, written `SEQ:DIGEST`."""

    seq: int
    digest: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """The reverse of `str`. Raises ValueError."""
        match = re.fullmatch(HEAD_PATTERN, text)
        if match is None:
            raise ValueError
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result: the first fault, or what is proven and what is not."""

    fault: str | None
    proven: str
    unproven: str
    head: Head | None
    """The newest event, if there is no fault."""


class Verifier:
    """Takes the rows of the log in order and gives a verdict.

    A row has the `audit_event.COLUMNS` as stored.
    """

    def __init__(self, pruned: Iterable[Head] = (), kept: Head | None = None) -> None:
        """`pruned` are the last pruned events according to the log's checkpoints, `kept` is a head kept elsewhere."""
        self._pruned = {head.seq: head.digest for head in pruned}
        self._kept = kept
        self._first: int | None = None
        self._before_first = GENESIS
        self._last: Head | None = None
        self._row: Sequence[object] = ()
        self._doubted: tuple[Head, Head] | None = None
        self._unlogged: str | None = None
        self.fault: str | None = None

    def feed(self, rows: Iterable[Sequence[object]]) -> None:
        """Check more rows; they are ignored after the first fault."""
        for row in rows:
            if self.fault is None:
                self.fault = self._feed(row)

    def unreadable(self, seq: int) -> None:
        """Report that event `seq`, the next one, cannot be decoded as text: the gateway never logs such an event."""
        if self.fault is None:
            self.fault = self._blame(*self._doubted) if self._doubted else _altered(seq)

    def compare(self, ices: Iterable[tuple[str, int, int | None]]) -> None:
        """Look for ICEs (name, generation, highest logged generation) with changes that the log lacks.

        Call it after the last row. Pruning removes the oldest events, never only the newest of an ICE.
        """
        for ice_name, generation, logged in ices:
            if self._unlogged is not None or logged == generation:
                continue
            if self._last is None:
                self.report_empty("ICEs")
            elif logged is not None:
                self._unlogged = (
                    f"{ice_name} has generation {generation}, and the log ends at its generation {logged}:"
                    " events were removed from the end, or its entry was altered"
                )
            elif self._first == 1:
                self._unlogged = (
                    f"the log has no event of {ice_name}: events were removed from the end"
                )

    def report_empty(self, those: str) -> None:
        """Report that the log is empty although there are `those`."""
        self._unlogged = f"the log is empty although there are {those}: its events were removed"

    def _feed(self, row: Sequence[object]) -> str | None:
        seq, previous, digest = int(str(row[0])), str(row[-1]), digest_of(row)
        last = self._last
        if self._doubted is not None:
            behind = seq == self._doubted[1].seq + 1
            return self._blame(*self._doubted, previous if behind else None)
        self._last, self._row = Head(seq, digest), row
        if last is None:
            self._first, self._before_first = seq, previous
            fault = self._begin(seq, previous)
        elif seq != last.seq + 1:
            fault = _taken_out(last.seq + 1, seq - 1)
        else:
            self._doubted = None if previous == last.digest else (last, self._last)
            fault = None
        return fault or self._compare(seq, digest)

    def _blame(self, first: Head, second: Head, genuine: str | None = None) -> str:
        """Decide which of two inconsistent events was altered, from the genuine digest of the second."""
        if genuine == second.digest:
            return _altered(first.seq)
        if genuine == digest_of((*self._row[:-1], first.digest)):
            return _altered(second.seq)  # only its `previous` was altered
        return f"{_altered(first.seq)}, or event {second.seq} was"

    def _begin(self, seq: int, previous: str) -> str | None:
        """Check the first row: number 1, or the one after a checkpoint."""
        before = GENESIS if seq == 1 else self._pruned.get(seq - 1)
        if before is None:
            # An interrupted pruning left some events; the chain through them leads to its checkpoint.
            return None if max(self._pruned, default=0) >= seq else _taken_out(1, seq - 1)
        if previous == before:
            return None
        checkpoint = "" if seq == 1 else f", or the checkpoint that names event {seq - 1} was"
        return _altered(seq) + checkpoint

    def _compare(self, seq: int, digest: str) -> str | None:
        """Compare event `seq` with a checkpoint and with the kept head."""
        witnesses = [("a checkpoint", self._pruned.get(seq))]
        if self._kept is not None and self._kept.seq == seq:
            witnesses.append(("the kept head", self._kept.digest))
        for witness, genuine in witnesses:
            if genuine is not None and self._doubted is not None:
                return self._blame(*self._doubted, genuine)
            if genuine not in (None, digest):
                return (
                    f"{_altered(seq)}, or one before it with the chain rewritten,"
                    f" since {witness} says otherwise"
                )
        return None

    def verdict(self) -> Verdict:
        """Conclude, after the last row."""
        fault = self.fault or self._end() or self._unlogged
        if fault is not None:
            return Verdict(fault, "", "", None)
        if self._last is None or self._first is None:
            return Verdict(None, "there is no event yet", "", None)
        first, last, kept = self._first, self._last, self._kept
        proven = f"events {first} to {last.seq} follow from each other"
        if first > 1:
            proven += f"; {first - 1} before them were pruned behind a checkpoint"
        if kept is None:
            unproven = (
                "that no event was removed from the end, and that the chain was not rewritten as a"
                " whole; a head kept elsewhere proves both up to it"
            )
        else:
            proven += f", and up to event {kept.seq} they are those of the kept head"
            unproven = f"that no event was removed from the end after event {kept.seq}"
        return Verdict(None, proven, unproven, last)

    def _end(self) -> str | None:
        last, kept = self._last, self._kept
        if last is None:
            return _taken_out(1, kept.seq) if kept else None
        if self._doubted:
            return self._blame(*self._doubted)
        if kept is None or self._first is None:
            return None
        if kept.seq > last.seq:
            return _taken_out(last.seq + 1, kept.seq)
        if kept.seq < self._first - 1:
            return (
                f"event {kept.seq} was pruned, so its head proves nothing any more: keep a head"
                f" from event {self._first - 1} on"
            )
        if kept.seq == self._first - 1 and self._before_first != kept.digest:
            return f"{_altered(kept.seq)} before it was pruned, or one before it"
        return None


def _altered(seq: int) -> str:
    return f"event {seq} was altered"


def _taken_out(first: int, last: int) -> str:
    return (
        f"event {first} was removed" if first == last else f"events {first} to {last} were removed"
    )
