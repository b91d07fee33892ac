"""The rules of a schedule: what one may be, and what becomes of each of its occurrences. Pure. Source: docs/api.md.

An occurrence is an instant at which its cron expression is due. It becomes one operation, or is skipped for a reason.
A schedule carries its next occurrence; who moves that on, by compare-and-set, has decided on all before it. So each is
decided on once, whatever crashes. A clock that is set back does not bring them back. After a clock was set forward, a
node was down or the database was away, the newest occurrence runs if it is not too late for it.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict, Unpack

from client.protocol import OperationKind
from gateway.core.audit_event import Via
from gateway.core.cron import Cron
from gateway.core.ice import NAME_RULE, valid_name
from gateway.core.operation import LIFETIME, MAX_AHEAD, NotValid, Operation, State, check_params
from gateway.core.times import to_text

DEFAULT_TIMEOUT: Final = int(LIFETIME)
DEFAULT_GRACE: Final = 600
MAX_SECONDS: Final = int(MAX_AHEAD.total_seconds())
"""Of a timeout and of a grace: an operation's deadline may be no further ahead."""
MAX_NAME: Final = 128
MAX_SCHEDULES: Final = 10_000
MAX_OF_TARGET: Final = 100
"""Schedules of one ICE or pool."""
SHOWN: Final = 5
"""Next occurrences that are shown."""
MAX_COUNTED: Final = 100
"""Missed occurrences are counted up to this many: those of a year would hold the event loop for seconds."""
MAX_REWIND: Final = timedelta(days=1)
"""If the last occurrence is further ahead than this, the clock was wrong when it was decided on, and is right now."""


class SkipReason(enum.StrEnum):
    """Why an occurrence did not become an operation."""

    MISSED = "missed"
    """It could not be decided on in time, or a newer one was due by then."""
    FORBIDDEN = "forbidden"
    """Its requester may not operate its target any more."""
    WRONG_STATUS = "wrong-status"
    PAUSED = "paused"
    UNFINISHED = "unfinished"
    """The schedule's operation before it has not finished."""
    QUEUE_FULL = "queue-full"


@dataclass(frozen=True, slots=True)
class Target:
    """What the tables say of a schedule and its target, read in the transaction that decides.

    A pool is always registered and never paused; its ICEs may be, and then its operations wait.
    """

    allowed: bool
    registered: bool
    paused: bool
    unfinished: bool
    full: bool

    def obstacle(self) -> SkipReason | None:
        """The first reason not to make an operation, those that last longest first; None if there is none."""
        obstacles = {
            SkipReason.FORBIDDEN: not self.allowed,
            SkipReason.WRONG_STATUS: not self.registered,
            SkipReason.PAUSED: self.paused,
            SkipReason.UNFINISHED: self.unfinished,
            SkipReason.QUEUE_FULL: self.full,
        }
        return next((reason for reason, holds in obstacles.items() if holds), None)


@dataclass(frozen=True, slots=True)
class Skipped:
    """`count` occurrences from `first` on that were left out; `MAX_COUNTED` stands for as many or more."""

    first: datetime
    reason: SkipReason
    count: int = 1


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A row of `ice_schedule_occurrences`: the id of its operation, or why it was left out.

    Missed ones that follow each other are one row of `count`, of which `at` is the first.
    """

    at: datetime
    recordedon: datetime
    operation: str | None
    skipped: SkipReason | None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of all occurrences that are due: `runs` becomes an operation; `schedule` is how it goes on."""

    runs: datetime | None
    skipped: tuple[Skipped, ...]
    schedule: Schedule

    def occurrences(self, now: datetime, operation: str | None) -> list[Occurrence]:
        """The rows of the history, oldest first; `operation` is the id of that of `runs`, if it is a new one."""
        rows = [Occurrence(one.first, now, None, one.reason, one.count) for one in self.skipped]
        if self.runs is not None and operation is not None:
            rows.append(Occurrence(self.runs, now, operation, None))
        return rows


class Changes(TypedDict, total=False):
    """What may change of a schedule; its target may not."""

    name: str
    params: bytes
    cron: str
    timezone: str
    timeout: int
    grace: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A row of `ice_schedules`: work for one ICE or one pool, again and again.

    `params` is JSON; `timeout` and `grace` are seconds; times are aware, in UTC. `next` is the next occurrence, which may
    be due already; None if it is disabled. `last` is the newest one that was decided on.

    Its operations are requested by `requested_by`, the user who made it or last changed what it does: so no user
    requests operations in another's name. `via` is the channel that they used.
    """

    id: str
    name: str
    ice_name: str | None
    pool: str | None
    params: bytes
    cron: str
    timezone: str
    requested_by: str
    via: Via
    createdon: datetime
    timeout: int = DEFAULT_TIMEOUT
    grace: int = DEFAULT_GRACE
    enabled: bool = True
    next: datetime | None = None
    last: datetime | None = None
    former_user: str | None = None
    """The user who lost its ICE to another, and whose schedule it was: only admins and auditors see it."""

    @property
    def place(self) -> str:
        """Its place in the order of listings."""
        return f"{to_text(self.createdon)} {self.id}"

    def changed(self, now: datetime, **changes: Unpack[Changes]) -> Schedule:
        """The schedule after a request for changes. Raises `NotValid`.

        Its next occurrence stays, even if it is due and not decided on yet, unless a change is about the times.
        """
        new = replace(self, **changes)
        checked = new.checked(now)
        times_differ = (new.cron, new.timezone, new.enabled) != (
            self.cron,
            self.timezone,
            self.enabled,
        )
        return checked if times_differ else new

    @staticmethod
    def check(changes: Changes, now: datetime) -> None:
        """Check the values alone, without the schedule that they are for. Raises `NotValid`."""
        replace(_ANY, **changes).checked(now)

    def checked(self, now: datetime) -> Schedule:
        """This schedule, which a caller asks for, with its next occurrence. Raises `NotValid`."""
        if self.ice_name is None and self.pool is None:
            raise NotValid("ice_name", "is required, or pool")
        if self.ice_name is not None and self.pool is not None:
            raise NotValid("pool", "is only for a schedule without ice_name")
        for field, target in (("ice_name", self.ice_name), ("pool", self.pool)):
            if target is not None and not valid_name(target):
                raise NotValid(field, NAME_RULE)
        if not 1 <= len(self.name) <= MAX_NAME or not self.name.isprintable():
            raise NotValid("name", f"must have 1 to {MAX_NAME} printable characters")
        check_params(self.params)
        for field, seconds in (("timeout", self.timeout), ("grace", self.grace)):
            if not 1 <= seconds <= MAX_SECONDS:
                raise NotValid(field, f"must be 1 to {MAX_SECONDS:,} seconds")
        following = self._times().next_after(self._decided_until(now))
        if following is None:
            raise NotValid("cron", "never matches in this timezone")
        return replace(self, next=following if self.enabled else None)

    def upcoming(self, count: int) -> list[datetime]:
        """The next occurrences; none if it is disabled. Raises `NotValid` as `decide` does."""
        if self.enabled:
            self._times()
        return list(itertools.islice(self._from_next(), count))

    def idempotency_key(self, occurrence: datetime) -> str:
        """The key of the operation that an occurrence becomes."""
        return f"schedule:{self.id}:{to_text(occurrence)}"

    def operation(self, operation_id: str, occurrence: datetime, now: datetime) -> Operation:
        """The operation that an occurrence becomes."""
        return Operation(
            operation_id,
            self.ice_name,
            OperationKind.SCHEDULE,
            self.params,
            State.QUEUED,
            self.requested_by,
            now,
            occurrence,
            self.deadline(occurrence),
            idempotency_key=self.idempotency_key(occurrence),
            pool=self.pool,
            schedule=self.id,
        )

    def operation_now(
        self, operation_id: str, requested_by: str, token: str | None, now: datetime
    ) -> Operation:
        """The operation that a caller asks for without an occurrence; `token` is the id of their API token."""
        return replace(
            self.operation(operation_id, now, now),
            requested_by=requested_by,
            idempotency_key=None,
            token=token,
        )

    def deadline(self, occurrence: datetime) -> datetime:
        """The deadline of the operation that an occurrence becomes."""
        return occurrence + timedelta(seconds=self.timeout)

    def is_due(self, now: datetime) -> bool:
        """Whether there is anything to decide."""
        return self.next is not None and self.next <= now

    def decide(self, now: datetime, target: Target) -> Decision | None:
        """What becomes of the occurrences that are due; None if none is.

        Of several only the newest may run. It is missed, too, if it is older than `grace` or its deadline has passed.
        After a clock was more than `MAX_REWIND` ahead, one may come again that ran: its idempotency key says so.

        Raises:
            NotValid: the time zone is no longer in this machine's database.
        """
        first = self.next
        if first is None or first > now:
            return None
        times = self._times()
        newest = times.newest(first, now) or first
        late = now - newest > timedelta(seconds=self.grace) or self.deadline(newest) <= now
        older = itertools.takewhile(lambda one: one < newest, self._from_next())
        missed = sum(1 for _ in itertools.islice(older, MAX_COUNTED))
        missed = min(missed + late, MAX_COUNTED)
        skipped = [Skipped(first, SkipReason.MISSED, missed)] if missed else []
        obstacle = None if late else target.obstacle()
        if obstacle is not None:
            skipped.append(Skipped(newest, obstacle))
        runs = None if late or obstacle is not None else newest
        following = times.next_after(now)
        return Decision(runs, tuple(skipped), replace(self, next=following, last=newest))

    def realigned(self, now: datetime) -> Schedule | None:
        """The schedule with the next occurrence that clock and time zone database give now; None if that is its own.

        It differs after a new database brought other changes of clocks, or a zone that was gone, and after the clock
        was far ahead. Raises `NotValid` as `decide` does.
        """
        if not self.enabled or (self.next is not None and self.next <= now):
            return None
        following = self._times().next_after(self._decided_until(now))
        return None if following == self.next else replace(self, next=following)

    def _decided_until(self, now: datetime) -> datetime:
        """From when on occurrences are not decided on yet: later than `now` if the clock was set back."""
        if self.last is not None and now < self.last <= now + MAX_REWIND:
            return self.last
        return now

    def _from_next(self) -> Iterator[datetime]:
        if self.next is not None:
            yield self.next
            yield from self._times().all_after(self.next)

    def _times(self) -> Cron:
        return Cron.parse(self.cron, self.timezone)


_ANY: Final = Schedule(
    id="any",
    name="any",
    ice_name="any",
    pool=None,
    params=b"{}",
    cron="* * * * *",
    timezone="UTC",
    requested_by="any",
    via=Via.API,
    createdon=datetime.fromtimestamp(0, UTC),
)
"""A schedule of which each member is valid."""
